"""Maps of layers: how alike every layer of one model is to every layer of another, and which layers' experts a block weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.figures import HIGH, LOW, MUTED, PLAIN, WIDTH, as_svg, canvas, cells, colour_scale, label_room, plain_style

Table = Sequence[Sequence[float | None]]


@plain_style
def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Table,
    *,
    title: str,
    unit: str,
    ylabel: str = "",
    xlabel: str = "",
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """Square cells, darker from `low` to `high` and no further, with their numbers where they are few; the first row on top, None empty.

    `unit` names the colour scale below. Row and column names are thinned out where they would touch.
    """
    from matplotlib.colors import LinearSegmentedColormap

    left = label_room(rows) + (0.2 if ylabel else 0.0)
    side = min(0.5, (WIDTH - left - 0.1) / max(1, len(columns)))
    right = WIDTH - left - side * len(columns)
    figure, axes = canvas(max(0.4, side * len(rows)), left=left, top=0.28 + (0.2 if xlabel else 0.0), bottom=0.72, right=right)
    colours = LinearSegmentedColormap.from_list("values", [LOW, HIGH])
    cells(axes, values, colours, low, high)
    if max(len(rows), len(columns)) <= PLAIN:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is not None:
                    tone = "#ffffff" if (value - low) / (high - low) > 0.45 else "#1c1f24"
                    told = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
                    axes.text(x, y, told, ha="center", va="center", color=tone, fontsize=min(8, 24 * side))
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = -(-len(names) // 24)
        axis.set_ticks(range(0, len(names), step), list(names)[::step])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.invert_yaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)
    if side * len(columns) > 1.2:
        colour_scale(figure, axes, colours, low, high, unit)
    else:
        figure.text(left / WIDTH, 0.3 / figure.get_figheight(), unit, fontsize=8.5, color=MUTED)
    return as_svg(figure, title, "heat-map")


def similarity_map(found: Mapping[str, Any], *, low: float = 0.0) -> str:
    """CKA of every layer of one model with every layer of another or of itself: `Similarity.to_dict()` as a map (Fig. 7, 8)."""
    (left, right), (rows, columns) = found["names"], found["layers"]
    return heat_map(
        [str(layer) for layer in rows],
        [str(layer) for layer in columns],
        found["map"],
        title=f"Similarity of the layers of {left} to those of {right}" if left != right else f"Similarity of the layers of {left}",
        unit=f"CKA, {found['settings']['estimator']} (no unit; n = {found['n']})",
        ylabel=f"layer of {left}",
        xlabel=f"layer of {right}",
        low=low,
    )


def reach_map(blocks: Sequence[Mapping[str, Any]]) -> str:
    """How much every block takes from the MLPs of which block, all models together: the `to_dict()` of each `BlockLoad`."""
    sources = range(len(blocks))
    values: list[list[float | None]] = []
    for own in blocks:
        mass: dict[int, float] = {}
        for expert, share in zip(own["experts"], own["mass"], strict=True):
            mass[expert["block"]] = mass.get(expert["block"], 0.0) + share
        values.append([mass.get(source) for source in sources])
    names = [str(own["block"]) for own in blocks]
    title = "Where each block's experts come from"
    return heat_map(names, names, values, title=title, unit="share of the weights", ylabel="block", xlabel="block that its MLPs come from")
