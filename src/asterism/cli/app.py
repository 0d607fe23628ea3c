"""`asterism`: the commands, each loaded only when it is called, and the one place where errors become exit codes."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from asterism.core.errors import AsterismError

COMMANDS = {
    "demo": "The whole story offline, from training to answers.",
    "train": "Train a generalist, or a specialist from it.",
    "index": "Fingerprint each domain's probes; write the constellation.",
    "calibrate": "Fit how evidence and prior weigh, on validation probes.",
    "diagnose": "Say whether the library can be composed, and why.",
    "compat": "Say whether two models fit together, and how to use them.",
    "explain": "Show what a text asks of the library, layer by layer.",
    "compose": "Write the model that a text needs.",
    "export": "Write a mixture, or a domain's mean mixture, as one model.",
    "generate": "Answer texts, each under its own mixture.",
    "chat": "Talk with a library; answers stream, mixtures are told.",
    "serve": "Serve OpenAI's API; every request its own mixture.",
    "rank": "Find the rank to which specialists may be cut for serving.",
    "merge": "Merge models into one as a recipe says.",
    "fuse": "Carry what adapters on other backbones know into one.",
    "extract-lora": "Cut a LoRA adapter out of a model that was tuned in full.",
    "route": "Weigh experts token by token: train, tell, show a router.",
    "evaluate": "Compare the composition with its rivals on held-out probes.",
}


class LazyGroup(TyperGroup):
    """Shows the table above without loading a command; the command called is loaded from `asterism.cli.NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = typer.main.get_command(import_module(f"asterism.cli.{name.replace('-', '_')}").app)
            command.name = name
        return name, command, rest


app = typer.Typer(name="asterism", cls=LazyGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """One generalist, several specialists, and the model each query needs."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 an error told in three lines on stderr, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _spare_collections()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "--quiet" in given or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(_run(given))


def _spare_collections() -> None:
    """Loading torch makes a million objects and hardly any garbage: search it seldom, and not at all on the way out (half a second)."""
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)


def _run(arguments: list[str]) -> int:
    try:
        code = app(args=arguments, prog_name="asterism", standalone_mode=False)
    except typer.Abort:
        code = 130
    except AsterismError as error:
        return _tell(error)
    except OSError as error:
        return _tell(_of_the_system(error))
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
            return 2
        told = _of_usage(error, arguments) or _of_memory(error)
        if told is None:
            raise
        return _tell(told)
    if code == 130:
        print("Interrupted. The same command goes on from the last saved state; nothing is half-written.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _tell(error: AsterismError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _of_the_system(error: OSError) -> AsterismError:
    mend = {errno.ENOSPC: "free some space, or choose another place", errno.EACCES: "choose a place you may use"}
    met = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return AsterismError(
        "The system refused a file or connection.", met=met, mend=mend.get(error.errno or 0, "check the path, the disk and the network")
    )


def _of_usage(error: Exception, arguments: Sequence[str]) -> AsterismError | None:
    """The parser's own errors, by what they offer: they come from `click` or from typer's copy of it, by version."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "asterism"
    wrong = " ".join(error.format_message().replace("Value error, ", "").split())  # pyright: ignore[reportAttributeAccessIssue]
    return AsterismError(wrong, met=" ".join(["asterism", *arguments]), mend=f"`{command} --help` lists what is known")


def _of_memory(error: Exception) -> AsterismError | None:
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return None
    return AsterismError("Memory is full.", met=str(error).splitlines()[0], mend="use smaller batches, shorter texts, or --dtype bfloat16")
