"""Who has which share of every block, as bars: of an explanation's layers, or of anything else that is told block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.figures import SERIES, as_svg, canvas, legend, legend_columns, plain_style

LABELLED = 24
"""Blocks that are numbered, at most; of more, every n-th."""


@plain_style
def layer_bars(layers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Each block's nodes, shared out to the specialist that weighs most there: `layers` of `asterism.constellation.explanation.explain`.

    `names` are all specialists that have a colour; those that no layer speaks of are left out.
    """
    specialists = [name for name in names if any(name in layer["held"] for layer in layers)]
    columns = legend_columns(specialists)
    top = 0.12 + 0.19 * -(-len(specialists) // columns)
    figure, axes = canvas(max(0.5, min(0.24, 4.5 / len(layers)) * len(layers)), left=0.5, top=top, right=0.15)
    shares = {name: [layer["held"].get(name, 0.0) for layer in layers] for name in specialists}
    block_bars(axes, [layer["layer"] for layer in layers], shares, {name: SERIES[place % 6] for place, name in enumerate(names)})
    axes.set_xlabel("share of the block's nodes, %")
    legend(figure, axes, columns)
    return as_svg(figure, f"Who of {', '.join(specialists)} is most active at the nodes of every block", "layers")


def block_bars(axes: Any, blocks: Sequence[int], shares: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """A bar for each block from the top down, of the shares (name -> one a block, 0 to 1) of everybody who has one, in per cent."""
    lefts = [0.0] * len(blocks)
    for name, own in shares.items():
        parts = [100 * share for share in own]
        axes.barh(range(len(blocks)), parts, left=lefts, height=0.78, color=colours[name], label=name, zorder=2)
        lefts = [left + part for left, part in zip(lefts, parts, strict=True)]
    step = -(-len(blocks) // LABELLED)
    axes.set(yticks=range(0, len(blocks), step), yticklabels=[str(block) for block in blocks[::step]], xlim=(0, 100))
    axes.set_ylim(len(blocks) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("block")
