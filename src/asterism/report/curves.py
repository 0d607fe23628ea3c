"""Losses as curves: along a path between two models, along training, and against how alike two models are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asterism.report.figures import INK, LINE, MARKERS, MUTED, SERIES, as_svg, canvas, legend, legend_columns, plain_style

Point = tuple[float, float, float | None, float | None]
"""(place, loss, low, high); low and high are the ends of a 95 % interval, none of one text."""
DASHED = (0, (3, 2))


@plain_style
def path_curves(
    paths: Mapping[str, Sequence[Point]],
    ends: tuple[str, str],
    n: int,
    *,
    levels: Mapping[str, float] | None = None,
    barrier: tuple[float, float] | None = None,
) -> str:
    """Loss along paths from one model (share 0) to another (share 1) of n texts, {kind: points in order of the share}.

    ends: names of the models at share 0 and at share 1. The dashed line joins the ends of the first path; barrier: (share, height) of its
    highest point above that line, drawn as an arrow. levels: losses of other models, as lines across.
    """
    figure, axes = _axes(list(paths))
    for place, (name, points) in enumerate(paths.items()):
        _curve(axes, points, place, name)
    first = next(iter(paths.values()))
    (_, begins, *_), (_, stops, *_) = first[0], first[-1]
    axes.plot([0, 1], [begins, stops], color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)
    if barrier and barrier[1] > 0:
        share, height = barrier
        foot = begins + share * (stops - begins)
        axes.annotate("", (share, foot + height), (share, foot), arrowprops=dict(arrowstyle="<->", color=INK, lw=1, shrinkA=0, shrinkB=0))
        told, top = f"barrier {height:.3f}", (share, foot + height)
        axes.annotate(told, top, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=INK)
    _levels(axes, levels or {})
    axes.set(xlim=(-0.03, 1.03), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels([ends[0], "", "50 %", "", ends[1]])
    for tick, side in zip(axes.get_xticklabels(), ("left", "center", "center", "center", "right"), strict=True):
        tick.set_horizontalalignment(side)
    axes.set_xlabel(f"share of {ends[1]}")
    axes.set_ylabel(_loss(n))
    legend(figure, axes, legend_columns(list(paths)))
    return as_svg(figure, f"Loss along the path from {ends[0]} to {ends[1]}", "path")


@plain_style
def loss_curves(
    series: Mapping[str, Sequence[Point]], n: int, *, xlabel: str = "training step", title: str, mark: tuple[float, str] | None = None
) -> str:
    """Losses against the step of training, {name: points in order of the step} (Fig. 3, left). mark: (step, name), a line upwards."""
    figure, axes = _axes(list(series))
    for place, (name, points) in enumerate(series.items()):
        _curve(axes, points, place, name)
    if mark:
        axes.axvline(mark[0], color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)
        before = mark[0] > sum(axes.get_xlim()) / 2  # there is room on its left
        axes.annotate(
            mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(-3 if before else 3, -3), textcoords="offset points",
            ha="right" if before else "left", va="top", fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.set_xlabel(xlabel)
    axes.set_ylabel(_loss(n))
    legend(figure, axes, legend_columns(list(series)))
    return as_svg(figure, title, "loss-curves")


@plain_style
def loss_by_similarity(
    series: Mapping[str, Sequence[tuple[float, float, float]]], n: int, *, title: str, xlabel: str = "CKA of the two experts (no unit)"
) -> str:
    """Loss of merged models against how alike the two experts are, {name: (step, similarity, loss) in order} (Fig. 3, middle and right).

    Points are joined in order of training; the first and the last tell their step, once where several series have it; the least loss
    has a ring.
    """
    figure, axes = _axes(list(series))
    told = set[float]()
    for place, (name, points) in enumerate(series.items()):
        colour = SERIES[place % 6]
        xs, ys = [point[1] for point in points], [point[2] for point in points]
        axes.plot(xs, ys, color=colour, linewidth=1.2, marker=MARKERS[place % 6], markersize=4, label=name, zorder=2)
        least = min(points, key=lambda point: point[2])
        axes.plot([least[1]], [least[2]], marker="o", markersize=10, markerfacecolor="none", color=INK, linestyle="", zorder=3)
        for step, x, y in (points[0], points[-1]) if len(points) > 1 else points[:1]:
            if step not in told:
                axes.annotate(f"{step:g}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK, zorder=4)
            told.add(step)
    axes.margins(x=0.1, y=0.12)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(_loss(n))
    legend(figure, axes, legend_columns(list(series)))
    return as_svg(figure, title, "loss-by-similarity")


def _axes(names: Sequence[str]):
    """A canvas with room for the legend of these names, and a grid."""
    figure, axes = canvas(2.4, left=0.6, top=0.1 + 0.19 * -(-len(names) // legend_columns(names)), right=0.15)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _curve(axes, points: Sequence[Point], place: int, name: str) -> None:
    xs, ys, lows, highs = zip(*points, strict=True)
    colour = SERIES[place % 6]
    if None not in (*lows, *highs):
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.plot(xs, ys, color=colour, linewidth=1.4, marker=MARKERS[place % 6], markersize=4, label=name, zorder=3)


def _levels(axes, levels: Mapping[str, float]) -> None:
    for name, loss in levels.items():
        axes.axhline(loss, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        where = dict(xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points")
        axes.annotate(name, (1, loss), ha="right", fontsize=7.5, color=MUTED, **where)


def _loss(n: int) -> str:
    return f"loss, nats a token (n = {n})"
