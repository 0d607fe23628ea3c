"""Options that every command has, and options made from the fields of settings classes: one definition for each."""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from asterism.core.errors import SettingsError, UnknownName
from asterism.core.progress import quiet
from asterism.core.settings import Settings, read_mapping

S = TypeVar("S", bound=Settings)

DTypes = Literal["float32", "bfloat16", "float16", "float64"]

SHARED: dict[str, tuple[Any, Any]] = {
    "settings": (Annotated[Path | None, typer.Option(help="YAML or JSON file of settings; options given here win over it.")], None),
    "seed": (Annotated[int | None, typer.Option(min=0, help="Seed of everything random.  [default: 42]", show_default=False)], None),
    "device": (
        Annotated[str | None, typer.Option(help="e.g. cpu, cuda:1.  [default: an accelerator, or cpu]", show_default=False)],
        None,
    ),
    "dtype": (Annotated[DTypes | None, typer.Option(help="Compute in this type.  [default: the checkpoint's]", show_default=False)], None),
    "json": (Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="No progress bars.")], False),
}

LIBRARY = Annotated[Path, typer.Argument(help="Folder of the library.", show_default=False)]


@dataclass(frozen=True)
class Given:
    """What the user gave beside a command's own arguments."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings by field name: the file's, then the command line's."""
    seed: int = 42
    device: str = "cpu"
    dtype: str | None = None
    json: bool = False

    def settings(self, cls: type[S], base: S | None = None) -> S:
        """`base` (or the defaults) of a settings class, changed by what was given."""
        own = {name: value for name, value in self.values.items() if name in cls.model_fields}
        return (base or cls()).changed(**own)


def command(
    *classes: type[Settings],
    omit: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    group: typer.Typer | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], typer.Typer]:
    """Make an app of one function, whose last parameter `given` gathers the shared options and those of the classes.

    The function returns what `--json` prints; a second value, if any, is called without `--json` to print for people. base: defaults
    that the function takes in place of the classes' own, as their help tells them. group: the app of several commands that this one
    joins under `name`.
    """

    def made(function: Callable[..., Any]) -> typer.Typer:
        own = [p for name, p in inspect.signature(function, eval_str=True).parameters.items() if name != "given"]
        options = {} if not classes else _options(classes, {*omit, *SHARED, *(p.name for p in own)}, base or {})
        shared = {key: option for key, option in SHARED.items() if key not in omit and (classes or key != "settings")}
        parameters = [*own, *(_keyword(n, a, d) for n, (a, d) in (options | shared).items())]

        @wraps(function)
        def run(**values: Any) -> None:
            plain = {name: values.pop(name) for name in SHARED if name in values}
            chosen = {name: _parsed(values.pop(name)) for name in options}
            given = _given(plain, {name: value for name, value in chosen.items() if value is not None}, classes)
            _print(given, plain["quiet"], lambda: function(**values, given=given))

        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        app = group or typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(name)(run)
        return app

    return made


def _given(plain: dict[str, Any], chosen: dict[str, Any], classes: Sequence[type[Settings]]) -> Given:
    values: dict[str, Any] = dict(read_mapping(plain["settings"])) if plain.get("settings") else {}
    known = {name for cls in classes for name in cls.model_fields}
    for name in values:
        if name not in known:
            raise UnknownName("setting", name, known)
    if plain.get("seed") is not None:
        chosen["seed"] = plain["seed"]
    values |= chosen
    return Given(values, int(values.get("seed", 42)), _device(plain["device"]), plain.get("dtype"), plain["json"])


def _print(given: Given, silent: bool, call: Callable[[], Any]) -> None:
    """Run a command and print its answer; under --json whatever else it prints goes to stderr."""
    with quiet(silent):
        if not given.json:
            answer = call()
            if isinstance(answer, tuple) and is_first_process():
                answer[1]()
            return
        with redirect_stdout(sys.stderr):
            answer = call()
    if is_first_process():
        print(json.dumps(answer[0] if isinstance(answer, tuple) else answer, ensure_ascii=False, default=str))


def is_first_process() -> bool:
    """Whether this process speaks and writes for all that `accelerate launch` has started."""
    return os.environ.get("RANK", "0") == "0"


def _device(wanted: str | None) -> str:
    """The device asked for, proven to be there, or else an accelerator, or else the CPU."""
    if wanted == "cpu":
        return wanted
    import torch

    if wanted is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found else "cpu"
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError("The device cannot be used.", met=f"{wanted}: {str(error).splitlines()[0]}", mend="e.g. --device cpu") from None
    return wanted


def _options(classes: Sequence[type[Settings]], taken: set[str], base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for cls in classes:
        for name, info in cls.model_fields.items():
            if name in taken or name in found:
                continue
            text = f"{' '.join((info.description or '').split())}  [default: {_shown(base.get(name, info.default))}]"
            option = typer.Option(help=text, show_default=False)
            found[name] = (Annotated[_option_type(info.annotation) | None, option], None)
    return found


def _option_type(annotation: Any) -> Any:
    """What the parser reads for a field; anything richer than a number, a flag or a choice is read as text."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _option_type(parts[0]) if len(parts) == 1 else str
    if annotation in (bool, int, float) or get_origin(annotation) is Literal:
        return annotation
    return str


def _parsed(value: Any) -> Any:
    """`0.3,0.5` is a list; everything else goes to the settings as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) and "," in value else value


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
