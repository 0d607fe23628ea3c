"""The report's figures: plain numbers in, one SVG string out. Equal numbers give equal bytes.

Colours are written as CSS variables (with a fallback), so that a page may restyle them for dark mode; text stays text.
Every figure is about as wide as a phone, so that a page can put two side by side on a large screen and one on a small one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar, cast
from warnings import catch_warnings, filterwarnings

WIDTH = 4.4
"""Inches; 1 inch = 96 CSS pixels."""
_THEME = {
    "#010101": "var(--ink,#1c1f24)",
    "#020202": "var(--muted,#5b6470)",
    "#030303": "var(--line,#d5d9df)",
    "#0a0a01": "var(--s1,#0072b2)",
    "#0a0a02": "var(--s2,#d55e00)",
    "#0a0a03": "var(--s3,#009e73)",
    "#0a0a04": "var(--s4,#b0588f)",
    "#0a0a05": "var(--s5,#e69f00)",
    "#0a0a06": "var(--s6,#56b4e9)",
}
INK, MUTED, LINE, *SERIES = _THEME
MARKERS = "osD^vP"
LOSE, EVEN, WIN = "#d55e00", "#f4f4f2", "#0072b2"
LOW, HIGH = "#f1f5f9", "#0b4f7d"
PLAIN = 14
"""Rows or columns up to which a square map shows its numbers."""

Figure = TypeVar("Figure", bound=Callable[..., str])
Bar = tuple[str, float, float, float]
"""(label, value, low, high)."""
Dot = tuple[str, float, float | None, float | None]
"""The same; one text has no interval."""


def plain_style(draw: Figure) -> Figure:
    """Draw under matplotlib's own defaults, whatever the user's matplotlibrc says, and leave that as it was."""

    @wraps(draw)
    def styled(*given, **named):
        from matplotlib import style

        with style.context("default"):
            return draw(*given, **named)

    return cast(Figure, styled)


@plain_style
def win_bars(series: Mapping[str, Sequence[Bar]], n: int) -> str:
    """Win rates of one or two candidates against each rival, in [0, 1], with their intervals; one half is marked."""
    rivals = list(dict.fromkeys(bar[0] for bars in series.values() for bar in bars))
    figure, axes = canvas(0.4 * len(rivals), left=label_room(rivals), top=0.3 if len(series) > 1 else 0.08)
    thick = 0.76 / max(1, len(series))
    for place, (name, bars) in enumerate(series.items()):
        at = [rivals.index(bar[0]) - 0.38 + thick * (place + 0.5) for bar in bars]
        rates, lows, highs = [100 * bar[1] for bar in bars], [100 * bar[2] for bar in bars], [100 * bar[3] for bar in bars]
        axes.barh(at, rates, height=0.88 * thick, color=SERIES[place % 6], label=name, zorder=2)
        errors = [[r - low for r, low in zip(rates, lows, strict=True)], [high - r for r, high in zip(rates, highs, strict=True)]]
        axes.errorbar(rates, at, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2, zorder=3)
        for y, rate, high in zip(at, rates, highs, strict=True):
            axes.text(max(rate, high) + 2, y, f"{rate:.0f}", va="center", fontsize=7.5, color=INK, zorder=4)
    axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    axes.set(yticks=range(len(rivals)), yticklabels=rivals, xlim=(0, 112), xticks=range(0, 101, 25))
    axes.set_ylim(len(rivals) - 0.45, -0.55)
    axes.set_xlabel(f"probes won, % (n = {n})")
    if len(series) > 1:
        legend(figure, axes, 2)
    return as_svg(figure, f"Win rates of {' and '.join(series)} against each rival", "win-bars")


@plain_style
def win_map(rows: Sequence[str], columns: Sequence[str], rates: Sequence[Sequence[Mapping[str, Any] | None]]) -> str:
    """Win rates of each row against each column in per cent; blue wins, orange loses, bold where the interval excludes one half."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("wins", [LOSE, EVEN, WIN])
    figure, axes = canvas(0.225 * len(rows), left=label_room(rows), **slanted(columns))
    cells(axes, [[cell["rate"] if cell else None for cell in row] for row in rates], colours, 0, 1)
    for y, row in enumerate(rates):
        for x, cell in enumerate(row):
            if cell is None:
                axes.text(x, y, "·", ha="center", va="center", color=MUTED, fontsize=8)
                continue
            sure = cell["low"] > 0.5 or cell["high"] < 0.5
            tone = "#ffffff" if abs(cell["rate"] - 0.5) > 0.33 else "#1c1f24"
            weight = "bold" if sure else "normal"
            axes.text(x, y, f"{100 * cell['rate']:.0f}", ha="center", va="center", color=tone, fontsize=8, fontweight=weight)
    grid_labels(axes, rows, columns)
    return as_svg(figure, "Win rates in per cent, each row against each column", "win-map")


@plain_style
def loss_dots(bars: Sequence[Dot], n: int, strong: Sequence[str] = ()) -> str:
    """Mean losses in nats a token with bootstrap intervals, in the order given; `strong` labels are coloured."""
    figure, axes = canvas(0.2 * len(bars), left=label_room([bar[0] for bar in bars]))
    for y, (name, value, low, high) in enumerate(bars):
        colour = SERIES[list(strong).index(name) % 6] if name in strong else MUTED
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
        axes.plot([value], [y], marker="o", markersize=5, color=colour, zorder=3)
    axes.set(yticks=range(len(bars)), yticklabels=[bar[0] for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_xlabel(f"mean loss, nats a token (n = {n})")
    for tick in axes.get_yticklabels():
        if tick.get_text() in strong:
            tick.set_fontweight("bold")
    return as_svg(figure, "Mean loss of every candidate", "loss-dots")


@plain_style
def collinearity_map(domains: Sequence[str], cosines: Sequence[Sequence[float]]) -> str:
    """Cosines between domain centroids; the diagonal is one by definition and left empty."""
    from matplotlib.colors import LinearSegmentedColormap

    count = len(domains)
    few = count <= 2 * PLAIN
    names = list(domains) if few else [""] * count
    figure, axes = canvas(max(1.6, min(3.0, 0.45 * count)), left=label_room(names), **{**slanted(names), "bottom": 0.62})
    others = [cosines[a][b] for a in range(count) for b in range(count) if a != b]
    bottom = min([*others, 0.9])
    colours = LinearSegmentedColormap.from_list("cosines", [LOW, HIGH])
    shown = [[None if a == b else cosines[a][b] for b in range(count)] for a in range(count)]
    cells(axes, shown, colours, bottom, 1)
    if count <= PLAIN:
        for a in range(count):
            for b in range(count):
                if a != b:
                    tone = "#ffffff" if (cosines[a][b] - bottom) / (1 - bottom + 1e-9) > 0.45 else "#1c1f24"
                    axes.text(b, a, f"{cosines[a][b]:.3f}", ha="center", va="center", color=tone, fontsize=8)
    grid_labels(axes, names, names)
    colour_scale(figure, axes, colours, bottom, 1, "cosine between centroids (no unit)")
    return as_svg(figure, "Cosines between the domains' mean fingerprints", "collinearity")


@plain_style
def coefficient_scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    marks: Mapping[str, tuple[float, float]],
    shares: tuple[float, float],
    limits: Sequence[tuple[float, float]],
    *,
    star: tuple[float, float] | None = None,
) -> str:
    """One dot a probe, coloured and shaped by group; `marks` are named places (each domain's mean), `limits` points that set the axes.

    `shares`: share of the spread between domains along each axis. `star`: the place of the text that is asked about, told in the legend.
    """
    import numpy as np

    columns = 2 if len(points) <= 8 else 3
    figure, axes = canvas(3.1, left=0.7 if star else 0.55, top=0.08 + 0.18 * -(-(len(points) + bool(star)) // columns))
    for place, (name, those) in enumerate(points.items()):
        xs, ys = zip(*those, strict=True)
        colour, marker = SERIES[place % 6], MARKERS[place % 6]
        face = colour if place < 6 else "none"
        axes.scatter(
            xs, ys, s=15, c=face, edgecolors=colour, linewidths=0.7, marker=marker, alpha=0.75, label=f"{name} ({len(those)})", zorder=2
        )
    for name, (x, y) in marks.items():
        axes.plot([x], [y], marker="+", markersize=8, color=INK, zorder=3)
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8.5, fontweight="bold", color=INK, zorder=4)
    if star:
        axes.scatter(*star, marker="*", s=170, c=INK, edgecolors="none", label="this text", zorder=5)
    for spread, setter in zip(zip(*limits, strict=True), (axes.set_xlim, axes.set_ylim), strict=True):
        low, high = float(np.min(spread)), float(np.max(spread))
        room = 0.08 * (high - low) or 0.5
        setter(low - room, high + room)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_xlabel(f"first direction ({100 * shares[0]:.0f} % of the spread between domains)")
    axes.set_ylabel(f"second direction ({100 * shares[1]:.0f} %)")
    legend(figure, axes, columns)
    return as_svg(figure, f"Coefficients of the probes of {', '.join(points)}, in two directions", "scatter")


@plain_style
def mixture_nodes(specialists: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """Stacked weights [K][d] over the nodes, nodes sorted by the first specialist's weight; above 256 nodes, means of neighbours."""
    import numpy as np

    table = np.asarray(weights, dtype=float)  # [K, d]
    nodes = table.shape[1]
    table = table[:, np.argsort(-table[0], kind="stable")]
    bins = min(nodes, 256)
    edges = np.linspace(0, nodes, bins + 1).round().astype(int)
    means = np.stack([table[:, a:b].mean(axis=1) for a, b in pairwise(edges.tolist())], axis=1)  # [K, bins]
    figure, axes = canvas(2.1, left=0.55, top=0.1 + 0.17 * -(-len(specialists) // 2))
    heights = np.vstack([np.zeros(bins), np.cumsum(means, axis=0)])
    steps = np.repeat(heights, 2, axis=1)
    at = np.repeat(edges, 2)[1:-1]
    for place, name in enumerate(specialists):
        share = f"{name} ({100 * table[place].mean():.0f} %)"
        axes.fill_between(at, 100 * steps[place], 100 * steps[place + 1], color=SERIES[place % 6], linewidth=0, label=share)
    axes.set(xlim=(0, nodes), ylim=(0, 100 * max(float(heights[-1].max()), 1e-9)))
    axes.set_xlabel(f"node of the hidden state (d = {nodes}), sorted by {specialists[0]}'s weight")
    axes.set_ylabel("weight, %")
    legend(figure, axes, 2)
    return as_svg(figure, f"Weight of {', '.join(specialists)} at every node", "mixture")


def canvas(plot: float, *, left: float, top: float = 0.08, bottom: float = 0.5, right: float = 0.1):
    """(figure, axes) in the house style: a plot of the given height with margins around it, all in inches.

    Drawn without pyplot and so without global state; margins are counted, not measured, so that no font matters.
    """
    from matplotlib.figure import Figure

    height = plot + top + bottom
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, plot / height))
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=MUTED, fontsize=8.5)
    axes.yaxis.label.set(color=MUTED, fontsize=8.5)
    return figure, axes


def legend(figure, axes, columns: int) -> None:
    """Above the plot, from the figure's left edge on."""
    place = axes.get_position()
    where = dict(loc="lower left", bbox_to_anchor=(0.01, place.y1 + 0.02 / figure.get_figheight()), bbox_transform=figure.transFigure)
    axes.legend(ncols=columns, frameon=False, fontsize=8.5, borderaxespad=0.1, handlelength=1, handletextpad=0.4, labelcolor=INK, **where)


def legend_columns(names: Sequence[str]) -> int:
    """Columns of a legend of these names that fit the figure's width."""
    return 3 if max(map(len, names), default=0) <= 14 else 2


def label_room(labels: Sequence[str]) -> float:
    """Inches that the longest label needs."""
    return 0.068 * max(map(len, labels), default=0) + 0.15


def colour_scale(figure, axes, colours, low: float, high: float, label: str) -> None:
    """What a map's colours mean, in the margin of 0.62 inches below it."""
    place = axes.get_position()
    scale = figure.add_axes((place.x0, 0.42 / figure.get_figheight(), place.width, 0.1 / figure.get_figheight()))
    edges = [low + (high - low) * step / 32 for step in range(33)]
    scale.pcolormesh(edges, [0, 1], [edges[:-1]], cmap=colours, vmin=low, vmax=high)
    scale.set_xlabel(label, fontsize=8.5, color=MUTED)
    scale.set_yticks([])
    scale.tick_params(labelsize=8, colors=MUTED, labelcolor=INK, length=3)
    for spine in scale.spines.values():
        spine.set_visible(False)


def cells(axes, values: Sequence[Sequence[float | None]], colours, low: float, high: float) -> None:
    """Coloured cells, the first row at y = 0; None is left empty."""
    import numpy as np

    table = np.ma.masked_invalid(np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float))
    rows, columns = table.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    axes.pcolormesh(*edges, table, cmap=colours, vmin=low, vmax=high, edgecolors=LINE, linewidth=0.6)


def slanted(columns: Sequence[str]) -> dict[str, float]:
    """Margins for column names that lean to the right above a map."""
    room = label_room(columns)
    return {"top": 0.7 * room + 0.1, "right": 0.55 * room, "bottom": 0.08}


def grid_labels(axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names of a map's rows and, leaning, of its columns; the first row comes to lie on top."""
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.invert_yaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)


def as_svg(figure, title: str, salt: str) -> str:
    """The figure as one <svg> element: no timestamp, no ids but those that are referred to, colours as CSS variables."""
    from markupsafe import escape
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")  # text stays text: whoever looks at the page has fonts of their own
        FigureCanvasSVG(figure).print_svg(drawn, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    size = re.search(r'viewBox="([^"]*)"', text)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"#0[0-9a-f]{5}", lambda found: _THEME.get(found[0], found[0]), text)
    text = re.sub(r'font-family: [^;"]*;? ?', "", text)
    text = re.sub(r'font: (\d+ |bold )?([\d.]+)px [^;"]*', lambda found: _font(found[1], found[2]), text)  # matplotlib before 3.11
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{size[1] if size else ""}"'
    return f"""{opened} role="img" aria-label="{escape(title)}" font-family="system-ui, 'DejaVu Sans', sans-serif">\n{text}"""


def _font(weight: str | None, size: str) -> str:
    return f"font-size: {size}px" + (f"; font-weight: {weight.strip()}" if weight else "")
