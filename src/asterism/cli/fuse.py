"""`asterism fuse RECIPE OUT`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from asterism.cli.options import Given, command
from asterism.cli.rivals import check_asked, compared, contest, reported, score_tables
from asterism.core.errors import SettingsError
from asterism.evaluate.settings import AnswerSettings


@command(AnswerSettings, omit=("dtype", "chat"))
def app(
    recipe: Annotated[Path, typer.Argument(help="YAML: target, sources, replay data, settings.", show_default=False)],
    out: Annotated[Path | None, typer.Argument(help="Folder to write the adapter to.", show_default=False)] = None,
    show_alignment: Annotated[
        bool, typer.Option("--show-alignment", help="Show which modules pair, and which do not, and fuse nothing.")
    ] = False,
    test: Annotated[
        list[str] | None,
        typer.Option(
            help="Examples to compare on, NAME=FILE or FILE; may be repeated. Answers are written and marked.", show_default=False
        ),
    ] = None,
    rivals: Annotated[
        str | None,
        typer.Option(
            help="Whom to compare with beside the target: control,fusellm,gac,unite,merges, or single merges such as ties. Made where they "
            "are not there yet, in OUT.rivals.",
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Other adapters of the target's backbone, for merges: NAME=FOLDER,...", show_default=False)
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Page to write, HTML.", show_default=False)] = None,
    *,
    given: Given,
):
    """Carry what adapters on other backbones know into an adapter of the target's, and write that as a PEFT adapter.

    Interrupted, the same command goes on where it stopped; a finished fusion is not repeated. --seed takes the place of the recipe's seeds.
    """
    if show_alignment == (out is not None):
        met = "neither OUT nor --show-alignment" if out is None else "OUT and --show-alignment"
        raise SettingsError("A fusion is written to a folder, or its alignment is shown.", met=met, mend="give one of the two")
    tests = [str(each) for each in test or ()]
    answering = {name: value for name, value in given.values.items() if name != "seed"}
    check_asked(out, tests, rivals=rivals, family=family, report=report, **answering)
    from asterism.fuse.recipe import Recipe
    from asterism.fuse.stages import alignments, fuse_recipe

    read = Recipe.read(recipe, seed=given.values.get("seed"))
    if out is None:
        pairs = alignments(read)

        def show_pairs() -> None:
            for name, alignment in pairs.items():
                _pairs_table(name, alignment.rows())

        return {"stages": {name: alignment.to_dict() for name, alignment in pairs.items()}}, show_pairs
    beside = contest(read, tests, rivals, family)
    stages = fuse_recipe(read, out, device=given.device)
    results = compared(read, out, beside, given) if beside else None
    page = reported(stages, results, report) if report else None

    def show() -> None:
        from asterism.cli.output import line

        for name, told in stages.items():
            _fusion_tables(name, told)
        if results:
            score_tables(results)
        line(str(out))
        if page:
            line(f"report: {page}")

    return {"out": out, "stages": stages} | ({"results": results} if results else {}) | ({"report": page} if page else {}), show


def _pairs_table(name: str, rows: Sequence[Sequence[str]]) -> None:
    from asterism.cli.output import table

    table(f"{name}: what the target takes from whom", ("source", "functions", "target's blocks", "source's blocks"), rows)


def _fusion_tables(name: str, told: Mapping[str, Any]) -> None:
    """What is paired, how far each source was let in, what became of the adapter."""
    from asterism.cli.output import line, table
    from asterism.fuse.reading import by_function, held_out_line

    rows = [
        [source, facts["family"], str(facts["rank"]), *_open(told["openness"].get(source))] for source, facts in told["sources"].items()
    ]
    _pairs_table(name, told["alignment"]["rows"])
    table(f"{name}: sources", ("source", "family", "rank", "gates open", "mean gate"), rows)
    columns = ("function", "modules", "mean change", "largest change", "condition before", "after")
    table(f"{name}: change of B, by its norm", columns, by_function(told["slots"]))
    line(held_out_line(told))


def _open(opened: Mapping[str, float] | None) -> list[str]:
    return ["", "no gates"] if opened is None else [f"{opened['open']:.0%}", f"{opened['mean']:.3f}"]
