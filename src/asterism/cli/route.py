"""`asterism route train | eval | show | export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asterism.cli.options import LIBRARY, Given, command, is_first_process
from asterism.cli.places import open_library, text_of, torch_dtype
from asterism.core.errors import SettingsError
from asterism.core.storage import check_writable
from asterism.core.words import counted
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.route.settings import RouterSettings

if TYPE_CHECKING:
    from asterism.models.library import Library
    from asterism.models.routed import RoutedForCausalLM
    from asterism.route.texts import TaskTexts

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ROUTER = Annotated[Path, typer.Argument(help="Folder of the router.", show_default=False)]
LENGTH = Annotated[int, typer.Option(min=3, help="Tokens read of each text; longer texts are cut there.")]
REPORT = Annotated[Path | None, typer.Option(help="Page of HTML to write.", show_default=False)]
DOMAIN = Annotated[str | None, typer.Option(help="Which domain of a folder, or which pair of its cross-domain files: a-b.")]


@app.callback()
def _group() -> None:
    """The MLPs of a library's models side by side in every block, weighed by gates token by token; only the gates are trained."""


_NOT_OF_GATES = ("method", "lora_rank", "lora_alpha", "evaluate_every", "patience")


@command(RouterSettings, TrainingSettings, omit=_NOT_OF_GATES, base=PRESETS["router"], group=app, name="train")
def train(
    library: LIBRARY,
    out: Annotated[Path, typer.Argument(help="Folder to write the router to.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="The task's texts: a JSON-lines file (text, or prompt and response), a folder with --domain, or a Hub id."),
    ] = None,
    domain: DOMAIN = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the texts that is held out and kept with the router; 0 for none.  [default: 0.1]",
            show_default=False,
        ),
    ] = None,
    experts: Annotated[str | None, typer.Option(help="Specialists to weigh, a,b,...  [default: all]", show_default=False)] = None,
    attention: Annotated[
        Literal["refuse", "generalist", "mean"],
        typer.Option(help="What is taken where specialists differ in more than their MLPs: nothing, the generalist's, or their mean."),
    ] = "refuse",
    untrained: Annotated[
        Literal["prompts", "average", "arrow"] | None,
        typer.Option(
            help="Gates without training: by prompts for each expert (--prompts), by the average of what the MLPs read on each expert's "
            "training texts (--data FOLDER), or by what its training changed most (Arrow, no data)."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML of --untrained prompts: `expert: [a prompt, another]`.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Also write the whole routed model to OUT/whole.")] = False,
    *,
    given: Given,
):
    """Train a router on the texts of a task.

    With --untrained one is made without training. Interrupted, the same command goes on where it stopped. The defaults are compatible
    specialization's: 1739 steps of 92 windows of 1024 tokens. Gates train in float32.
    """
    names = {"experts": tuple(name.strip() for name in experts.split(","))} if experts else {}
    settings = given.settings(RouterSettings).changed(**names)
    if untrained:
        _check_untrained(untrained, given, {"domain": domain, "held_out": held_out})
        told = _untrained(library, out, data, settings, attention, untrained, prompts, given)
    elif data is None:
        raise SettingsError("A router learns from texts.", met="no --data", mend="give --data, or --untrained arrow")
    else:
        from asterism.route.texts import task_texts

        texts = task_texts(data, domain, held_out=0.1 if held_out is None else held_out, seed=given.seed)
        told = _trained(library, out, texts, settings, attention, given)
    if whole and is_first_process():
        from asterism.route.build import load_router
        from asterism.route.export import export_routed

        opened = open_library(library, given)
        told["whole"] = export_routed(load_router(out, opened), out / "whole", opened.tokenizer)

    def show() -> None:
        from asterism.cli.output import line

        gates = f"{told['gates']:,} numbers in the gates over {', '.join(told['experts'])}"
        line(f"{out}: {gates}" + (f"; {counted(told['texts'], 'text')}, {told['held_out']} held out" if "texts" in told else "; untrained"))
        if "whole" in told:
            line(f"whole model: {told['whole']}")

    return {"router": out, **told}, show


@command(group=app, name="eval")
def evaluate(
    library: LIBRARY,
    router: ROUTER,
    data: Annotated[
        str | None,
        typer.Option(help="Texts that the router has not learnt from: a file, or a folder with --domain.  [default: those held out]"),
    ] = None,
    domain: DOMAIN = None,
    max_length: LENGTH = 256,
    report: REPORT = None,
    *,
    given: Given,
):
    """Tell what a router gains on held-out texts.

    Its loss stands beside the generalist's and each specialist's, text by text; each block's load tells how its gate spreads the tokens.
    """
    opened, model, told = _opened(library, router, given, report)
    from asterism.route.comparison import compare
    from asterism.route.texts import check_unseen, heldout_texts, kept_texts

    texts = heldout_texts(data, domain) if data else kept_texts(router)
    if not texts:
        met, mend = (data, "give texts that it has not learnt from") if data else (f"{router} has kept none", "give --data")
        raise SettingsError("There are no texts to tell the router by.", met=met, mend=mend)
    check_unseen(router, texts)
    told |= compare(model, opened, texts, max_length=max_length, seed=given.seed).to_dict()
    told |= _reported(told, report)

    def show() -> None:
        from asterism.cli.output import comparison_tables

        comparison_tables(told)

    return told, show


@command(group=app, name="show")
def show_text(
    library: LIBRARY,
    router: ROUTER,
    text: Annotated[str, typer.Argument(help="The text, or - for stdin.", show_default=False)],
    report: REPORT = None,
    max_length: LENGTH = 256,
    *,
    given: Given,
):
    """Show where the tokens of a text go: the models' weights on each, and each block's load."""
    text = text_of(text)
    opened, model, told = _opened(library, router, given, report)
    from asterism.route.load import load
    from asterism.route.trace import trace

    blocks = load(model, opened.tokenizer, [text], max_length=max_length)
    found = trace(model, opened.tokenizer, text, max_length=max_length).to_dict()
    told |= {"text": text, **found, "blocks": [own.to_dict() for own in blocks]}
    told |= _reported(told, report)

    def show() -> None:
        from asterism.cli.output import tokens_table

        tokens_table(told)

    return told, show


@command(group=app, name="export")
def export(
    library: LIBRARY,
    router: ROUTER,
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier export is replaced.", show_default=False)],
    form: Annotated[
        Literal["moe", "routed"],
        typer.Option("--as", help="A mixture of experts that engines know (Mixtral, Qwen2-MoE, ...), or the routed model with its code."),
    ] = "moe",
    *,
    given: Given,
):
    """Write the whole model of a router, its tokenizer beside it; the logits are the same."""
    opened, model, told = _opened(library, router, given)
    from asterism.route.export import export_moe, export_routed

    (export_moe if form == "moe" else export_routed)(model, out, opened.tokenizer)

    def show() -> None:
        from asterism.cli.output import line

        line(str(out))

    return {"out": out, "as": form, **told}, show


def _trained(root: Path, out: Path, texts: TaskTexts, settings: RouterSettings, attention: Any, given: Given) -> dict[str, Any]:
    from asterism.models.library import Library
    from asterism.route.build import route
    from asterism.route.texts import check_readable, keep_texts
    from asterism.route.training import train_router

    training = given.settings(TrainingSettings, TrainingSettings(**PRESETS["router"]))
    library = Library.open(root, dtype=torch_dtype(given.dtype or "float32"))  # whatever the models are stored in
    check_readable(library.tokenizer, texts.held_out)
    model = route(library, settings, attention=attention)
    train_router(model, library.tokenizer, texts.train, out, training, device=given.device)
    if is_first_process():
        keep_texts(out, texts)
    numbers = {"texts": len(texts.train), "held_out": len(texts.held_out), "training": training.model_dump(mode="json")}
    return {**_gates(model), **numbers}


def _check_untrained(way: str, given: Given, of_training: Mapping[str, Any]) -> None:
    """SettingsError naming an option that only training reads."""
    named = [name for name in given.values if name in TrainingSettings.model_fields and name not in RouterSettings.model_fields]
    named += [name for name, value in of_training.items() if value is not None]
    if named:
        option = "--" + named[0].replace("_", "-")
        mend = f"leave {option} out, or leave --untrained out to train the gates"
        raise SettingsError(f"{option} is of training.", met=f"--untrained {way}", mend=mend)


def _untrained(
    root: Path, out: Path, data: str | None, settings: RouterSettings, attention: Any, way: Any, prompts: Path | None, given: Given
) -> dict[str, Any]:
    for option, value, own in (("--data", data, "average"), ("--prompts", prompts, "prompts")):
        if value is not None and way != own:
            raise SettingsError(f"{option} is of --untrained {own}.", met=f"--untrained {way} {option} {value}", mend=f"leave {option} out")
    library = open_library(root, given)
    from asterism.route.build import save_router
    from asterism.route.texts import TaskTexts, keep_texts
    from asterism.route.untrained import route_untrained
    from asterism.route.ways import gates_by

    gates, read = gates_by(library, way, settings, data=data, prompts=prompts)
    model = route_untrained(library, gates, settings, attention=attention)
    keep_texts(save_router(model, out), TaskTexts(read, []))
    return {**_gates(model), "untrained": way}


def _gates(model: RoutedForCausalLM) -> dict[str, Any]:
    numbers = sum(gate.numel() for gate in model.gate_state().values())
    return {"experts": model.config.experts, "gates": numbers, "settings": model.config.origin["settings"]}


def _opened(root: Path, router: Path, given: Given, report: Path | None = None) -> tuple[Library, RoutedForCausalLM, dict[str, Any]]:
    """The library, the routed model, and what is told of the router; the page's place is looked at first."""
    if report:
        check_writable(report)
    from asterism.route.build import load_router

    library = open_library(root, given)
    model = load_router(router, library)
    return library, model, {"router": router, "models": model.config.experts, "settings": model.config.origin["settings"]}


def _reported(told: Mapping[str, Any], place: Path | None) -> dict[str, Any]:
    """Write the page, if asked; what is told of it."""
    if place is None:
        return {}
    from asterism.report.routing import write_routing

    return {"report": write_routing(told, place)}
