"""An experiment in parts: every part of every seed, then all that is finished as results and a report. What is finished is not repeated."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from asterism.core.errors import UnknownName
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.results import write_results
from experiments.commands import machine, parser
from experiments.compact import write_compact


@dataclass(eq=False)
class Seed:
    """One seed at one scale. Everything lies under `root`: what serves all seeds, and the rest in the seed's own folder."""

    recipe: Any
    data: Any
    root: Path
    seed: int

    @property
    def folder(self) -> Path:
        """Of this seed."""
        return self.root / f"seed-{self.seed}"

    @cached_property
    def origin(self) -> str:
        """What everything measured here comes from."""
        recipe = self.recipe.model_dump(mode="json", exclude={"called", "config"})  # names in tables change no figure
        return digest_of(recipe, self.data.digest(), self.seed)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A measurement as JSON in the seed's folder, made unless it lies there from the same recipe and texts."""
        found = self.found(name)
        if found is None:
            found = make()
            write_json(self._measured(name), {"origin": self.origin, "value": found})
        return found

    def found(self, name: str) -> Any:
        """A measurement that `kept` has left; None where there is none from the same recipe and texts."""
        return value(self._measured(name), self.origin)

    def _measured(self, name: str) -> Path:
        return self.folder / "measured" / f"{name}.json"


def value(path: Path, origin: str) -> Any:
    """What a file {"origin", "value"} holds; None where there is none, or it is of another origin."""
    read = read_json(path) if path.exists() else {}
    return read["value"] if read.get("origin") == origin else None


@dataclass(frozen=True)
class Experiment:
    """What a command runs."""

    about: str | None
    """Its help."""
    home: Path
    """Folder of the lab scale's results.json."""
    out: Path
    """Where models, raw rows and the report are kept unless told otherwise."""
    parts: Mapping[str, Callable[[Any], dict[str, Any]]] = field(repr=False)
    """Name -> what measures it for a seed, in the order in which they run."""
    recipe: Callable[[str], Any]
    """Of a scale by name."""
    read: Callable[[Any, Sequence[Path]], Any]
    """The data of a recipe from folders."""
    seed: Callable[[Any, Any, Path, int], Any]
    """A `Seed` of recipe, data, root and number."""
    plan: Callable[[Any, Path, Sequence[int], Sequence[str]], str]
    gather: Callable[[Sequence[Any], Sequence[str], str, Mapping[str, object]], tuple[dict[str, Any], list[dict[str, Any]]]]
    report: Callable[[Mapping[str, Any], Path], Path]

    def run(self, arguments: Sequence[str] | None = None) -> None:
        """Run what the arguments ask for and gather. UnknownName for a part or scale that there is not."""
        given = self._parser().parse_args(arguments)
        torch.set_num_threads(given.threads)
        made, root = self.recipe(given.scale), given.out / given.scale
        chosen, names = self._chosen(given.only), list(self.parts)
        if given.dry_run:
            print(self.plan(made, root, given.seeds, names))
            return
        logging.disable_progress_bar()  # transformers' own, beside ours
        data = self.read(made, given.data)
        seeds = [self.seed(made, data, root, seed) for seed in given.seeds]
        for own in seeds:
            for part in chosen:
                print(f"seed {own.seed}: {part}", file=sys.stderr)
                own.kept(part, lambda own=own, part=part: self.parts[part](own))
        results, rows = self.gather(seeds, names, given.scale, machine())
        write_results(root, results, rows)
        place = given.results or (self.home if given.scale == "lab" else root)
        write_compact(place / "results.json", results)
        page = self.report(results, root / "report.html")
        print(f"results: {place / 'results.json'}\nrows:    {root / 'rows.parquet'}\nreport:  {page}")

    def _chosen(self, only: Sequence[str] | None) -> list[str]:
        """The parts asked for, all of them where none is named."""
        for name in only or ():
            if name not in self.parts:
                raise UnknownName("part", name, self.parts)
        return [name for name in self.parts if not only or name in only]

    def _parser(self) -> ArgumentParser:
        own = parser(self.about, "--data", "--scale", "--results", "--seeds", "--threads")
        parts = ", ".join(self.parts)
        own.add_argument("--only", action="append", metavar="PART", help=f"this part alone ({parts}); may be given more than once")
        own.add_argument("--out", type=Path, default=self.out, help="where models, raw rows and the report are kept")
        own.add_argument("--dry-run", action="store_true", help="print sizes, steps and what is done; run nothing")
        return own
