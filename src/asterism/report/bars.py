"""Bars of shares: scores with their intervals, gates that stand open."""

from __future__ import annotations

from collections.abc import Sequence

from asterism.report.figures import INK, LINE, MUTED, SERIES, Dot, as_svg, canvas, label_room, plain_style


@plain_style
def share_bars(bars: Sequence[Dot], *, title: str, unit: str, strong: Sequence[str] = ()) -> str:
    """Shares in [0, 1] in per cent with their intervals, if any, in the order given; `strong` labels are coloured, or all without any."""
    names = [bar[0] for bar in bars]
    figure, axes = canvas(0.26 * len(bars), left=label_room(names))
    for y, (name, value, low, high) in enumerate(bars):
        colour = SERIES[0] if name in strong or not strong else MUTED
        axes.barh([y], [100 * value], height=0.66, color=colour, alpha=1.0 if name in strong or not strong else 0.55, zorder=2)
        if low is not None and high is not None:
            axes.errorbar(
                [100 * value],
                [y],
                xerr=[[100 * (value - low)], [100 * (high - value)]],
                fmt="none",
                ecolor=INK,
                elinewidth=1,
                capsize=2,
                zorder=3,
            )
        end = 100 * max(value, high if high is not None else value)
        axes.text(
            end + 1.5, y, f"{100 * value:.0f}" if value >= 0.1 or not value else f"{100 * value:.1f}", va="center", fontsize=7.5, color=INK
        )
    axes.set(yticks=range(len(bars)), yticklabels=names, xlim=(0, 112), xticks=range(0, 101, 25))
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(unit)
    for tick in axes.get_yticklabels():
        if tick.get_text() in strong:
            tick.set_fontweight("bold")
    return as_svg(figure, title, "share-bars")
