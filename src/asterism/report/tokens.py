"""Where a router sends the tokens of a text: its weights token by token, and each block's load."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.figures import HIGH, INK, LOW, SERIES, WIDTH, as_svg, canvas, cells, colour_scale, legend, legend_columns, plain_style
from asterism.report.layers import LABELLED, block_bars

LINE_OF = 32
"""Tokens side by side."""
LONGEST = 10
"""Characters of a token that are shown."""


@plain_style
def token_map(tokens: Sequence[str], blocks: Sequence[str], weights: Sequence[Sequence[float]], *, name: str) -> str:
    """The weight of the model `name` on every token in every block, weights [blocks][tokens] in [0, 1]; lines of LINE_OF tokens."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("weights", [LOW, HIGH])
    lines = [range(start, min(start + LINE_OF, len(tokens))) for start in range(0, len(tokens), LINE_OF)]
    shown = [_shown(token) for token in tokens]
    left, cell, room = 0.5, min(0.14, max(0.06, 1.2 / len(blocks))), 0.058 * max(map(len, shown), default=0) + 0.12
    height, side = cell * len(blocks), (WIDTH - 0.6) / LINE_OF
    figure, axes = canvas((height + room) * len(lines) - room, left=left, top=room, bottom=0.66, right=0.1)
    whole, top = figure.get_figheight(), figure.get_figheight() - room
    axes.set_axis_off()
    for place, line in enumerate(lines):
        foot = (top - place * (height + room) - height) / whole
        part = figure.add_axes((left / WIDTH, foot, side * len(line) / WIDTH, height / whole))
        cells(part, [[row[token] for token in line] for row in weights], colours, 0, 1)
        part.set_xticks(range(len(line)), [shown[token] for token in line], rotation=90, fontsize=6.5)
        step = -(-len(blocks) // 8)
        part.set_yticks(range(0, len(blocks), step), list(blocks)[::step], fontsize=7)
        part.xaxis.tick_top()
        part.tick_params(length=0, pad=1.5, labelcolor=INK)
        part.invert_yaxis()
        part.patch.set_alpha(0)
        for spine in part.spines.values():
            spine.set_visible(False)
    colour_scale(figure, axes, colours, 0, 1, f"weight of {name}; a row a block, from the first")
    return as_svg(figure, f"Weight of {name} on every token", "token-map")


@plain_style
def load_bars(blocks: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    """The share of the weights that each model gets in every block, with the gates' entropy: the `to_dict()` of each `BlockLoad`.

    A model's experts of several blocks count together.
    """
    columns = legend_columns(models)
    top = 0.3 + 0.19 * -(-len(models) // columns)
    figure, axes = canvas(min(0.24, 4.5 / len(blocks)) * len(blocks), left=0.5, top=top, right=0.62)
    shares = {name: model_shares(blocks, name) for name in models}
    block_bars(axes, [own["block"] for own in blocks], shares, {name: SERIES[place % 6] for place, name in enumerate(models)})
    step = -(-len(blocks) // LABELLED)
    for y, own in list(enumerate(blocks))[::step]:
        axes.text(102, y, f"{own['entropy']:.2f}", va="center", fontsize=7.5, color=INK)
    axes.text(102, -0.75, "bits", va="bottom", fontsize=7.5, color=INK)
    axes.set_xlabel("share of the weights, %, and entropy of a token's weights")
    legend(figure, axes, columns)
    return as_svg(figure, f"Share of {', '.join(models)} in every block", "load")


def model_shares(blocks: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The share of a model in every block: the mass of all its experts there."""
    return [sum(share for expert, share in zip(own["experts"], own["mass"], strict=True) if expert["model"] == name) for own in blocks]


def _shown(token: str) -> str:
    """A token short enough for a label; the blank before a word goes without saying, a token of blanks tells how many."""
    seen = token.strip() or "".join(_blank(run) for run in re.findall(r"\n+|\t+| +|.", token))
    return seen if len(seen) <= LONGEST else seen[: LONGEST - 1] + "…"


def _blank(run: str) -> str:
    mark = {"\n": "⏎", "\t": "⇥", " ": "␣"}.get(run[:1], run)
    return mark if len(run) == 1 else f"{mark}{len(run)}"
