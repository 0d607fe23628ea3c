"""Who is most active in which block: an explanation's layers as bars."""

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
    lefts = [0.0] * len(layers)
    for name in specialists:
        shares = [100 * layer["held"].get(name, 0.0) for layer in layers]
        axes.barh(range(len(layers)), shares, left=lefts, height=0.78, color=SERIES[list(names).index(name) % 6], label=name, zorder=2)
        lefts = [left + share for left, share in zip(lefts, shares, strict=True)]
    step = -(-len(layers) // LABELLED)
    axes.set(yticks=range(0, len(layers), step), yticklabels=[str(layer["layer"]) for layer in layers[::step]], xlim=(0, 100))
    axes.set_ylim(len(layers) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the block's nodes, %")
    axes.set_ylabel("block")
    legend(figure, axes, columns)
    return as_svg(figure, f"Who of {', '.join(specialists)} is most active at the nodes of every block", "layers")
