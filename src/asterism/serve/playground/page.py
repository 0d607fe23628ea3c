"""The page's layout: what is asked above, the answers side by side, and why below. On a phone everything stands in one column."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import astuple
from typing import Any

import gradio as gr

from asterism.core.words import counted
from asterism.models.library import Library
from asterism.serve.asking import Asking
from asterism.serve.playground.answering import View, answers
from asterism.serve.playground.pictures import Map, plain
from asterism.serve.playground.wishes import LONGEST_LINK, NOBODY, UNIFORM, Wishes, rivals

FONTS = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
CSS = """
:root, .light { --ink: #1c1f24; --muted: #5b6470; --line: #d5d9df; --soft: #f4f6f8; --bad: #a3260b; --bad-soft: #fdf0ec;
  --s1: #0072b2; --s2: #d55e00; --s3: #009e73; --s4: #b0588f; --s5: #c98500; --s6: #3d9bd1; }
.dark { --ink: #e8eaed; --muted: #a3acb8; --line: #39414c; --soft: #1d2229; --bad: #ff9a7d; --bad-soft: #33201b;
  --s1: #4aa8e0; --s2: #f0843c; --s3: #35c39a; --s4: #da8fbf; --s5: #f0b73f; --s6: #8fd0f5; }
.gradio-container { width: 100% !important; max-width: 78rem !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container .main { padding: 1rem !important; }
.head h1 { font-size: 1.5rem; margin: 0; color: var(--ink); } .head p, .note { color: var(--muted); font-size: .85rem; margin: .3rem 0 0; }
.picture { margin: .4rem 0 1rem; } .picture h3 { font-size: .95rem; margin: 0 0 .5rem; color: var(--ink); }
.bars { display: grid; gap: .3rem; margin-top: .3rem; font-size: .85rem; font-variant-numeric: tabular-nums; color: var(--ink); }
.bar { display: grid; grid-template-columns: minmax(4rem, 24%) 1fr 2.8rem 2.6rem; gap: .5rem; align-items: center; }
.plain .bar { grid-template-columns: minmax(4rem, 24%) 1fr 2.8rem; } .plain .bar > span:nth-child(4) { display: none; }
.bar > span:nth-child(n+3) { text-align: right; } .bar.head { color: var(--muted); font-size: .78rem; }
.bar .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.track { background: var(--soft); border-radius: 3px; height: .8rem; overflow: hidden; } .track i { display: block; height: 100%; }
figure { margin: 0; max-width: 34rem; } figure svg { display: block; width: 100%; height: auto; }
.error { border: 1px solid var(--bad); background: var(--bad-soft); color: var(--ink); border-radius: 6px; padding: .6rem .8rem; }
.error b { color: var(--bad); }
"""
LINK = """
(...given) => {
  const names = NAMES, url = new URL(window.location.href);
  names.forEach((name, place) => url.searchParams.set(name, String(given[place] ?? "").slice(0, LONGEST)));
  window.history.replaceState(null, "", url);
  return given;
}
""".replace("NAMES", str(list(Wishes.model_fields))).replace("LONGEST", str(LONGEST_LINK))
COPY = """
(...given) => {
  (LINK)(...given);
  const button = document.querySelector("#copy"), was = "Link";
  navigator.clipboard?.writeText(window.location.href);
  button.innerText = navigator.clipboard ? "Copied" : "See above";
  setTimeout(() => { button.innerText = was; }, 1500);
}
""".replace("LINK", LINK.strip())


def page(asking: Asking) -> gr.Blocks:
    """The page, over what answers it."""
    library, places = asking.served.library, Map(asking.served.library)
    blocks = library.anatomy.n_blocks

    async def ask(*given: Any) -> AsyncGenerator[tuple[Any, ...], None]:
        last: tuple[Any, ...] = ()
        try:
            wishes = Wishes(**dict(zip(Wishes.model_fields, given, strict=True)))
        except ValueError as error:
            raise gr.Error(plain(error)) from None
        async for view in answers(asking, places, wishes):
            now = _shown(view, wishes)
            yield tuple(gr.skip() if last and one == last[place] else one for place, one in enumerate(now))
            last = now

    def opened(request: gr.Request) -> list[Any]:
        """What a link asks for, and who can be asked now."""
        names = asking.engine.facts.specialists
        own = Wishes.of_link(dict(request.query_params), names, blocks)
        found: dict[str, Any] = {**own.model_dump(), "text": own.text or gr.skip()}  # whoever types already is not interrupted
        found["top_k"] = gr.Slider(maximum=len(names), value=own.top_k)
        found["rival"] = gr.Dropdown(choices=rivals(names), value=own.rival)
        return list(found.values())

    with gr.Blocks(title=f"asterism · {asking.served.name}", analytics_enabled=False, fill_width=True) as made:
        gr.HTML(_head(asking, library), elem_classes="head", js_on_load=None)
        text = gr.Textbox(
            label="Text or question", lines=3, max_lines=12, placeholder="What shall be answered?", elem_id="text", autofocus=True
        )
        with gr.Row():
            go = gr.Button("Ask", variant="primary", elem_id="ask", scale=3, min_width=90)
            stop = gr.Button("Stop", elem_id="stop", min_width=70)
            copy = gr.Button("Link", elem_id="copy", min_width=100)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            wished = _settings(library)
        status = gr.HTML("", elem_id="status", js_on_load=None)
        with gr.Row():
            shown = [_column(label, name) for label, name in (("Composed for this text", "composed"), ("The generalist", "base"))]
            shown.append(_column(f"Rival: {UNIFORM}", "rival"))
        pairs = [("mixture", "other"), ("place", "layers")]
        mixture, other, place, layers = (box for pair in pairs for box in _side_by_side(pair))
        inputs = [text, *wished]
        outputs = [*shown, mixture, other, layers, place, status]
        hidden: dict[str, Any] = dict(api_visibility="private", concurrency_limit=None)
        asked = gr.on([go.click, text.submit], ask, inputs, outputs, js=LINK, show_progress="hidden", trigger_mode="once", **hidden)
        stop.click(None, cancels=[asked], **hidden)
        copy.click(None, inputs, js=COPY, **hidden)
        made.load(opened, None, inputs, show_progress="hidden", **hidden)
    return made


def _settings(library: Library) -> list[Any]:
    """The controls, in the order of the fields of `Wishes` after its text."""
    own, names = Wishes(), library.names
    wide: dict[str, Any] = dict(min_width=220)
    some = min(own.top_k, len(names))
    where = "Last blocks composed (0: everything)"
    with gr.Row():
        top_k = gr.Slider(1, max(2, len(names)), some, step=1, label="Specialists kept (top K)", elem_id="top_k", **wide)
        mode = gr.Radio(["evidence", "fast", "nodes"], value=own.mode, label="What weighs them", elem_id="mode", **wide)
        layers = gr.Slider(0, library.anatomy.n_blocks, own.layers, step=1, label=where, elem_id="layers_wanted", **wide)
    with gr.Row():
        rival = gr.Dropdown(rivals(names), value=own.rival, label="Rival", elem_id="rival_wanted", **wide)
        most = gr.Slider(8, 512, own.most, step=8, label="Longest answer, tokens", **wide)
        temperature = gr.Slider(0, 2, own.temperature, step=0.1, label="Temperature", **wide)
        seed = gr.Number(own.seed, label="Seed", precision=0, minimum=0, min_width=120)
    return [top_k, mode, layers, rival, most, temperature, seed]


def _column(label: str, name: str) -> gr.Textbox:
    return gr.Textbox(label=label, lines=6, max_lines=24, interactive=False, buttons=["copy"], elem_id=name, min_width=300, autoscroll=True)


def _side_by_side(names: Sequence[str]) -> list[gr.HTML]:
    """Places for pictures, beside each other where there is room."""
    found = []
    with gr.Row():
        for name in names:
            with gr.Column(min_width=300):
                found.append(gr.HTML("", elem_id=name, js_on_load=None))
    return found


def _head(asking: Asking, library: Library) -> str:
    told = f"{counted(len(library.names), 'specialist')} of one generalist: {', '.join(library.names)}"
    return f"<h1>asterism · {plain(asking.served.name)}</h1><p>{plain(told)}</p>"


def _shown(view: View, wishes: Wishes) -> tuple[Any, ...]:
    """The view's values, in the order of the page's outputs; the rival's box says who answers in it."""
    texts, *pictures = astuple(view)
    told = "Nobody beside it" if wishes.rival == NOBODY else f"Rival: {wishes.rival}"
    return (*texts[:2], gr.update(value=texts[2], label=told), *pictures)
