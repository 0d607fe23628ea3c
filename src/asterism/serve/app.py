"""The server as one ASGI application: routes, what is let in, and how errors are told."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from asterism import __version__
from asterism.core.errors import AsterismError
from asterism.serve import admin, endpoints
from asterism.serve.asking import Asking
from asterism.serve.engine import Engine
from asterism.serve.errors import Away, body_of, headers_of, internal, status_of
from asterism.serve.faults import of_fields, of_http
from asterism.serve.limits import BodyLimit
from asterism.serve.saved import Saved
from asterism.serve.security import Keys
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from asterism.serve.streaming import JSON

REQUEST = re.compile(r"[\w.-]{1,64}")
TITLE = "asterism"
log = logging.getLogger("asterism.serve")


def create_app(
    engine: Engine,
    served: Served,
    settings: ServeSettings | None = None,
    *,
    keys: Sequence[str] = (),
    changing: AbstractAsyncContextManager[Any] | None = None,
) -> FastAPI:
    """The API over an engine that has not been started: its start belongs to the application's own, and does not hold it up.

    `app.state.asking` asks the engine on behalf of whoever stands beside the API (the playground). Until the engine has started
    questions are answered with 503; `app.state.started`, where set, is called with None once it has, or with what kept it from starting.
    `changing` is held while a request changes the library.
    Raises UnknownName, SettingsError or StorageError for a chat template that cannot be used.
    """
    settings, saved = settings or ServeSettings(), Saved(served.library)
    asking = Asking(engine, served, settings, saved.recall)
    asking.away = Away("The server is starting.", "the engine loads its models")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        starting = asyncio.create_task(_start(engine, asking, lambda: app.state.started))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await engine.close()
            asking.close()

    app = FastAPI(title=TITLE, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.asking, app.state.saved, app.state.started = asking, saved, None
    app.include_router(endpoints.routes(asking))
    app.include_router(admin.routes(asking, saved, changing or asyncio.Lock()))
    tell = _teller(asking)
    for kind in (AsterismError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, tell)

    async def refuse(error: AsterismError, scope: Any, receive: Any, send: Any, headers: Mapping[str, str] | None = None) -> None:
        await _answer(asking, error, headers)(scope, receive, send)

    app.add_middleware(BodyLimit, most=settings.body_bytes, refuse=refuse)
    app.add_middleware(Keys, keys=keys, refuse=refuse)
    app.add_middleware(Outermost, refuse=refuse)
    return app


class Outermost:
    """ASGI middleware: every answer carries an x-request-id, the client's own where it sent a plain one; a fault of ours is logged here,
    and told as nothing but a fault."""

    def __init__(self, app: Any, refuse: Any) -> None:
        self._app, self._refuse = app, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Put the header on the answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name, begun = (given if REQUEST.fullmatch(given) else secrets.token_hex(12)).encode(), False

        async def named(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun, message = True, {**message, "headers": [*message["headers"], (b"x-request-id", name)]}
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("A fault of the server, in request %s.", name.decode())
            if begun:
                raise
            await self._refuse(internal(), scope, receive, named)


async def _start(engine: Engine, asking: Asking, told: Callable[[], Callable[[Exception | None], None] | None]) -> None:
    failure: Exception | None = None
    try:
        await engine.start()
        asking.away = None
    except Exception as error:
        if told() is None or not isinstance(error, AsterismError):
            log.exception("The engine could not be started.")
        asking.away, failure = Away("The engine could not be started.", type(error).__name__), error
    if (tell := told()) is not None:
        tell(failure)


def _teller(asking: Asking) -> Callable[[Request, Exception], Response]:
    def tell(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            error = of_fields(request, error)
        elif isinstance(error, HTTPException):
            error = of_http(request, error)
        assert isinstance(error, AsterismError)
        return _answer(asking, error)

    return tell


def _answer(asking: Asking, error: AsterismError, headers: Mapping[str, str] | None = None) -> Response:
    status = status_of(error)
    asking.meter.error(status)
    closing = {"Connection": "close"} if status in (413, 503) else {}
    return JSON(body_of(error, status), status, headers={**headers_of(error), **closing, **(headers or {})})
