"""`asterism serve LIBRARY`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asterism.cli.options import LIBRARY, SHARED, Given, command
from asterism.cli.places import open_both
from asterism.core.errors import SettingsError
from asterism.core.words import counted
from asterism.serve.local.settings import LocalSettings
from asterism.serve.settings import ServeSettings
from asterism.serve.vllm.settings import VllmSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asterism.serve.asking import Asking

KEYS = Annotated[
    Path | None,
    typer.Option(help="File of API keys, one a line; ASTERISM_API_KEYS holds more, commas between them. Without any, all may ask."),
]


IN_FILES = tuple(name for name in VllmSettings.model_fields if name not in SHARED)
"""Settings that are no options of their own."""


@command(ServeSettings, LocalSettings, VllmSettings, omit=("seed", *IN_FILES))
def app(library: LIBRARY, api_keys: KEYS = None, *, given: Given):
    """Answer requests over HTTP as OpenAI's API does, each under its own mixture, many in one batch.

    Settings of the vLLM engine come from --settings. SIGTERM or Ctrl-C: answers under way finish, then it ends.
    """
    settings = given.settings(ServeSettings)
    _check_engine(settings, given)
    from asterism.serve.security import read_keys
    from asterism.serve.server import address_of, check_open, listening, serve

    keys = read_keys(api_keys)
    check_open(settings.host, keys=keys, allow_changes=settings.allow_changes)
    with listening(settings.host, settings.port) as listener:
        address = address_of(listener)
        made = _application(library, settings, keys, given)
        model = made.state.asking.served
        _say(f"{address}: {_what(made.state.asking)}, {settings.engine} engine, {'with' if keys else 'without'} keys; loading")
        serve(made, listener, drain_s=settings.drain_s, ready=lambda: _say(f"{address}: ready"))
    _say(f"{address}: stopped")
    return {"address": address, "library": library, "model": model.name}


def _application(library: Path, settings: ServeSettings, keys: Sequence[str], given: Given) -> Any:
    opened, constellation = open_both(library, given)
    from asterism.serve.app import create_app
    from asterism.serve.engines import engine_of
    from asterism.serve.served import Served

    engine = engine_of(settings.engine, opened, constellation, _of_engine(settings, given))
    app = create_app(engine, Served.of(opened, constellation, settings.name), settings, keys=keys)
    if settings.playground:
        from asterism.serve.playground.mount import mount

        mount(app)
    return app


def _of_engine(settings: ServeSettings, given: Given) -> LocalSettings | VllmSettings:
    """The engine's own settings; the type that is asked for is vLLM's own to make, the local engine has it from the library."""
    if settings.engine == "local":
        return given.settings(LocalSettings)
    asked: dict[str, Any] = {"dtype": given.dtype} if given.dtype else {}
    return given.settings(VllmSettings, VllmSettings(**asked))


def _check_engine(settings: ServeSettings, given: Given) -> None:
    """SettingsError for settings of an engine that is not asked for."""
    other, mine = (VllmSettings, LocalSettings) if settings.engine == "local" else (LocalSettings, VllmSettings)
    wrong = [name for name in given.values if name in other.model_fields and name not in (*mine.model_fields, *ServeSettings.model_fields)]
    if wrong:
        mend = f"leave them out, or choose another --engine than {settings.engine}"
        raise SettingsError("Settings of another engine are given.", met=", ".join(wrong), mend=mend)


def _what(asking: Asking) -> str:
    plainly = "" if asking.template else "; no chat template: messages are read plainly"
    return f"{asking.served.name}, {counted(len(asking.served.library.names), 'specialist')}{plainly}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
