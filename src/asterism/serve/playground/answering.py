"""One text, answered side by side: what the page shows, again and again while the answers grow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError
from asterism.serve.asking import Answer, Asking
from asterism.serve.errors import body_of, internal
from asterism.serve.merging import all_of, merged
from asterism.serve.playground.pictures import Map, error_box, layers_picture, mixture_bars
from asterism.serve.playground.wishes import Wishes

OFTEN = 0.12
"""Seconds between two looks at growing answers."""
MIXTURE, RIVAL = "The mixture", "The rival's mixture"
log = logging.getLogger("asterism.serve")


@dataclass(frozen=True)
class View:
    """All that the page shows of an answer."""

    answers: tuple[str, ...] = ("", "", "")
    """The composed one, the generalist's, the rival's: plain text."""
    mixture: str = ""
    rival_mixture: str = ""
    layers: str = ""
    place: str = ""
    status: str = ""
    """These as HTML."""


async def answers(asking: Asking, places: Map, wishes: Wishes) -> AsyncGenerator[View, None]:
    """Views of the answers as they grow, the last one whole. Closing it frees the rows; errors are told in the view."""
    view = View()
    try:
        async with aclosing(_answers(asking, places, wishes)) as views:
            async for view in views:
                yield view
    except AsterismError as error:
        yield replace(view, status=_told(error))
    except Exception:
        log.exception("An error in the playground.")
        yield replace(view, status=_told(internal()))


async def _answers(asking: Asking, places: Map, wishes: Wishes) -> AsyncGenerator[View, None]:
    asking.open()
    tokens = await asking.chat_tokens([{"role": "user", "content": wishes.text}])
    async with AsyncExitStack() as stack:
        begun = await _begun(asking, wishes, tokens, stack)
        names = asking.engine.facts.specialists
        view = View(mixture=mixture_bars(begun[0].told, MIXTURE, names))
        if len(begun) > 2:
            view = replace(view, rival_mixture=mixture_bars(begun[2].told, RIVAL, names))
        yield replace(view, status='<p class="note">answering …</p>')
        why = asyncio.create_task(_why(asking, places, wishes, asking.text(tokens)))
        stack.push_async_callback(_ended, why)
        texts, counts, begin, seen = [""] * 3, [0] * 3, time.perf_counter(), 0.0
        async with aclosing(merged([answer.parts() for answer in begun])) as parts:
            async for place, part in parts:
                texts[place] += part.text
                counts[place] = part.written
                if part.renewed and place == 0:
                    view = replace(view, mixture=mixture_bars(part.renewed, f"{MIXTURE}, renewed after {part.written} tokens", names))
                if time.perf_counter() - seen > OFTEN:
                    seen = time.perf_counter()
                    view = _explained(view, why)
                    yield replace(view, answers=tuple(texts), status='<p class="note">answering …</p>')
        seconds = time.perf_counter() - begin
        view = replace(view, answers=tuple(texts), status=f'<p class="note">{sum(counts)} tokens in {seconds:.1f} s, all together</p>')
        yield view
        yield replace(view, **await why)


async def _begun(asking: Asking, wishes: Wishes, tokens: tuple[int, ...], stack: AsyncExitStack) -> list[Answer]:
    """All answers, which the stack closes; where one cannot begin, none goes on."""

    async def one(question: Any) -> Answer:
        return await stack.enter_async_context(aclosing(await asking.begin(question)))

    return await all_of([one(question) for question in wishes.questions(tokens, asking.served.name, asking.engine.facts.specialists)])


async def _why(asking: Asking, places: Map, wishes: Wishes, text: str) -> dict[str, str]:
    """The pictures of an explanation; drawn on another thread, so that answers go on meanwhile."""
    found = await asking.engine.explain(text, MixtureSettings(top_k=wishes.top_k, mode=wishes.mode))

    def drawn(draw: Callable[[Any], str], what: str) -> str:
        return draw(found[what] if what == "coefficients" else found) if what in found else ""

    layers = await asyncio.to_thread(drawn, layers_picture, "layers")
    return {"layers": layers, "place": await asyncio.to_thread(drawn, places.picture, "coefficients")}


def _explained(view: View, why: asyncio.Task[dict[str, str]]) -> View:
    """The view with its pictures, once they are there."""
    return replace(view, **why.result()) if why.done() and why.exception() is None else view


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _told(error: AsterismError) -> str:
    return error_box(body_of(error)["error"]["asterism"])
