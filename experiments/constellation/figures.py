"""The ladder's figures: measures in, one SVG string out, in the house style of `asterism.report.figures`. Equal numbers, equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.figures import INK, LINE, MARKERS, MUTED, SERIES, as_svg, canvas, label_room, legend, plain_style
from experiments.measures import Measure

Points = Sequence[tuple[float, Measure]]
EVEN: dict[str, Any] = dict(color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
"""How one half is marked."""


@plain_style
def collinearity_scatter(
    families: Mapping[str, Sequence[tuple[str, float, Measure]]],
    papers: Mapping[str, Sequence[tuple[str, float, float]]],
    thresholds: Sequence[float] = (0.93, 0.97),
) -> str:
    """Figure 1: win rate against task arithmetic over mean collinearity, {family: [(rung, collinearity, rate)]} from the smallest up.

    `papers`: the paper's own points, {family: [(model, collinearity, rate)]}, drawn faint.
    """
    count = len(families) + len(papers)
    figure, axes = canvas(2.9, left=0.55, top=0.1 + 0.19 * -(-count // 2))
    places: list[tuple[str, float, float]] = []
    for place, (family, points) in enumerate(families.items()):
        xs, rates = [x for _, x, _ in points], [rate for _, _, rate in points]
        colour = SERIES[place % 6]
        ys = [100 * rate.value for rate in rates]
        axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.6, zorder=2)
        axes.errorbar(
            xs,
            ys,
            yerr=_errors(rates),
            fmt=MARKERS[place % 6],
            markersize=6,
            color=colour,
            ecolor=colour,
            elinewidth=1,
            label=family,
            zorder=3,
        )
        places += [(name.removeprefix(f"{family}-"), x, 100 * rate.value) for name, x, rate in points]
    for place, (family, points) in enumerate(papers.items()):
        xs, ys = [x for _, x, _ in points], [100 * y for _, _, y in points]
        axes.plot(xs, ys, color=MUTED, linewidth=0.8, alpha=0.6, zorder=1)
        marker = MARKERS[-1 - place % 6]
        axes.scatter(xs, ys, s=26, marker=marker, facecolors="none", edgecolors=MUTED, linewidths=0.9, label=family, zorder=2)
    along = [x for points in (*families.values(), *papers.values()) for _, x, _ in points]
    spread, reached = max(along, default=0.0) - min(along, default=0.0), max(along, default=0.0)
    for told, x, y in _apart(places, 0.1 * spread, 6):
        axes.annotate(told, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    for threshold in (each for each in thresholds if each <= reached + 0.02):
        axes.axvline(threshold, color=LINE, linewidth=1, zorder=0)
    axes.axhline(50, **EVEN)
    axes.margins(x=0.09)
    axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(-4, 108)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xlabel("mean cosine between the domains' centroids (no unit)")
    axes.set_ylabel("probes won, %")
    legend(figure, axes, 2)
    return as_svg(figure, "Win rate against task arithmetic over mean collinearity", "collinearity-scatter")


@plain_style
def curves(
    series: Mapping[str, Points], *, title: str, xlabel: str, ylabel: str, ticks: Sequence[float], even: bool = True, height: float = 2.3
) -> str:
    """Rates with their intervals as bands over a grid of values; the values of `ticks` are drawn at equal distances."""
    figure, axes = canvas(height, left=0.55, top=0.1 + 0.19 * -(-len(series) // _columns(list(series))))
    places = {value: place for place, value in enumerate(ticks)}
    for number, (name, points) in enumerate(series.items()):
        xs = [places[x] for x, _ in points]
        colour, rates = SERIES[number % 6], [rate for _, rate in points]
        dashes = "-" if number < 6 else (0, (4, 2))
        axes.fill_between(xs, [100 * r.low for r in rates], [100 * r.high for r in rates], color=colour, alpha=0.13, linewidth=0)
        ys = [100 * r.value for r in rates]
        axes.plot(xs, ys, color=colour, linewidth=1.3, linestyle=dashes, marker=MARKERS[number % 6], markersize=4, label=name, zorder=3)
    if even:
        axes.axhline(50, **EVEN)
    axes.set_xticks(range(len(ticks)), [f"{value:g}" for value in ticks])
    axes.set_xlim(-0.2, len(ticks) - 0.8)
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    legend(figure, axes, _columns(list(series)))
    return as_svg(figure, title, "curves")


@plain_style
def rate_dots(
    rows: Mapping[str, Mapping[str, Measure]],
    *,
    title: str,
    xlabel: str,
    marked: Sequence[str] = (),
    share: bool = True,
    bound: float | None = None,
) -> str:
    """One line of the figure a row, {row: {series: rate}}: a dot and its interval for each series; rows in `marked` are set in bold.

    `share`: rates in [0, 1], drawn in per cent with one half marked; else values as they are, with zero marked. `bound`: a target,
    drawn as an unbroken line.
    """
    names = list(rows)
    series = list(dict.fromkeys(name for each in rows.values() for name in each))
    step = 0.62 / max(1, len(series))
    columns = _columns(series)
    room = label_room(names)
    top = 0.1 + 0.19 * -(-len(series) // columns) if len(series) > 1 else 0.08
    figure, axes = canvas((0.14 + 0.1 * len(series)) * len(names), left=room, top=top)
    factor = 100 if share else 1
    for number, name in enumerate(series):
        at = [place - 0.31 + step * (number + 0.5) for place, row in enumerate(names) if name in rows[row]]
        rates = [rows[row][name] for row in names if name in rows[row]]
        colour = SERIES[number % 6]
        axes.hlines(
            at, [factor * rate.low for rate in rates], [factor * rate.high for rate in rates], color=colour, linewidth=1.4, zorder=2
        )
        xs = [factor * rate.value for rate in rates]
        axes.plot(xs, at, linestyle="", marker=MARKERS[number % 6], markersize=4.5, color=colour, label=name, zorder=3)
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    between = [y - 0.5 for y in range(1, len(names))]
    axes.hlines(between, 0, 1, transform=axes.get_yaxis_transform(), color=LINE, linewidth=0.6, zorder=0)
    if share:
        axes.set(xlim=(-3, 103), xticks=range(0, 101, 25))
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.axvline(50 if share else 0, **EVEN)
    if bound is not None:
        axes.axvline(factor * bound, color=MUTED, linewidth=1, zorder=1)
    _bold(axes, marked)
    axes.set_xlabel(xlabel)
    if len(series) > 1:
        legend(figure, axes, columns)
    return as_svg(figure, title, "rate-dots")


@plain_style
def value_dots(
    rows: Mapping[str, Measure], *, title: str, xlabel: str, hollow: Sequence[str] = (), marked: Sequence[str] = (), even: float = 0.0
) -> str:
    """One dot a row in the order given, with its range and its value in figures; `hollow` rows are rivals, `marked` ones set in bold.

    `even`: differences, equal distances up to this on either side of zero, and powers of ten beyond.
    """
    names = list(rows)
    figure, axes = canvas(0.17 * len(names), left=label_room(names), right=0.5)
    for place, (name, found) in enumerate(rows.items()):
        own = name not in hollow
        colour = SERIES[0] if own else SERIES[1]
        axes.hlines(place, found.low, found.high, color=colour, linewidth=1.3, zorder=2)
        face = colour if own else "none"
        axes.plot([found.value], [place], marker="o", markersize=4.5, color=colour, markerfacecolor=face, linestyle="", zorder=3)
        told = f"{round(found.value, 3) + 0.0:.3f}".replace("-", "−")
        axes.text(1.02, place, told, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=INK)
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="both", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    if even:
        _symmetric(axes, [end for found in rows.values() for end in (found.low, found.high)], even)
    else:
        axes.locator_params(axis="x", nbins=4)
    _bold(axes, marked)
    axes.set_xlabel(xlabel)
    return as_svg(figure, title, "value-dots")


@plain_style
def strips(rows: Mapping[str, Sequence[float]], given: Mapping[str, Measure], *, title: str, xlabel: str, called: str) -> str:
    """All values of a row as a strip of ticks in per cent, {row: values}, with the one `given`, its interval, and its name `called`."""
    names = list(rows)
    figure, axes = canvas(0.3 * len(names), left=label_room(names), top=0.3)
    for place, name in enumerate(names):
        xs = [100 * value for value in rows[name]]
        axes.plot([min(xs), max(xs)], [place, place], color=LINE, linewidth=1, zorder=1)
        label = "another order" if place == 0 else None
        axes.plot(
            xs, [place] * len(xs), linestyle="", marker="|", markersize=10, markeredgewidth=1.2, color=SERIES[0], label=label, zorder=2
        )
    for place, name in enumerate(names):
        if rate := given.get(name):
            axes.plot([100 * rate.low, 100 * rate.high], [place + 0.28] * 2, color=SERIES[1], linewidth=1.4, zorder=2)
            label = called if place == 0 else None
            axes.plot([100 * rate.value], [place + 0.28], marker="o", markersize=4.5, linestyle="", color=SERIES[1], label=label, zorder=3)
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(-3, 103), xticks=range(0, 101, 25))
    axes.set_ylim(len(names) - 0.3, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.axvline(50, **EVEN)
    axes.set_xlabel(xlabel)
    legend(figure, axes, 2)
    return as_svg(figure, title, "strips")


def _apart(places: Sequence[tuple[str, float, float]], wide: float, high: float) -> list[tuple[str, float, float]]:
    """The labels (text, x, y) that stand clear of those before them."""
    kept: list[tuple[str, float, float]] = []
    for told, x, y in places:
        if all(abs(x - other) >= wide or abs(y - level) >= high for _, other, level in kept):
            kept.append((told, x, y))
    return kept


def _symmetric(axes, ends: Sequence[float], even: float) -> None:
    """An axis of differences: linear up to `even` around zero, logarithmic beyond, with a tick at zero and each power of ten."""
    tens = [even * 10**power for power in range(6) if even * 10**power <= max(map(abs, ends), default=even)] or [even]
    ticks = [*(-ten for ten in reversed(tens) if -ten >= min(ends) - even), 0.0, *tens]
    axes.set_xscale("symlog", linthresh=even, linscale=1.0)
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.set_xticks([], minor=True)
    low, high = min(*ends, 0.0), max(*ends, even)
    axes.set_xlim(low - 0.4 * even, 1.3 * high)


def _bold(axes, labels: Sequence[str]) -> None:
    for tick in axes.get_yticklabels():
        if tick.get_text() in labels:
            tick.set_fontweight("bold")


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend of these names that fit the figure's width."""
    return 3 if max(map(len, names), default=0) <= 14 else 2


def _errors(rates: Sequence[Measure]) -> list[list[float]]:
    """Whisker lengths in per cent, below and above."""
    return [[100 * (r.value - r.low) for r in rates], [100 * (r.high - r.value) for r in rates]]
