"""Loss against degrees of freedom: ways to combine models, each with a larger space to search than the one above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asterism.report.figures import INK, LINE, MARKERS, MUTED, SERIES, Bar, as_svg, canvas, label_room, legend, legend_columns, plain_style


@plain_style
def ladder(
    rungs: Mapping[str, Sequence[Bar]],
    *,
    title: str,
    xlabel: str,
    levels: Mapping[str, float] | None = None,
    apart: Sequence[str] = (),
) -> str:
    """One line a rung from the top, {series: [(rung, loss, low, high)]}: a dot with its interval, joined to the next (Fig. 4, 5).

    Rungs come in the order in which they are first met. levels: losses of other ways, as dashed lines. Rungs named in `apart` stand
    beside the ladder and are not joined.
    """
    names = list(dict.fromkeys(bar[0] for bars in rungs.values() for bar in bars))
    single = len(rungs) == 1
    told = [*([] if single else rungs), *(levels or {})]
    columns = legend_columns(told)
    top = 0.1 + 0.19 * -(-len(told) // columns) if told else 0.08
    figure, axes = canvas(max(0.24, 0.16 + 0.1 * len(rungs)) * len(names), left=label_room(names), top=top, right=0.5 if single else 0.1)
    step = 0.6 / len(rungs)
    for place, (name, bars) in enumerate(rungs.items()):
        colour, marker = SERIES[place % 6], MARKERS[place % 6]
        shift = -0.3 + step * (place + 0.5)
        joined = [(bar[1], names.index(bar[0]) + shift) for bar in bars if bar[0] not in apart]
        axes.plot([x for x, _ in joined], [y for _, y in joined], color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        for rung, loss, low, high in bars:
            y = names.index(rung) + shift
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=2)
            axes.plot([loss], [y], marker=marker, markersize=5, color=colour, linestyle="", zorder=3)
            if single:
                axes.text(1.02, y, f"{loss:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=INK)
        if not single:
            axes.plot([], [], marker=marker, markersize=5, color=colour, linestyle="", label=name)
    for place, (name, loss) in enumerate((levels or {}).items()):
        dashes = ((0, (4, 2)), (0, (1, 2)), (0, (4, 2, 1, 2)))[place % 3]
        axes.axvline(loss, color=MUTED, linewidth=1.1, linestyle=dashes, zorder=1, label=name)
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(xlabel)
    if told:
        legend(figure, axes, columns)
    return as_svg(figure, title, "ladder")
