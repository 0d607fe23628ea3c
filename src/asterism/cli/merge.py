"""`asterism merge RECIPE OUT`, and `asterism merge LIBRARY OUT --method NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asterism.cli.compose import check_rank
from asterism.cli.options import Given, command
from asterism.core.errors import SettingsError

if TYPE_CHECKING:
    from asterism.merge.learned import Texts
    from asterism.merge.recipe import Recipe
    from asterism.models.library import Library

TEXTS = 200
"""Training texts of each domain that merges by data read."""
Answer = tuple[dict[str, Any], Callable[[], None]]


@command(omit=("dtype",))
def app(
    recipe: Annotated[Path, typer.Argument(help="YAML in mergekit's schema; with --method the folder of a library.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(help="Folder to write; an earlier merge that lies there alone is replaced whole.", show_default=False)
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="Merge all specialists of a library so: a recipe's method, or fisher, regmean, adamerging, greedy_soup, emr.",
            show_default=False,
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the method, NAME=VALUE, e.g. density=0.2 or 'weight={medical: 0.6, legal: 0.4}'; may be repeated.", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of the texts that the method reads: <domain>.train files, or for greedy_soup <domain>.heldout; may be repeated.  "
            "[default: what was measured before]",
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[
        float | None, typer.Option(min=0.001, help="Most gigabytes of tensors a file of a checkpoint.  [default: 5]", show_default=False)
    ] = None,
    form: Annotated[
        Literal["checkpoint", "adapter"],
        typer.Option("--as", help="A whole model, or one PEFT LoRA adapter where all models are adapters of one base."),
    ] = "checkpoint",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the adapter; needed unless the method is a weighted sum.", show_default=False)
    ] = None,
    push: Annotated[str | None, typer.Option(help="Hub repository to upload the merge to, owner/name.", show_default=False)] = None,
    *,
    given: Given,
):
    """Merge models as a recipe says, or the specialists of a library by a method.

    A recipe's tensors are merged one at a time. What is written is a checkpoint that `transformers` loads, or an adapter for `peft`.
    """
    check_rank(form, rank)
    if shard_size and form == "adapter":
        raise SettingsError("An adapter is one file.", met=f"--shard-size {shard_size:g} --as adapter", mend="leave --shard-size out")
    if push is not None and push.count("/") != 1:
        raise SettingsError("That names no repository of the Hub.", met=push, mend="--push owner/name")
    shard_bytes = int((shard_size or 5) * 1e9)
    if method is not None:
        if recipe.is_file():
            mend = "leave --method out, or give the folder of a library"
            raise SettingsError("A recipe names its own method.", met=f"{recipe} --method {method}", mend=mend)
        told, shown = _library(recipe, out, method, parameter or [], data or [], form, rank, shard_bytes, push, given)
    else:
        _check_recipe(recipe, {"--parameter": parameter, "--data": data})
        told, shown = _adapter(recipe, out, rank, given) if form == "adapter" else _checkpoint(recipe, out, shard_bytes, given)
    address = None
    if push is not None:
        from asterism.models.sources import pushed

        address = pushed(out, push)

    def show() -> None:
        from asterism.cli.output import line

        shown()
        if address:
            line(f"uploaded: {address}")

    return {"out": out, "as": form, **told, "uploaded": address}, show


def _check_recipe(recipe: Path, of_libraries: dict[str, Any]) -> None:
    if recipe.is_dir():
        raise SettingsError("A library is merged by a method.", met=recipe, mend="--method ties, say; or give a recipe, a YAML file")
    for option, value in of_libraries.items():
        if value:
            mend = "write it into the recipe, or give a library's folder and --method"
            raise SettingsError(f"{option} is of --method.", met=f"{recipe} {option} {value[0]}", mend=mend)


def _library(
    root: Path, out: Path, method: str, parameter: Sequence[str], data: Sequence[Path], form: str, rank: int | None, shard_bytes: int,
    push: str | None, given: Given,
) -> Answer:  # fmt: skip
    from asterism.cli.places import open_library
    from asterism.merge.by_name import EMR, OTHERS, SOUP, check_method, merge_library
    from asterism.merge.library import recipe_of

    parameters = _parameters(parameter)
    check_method(method, bool(data), parameters)
    if form == "adapter" and method in OTHERS:
        mend = "write a checkpoint and cut an adapter out of it: `asterism extract-lora`"
        raise SettingsError("Only a recipe's methods merge into an adapter.", met=f"--method {method} --as adapter", mend=mend)
    if push is not None and method == EMR:
        raise SettingsError("EMR's parts are no checkpoint.", met=f"--method emr --push {push}", mend="leave --push out")
    library = open_library(root, given)
    if form == "adapter":
        return _adapter(recipe_of(library, method, **parameters), out, rank, given)
    texts, note = (_held_out if method == SOUP else _training)(library, data, given) if data else (None, None)
    told = merge_library(library, method, out, texts, parameters=parameters, seed=given.seed, shard_bytes=shard_bytes)
    told |= {"note": note} if note else {}
    return told, lambda: _show_emr(out, told) if method == EMR else _show(out, told)


def _training(library: Library, data: Sequence[Path], given: Given) -> tuple[Texts, None]:
    """Training texts of each specialist's domain."""
    from asterism.core.corpus import read_corpus

    corpus = read_corpus(*data)
    return {name: corpus.train[name][:TEXTS] for name in library.names if corpus.train.get(name)}, None


def _held_out(library: Library, data: Sequence[Path], given: Given) -> tuple[Texts, str | None]:
    """By group the held-out texts that no evaluation with the same seed tests; where it would test them all, all of them, and a note."""
    from asterism.core.corpus import read_corpus
    from asterism.core.errors import DataError
    from asterism.evaluate.probes import by_group, draw, validation_probes
    from asterism.evaluate.settings import EvaluationSettings

    corpus, settings = read_corpus(*data), EvaluationSettings(seed=given.seed)
    everything = draw(corpus, library.names, settings.changed(single_per_domain=10**9, cross_per_pair=10**9))
    try:
        return by_group(validation_probes(corpus, library.names, settings)), None
    except DataError:
        return by_group(everything), "All held-out texts have chosen the soup, for an evaluation tests them all: score it on others."


def _parameters(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE each, the value as YAML reads it. SettingsError for another form, or a name given twice."""
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        try:
            read = yaml.safe_load(value) if name and equals and name not in found else None
        except yaml.YAMLError:
            read = None
        if isinstance(read, str):
            with suppress(ValueError):  # YAML takes 1e-3 for a text
                read = float(read)
        if read is None:
            raise SettingsError("A parameter is given as NAME=VALUE, each name once.", met=text, mend="e.g. --parameter density=0.2")
        if name == "seed":
            raise SettingsError("The seed is an option of its own.", met=text, mend=f"--seed {value.strip()}")
        found[name] = read
    return found


def _checkpoint(recipe: Path, out: Path, shard_bytes: int, given: Given) -> Answer:
    from asterism.merge.run import merge_recipe

    told = merge_recipe(recipe, out, seed=given.seed, device=given.device, shard_bytes=shard_bytes)
    return told, lambda: _show(out, told)


def _show(out: Path, told: dict[str, Any]) -> None:
    from asterism.cli.output import line, table

    rows = [
        (source["model"], str(source["tensors"]), "" if source["distance"] is None else f"{source['distance']:.2%}")
        for source in told["sources"]
    ]
    table(f"{told['method']['title']}: {out}", ("model", "tensors", "distance of the merge"), rows)
    if "soup" in told:
        line(f"in the soup: {', '.join(told['soup']['names'])}; it loses {told['soup']['loss']:.3f} nats a token")
    if "note" in told:
        line(f"note: {told['note']}")


def _show_emr(out: Path, told: dict[str, Any]) -> None:
    from asterism.cli.output import line

    line(f"{out}: parts for {', '.join(told['rescalers'])}, {told['share']:.0%} of their own size")
    line(f"asterism.merge.emr.Emr.load(library, {str(out)!r}).model({next(iter(told['rescalers']))!r}) is one of them")


def _adapter(recipe: Path | Recipe, out: Path, rank: int | None, given: Given) -> Answer:
    from asterism.cli.output import adapter_table
    from asterism.core.storage import read_json
    from asterism.merge.lora import RECORD, merge_adapters

    report = merge_adapters(recipe, out, rank=rank, seed=given.seed, device=given.device)
    told = read_json(out / RECORD)
    return told, lambda: adapter_table(f"{told['method']['title']}: {out}", report)
