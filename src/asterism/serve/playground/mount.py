"""The page beside the API, in one application: of Gradio's many addresses those alone that the page uses, and nothing from elsewhere."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from fastapi import FastAPI
from starlette.routing import Match, Mount

from asterism.core.errors import UnsupportedError

USED = ("/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/startup-events", "/theme.css")
USED_WHOLE = ("/", "/config", "/gradio_api/info", "/gradio_api/cancel", "/gradio_api/reset", "/manifest.json", "/favicon.ico")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
"""What a browser may load for the page: what this server gives, and nothing else."""
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))


def mount(app: FastAPI) -> FastAPI:
    """Put the page at `/` of an application of `create_app`, before any event loop runs. UnsupportedError where Gradio is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries that Gradio imports
            import gradio as gr
            from gradio.themes import Base
    except ImportError:
        mend = "pip install 'asterism[serve]', or serve without it: --no-playground"
        raise UnsupportedError("The playground needs Gradio.", met="it is not installed", mend=mend) from None
    from asterism.serve.playground.page import CSS, FONTS, MONO, page

    async def put() -> None:
        made = page(app.state.asking).queue(default_concurrency_limit=None)
        gr.mount_gradio_app(app, made, path="/", ssr_mode=False, show_error=False, pwa=False, **look)

    theme = Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    look: dict[str, Any] = dict(theme=theme, css=CSS, footer_links=[], run_history=False)
    work = put()
    try:
        asyncio.run(work)  # on a loop, or Gradio makes one of its own and leaves it open
    finally:
        work.close()
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    app.router.routes.append(Page("", app=_guarded(mounted.app)))
    return app


class Page(Mount):
    """Answers to the page's own addresses; every other one is the API's to answer, or to refuse."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """Whether the page uses this address."""
        path = scope.get("path", "")
        used = path in USED_WHOLE or path.startswith(USED)
        return super().matches(scope) if scope["type"] == "http" and used and ".." not in path else (Match.NONE, {})


def _guarded(app: Any) -> Any:
    """The same application, its answers with HEADERS."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await app(scope, receive, told if scope["type"] == "http" else send)

    return guarded
