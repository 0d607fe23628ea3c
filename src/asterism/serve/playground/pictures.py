"""What the page shows of a mixture, as HTML: every name and number escaped, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from asterism.constellation.index import FOLDER, Constellation
from asterism.models.library import Library
from asterism.report.figures import coefficient_scatter
from asterism.report.findings import plane
from asterism.report.layers import layer_bars

GENERALIST = "generalist"
MOST_POINTS = 600
"""Probes drawn on the map, at most; of more, every n-th."""


def plain(text: object) -> str:
    """Text as HTML that means itself, for Gradio's templates too: they read braces and dollars."""
    return escape(str(text)).replace("{", "&#123;").replace("$", "&#36;")


def mixture_bars(told: Mapping[str, Any], title: str, names: Sequence[str]) -> str:
    """Shares as bars, the largest first and the generalist's last, with each candidate's loss on the text where it was read.

    `names`: the library's specialists; each has its own colour on the whole page.
    """
    losses = told.get("losses") or {}
    rows = sorted(told["shares"].items(), key=lambda item: -item[1])
    if told[GENERALIST] or losses or not rows:
        rows.append((GENERALIST, told[GENERALIST]))
    bars = "".join(_bar(name, share, losses.get(name), _colour(name, names)) for name, share in rows)
    scale = f" · deltas × {told['scale']:g}" if told.get("scale", 1.0) != 1 else ""
    read = f" · {told['read_tokens']} tokens read in {1000 * told['choosing_s']:.0f} ms" if "read_tokens" in told else ""
    plainly = "" if losses else " plain"
    head = '<div class="bar head"><span></span><span></span><span>share</span><span>loss</span></div>' if losses else ""
    facts = f"mode {plain(told['mode'])} · entropy {told['entropy']:.2f} bits{scale}{read}"
    return _picture(title, f'<div class="bars{plainly}">{head}{bars}</div><p class="note">{facts}</p>')


def _colour(name: str, names: Sequence[str]) -> str:
    return f"var(--s{list(names).index(name) % 6 + 1})" if name in names else "var(--muted)"


def _bar(name: str, share: float, loss: float | None, colour: str) -> str:
    told = "" if loss is None else f"{loss:.2f}"
    width = 100 * min(1.0, max(0.0, share))
    drawn = f'<span class="track"><i style="width:{width:.1f}%;background:{colour}"></i></span>'
    return f'<div class="bar"><span class="name">{plain(name)}</span>{drawn}<span>{100 * share:.0f} %</span><span>{told}</span></div>'


def layers_picture(explained: Mapping[str, Any]) -> str:
    """Who is most active in each block."""
    return _figure("Who is most active, block by block", layer_bars(explained["layers"], list(explained["coefficients"])))


def error_box(told: Mapping[str, str]) -> str:
    """An error as everywhere: what is wrong, what was met, how to mend it."""
    wrong, met, mend = (plain(told[name]) for name in ("wrong", "met", "mend"))
    return f'<div class="error" role="alert"><b>{wrong}</b><br>met: {met}<br>mend: {mend}</div>'


class Map:
    """The domains' probes in the plane in which their domains differ most, and a text among them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._known: tuple[int, tuple[str, ...], list[dict[str, Any]]] | None = None

    def picture(self, coefficients: Mapping[str, float]) -> str:
        """A text's place by its coefficients (domain -> projection); nothing where a library has one domain, and so no plane."""
        domains, probes = self._probes()
        if len(domains) < 2 or any(name not in coefficients for name in domains):
            return ""
        import numpy as np

        directions, shares = plane(probes)
        places = np.array([probe["coefficients"] for probe in probes]) @ directions  # [n, 2]
        here = tuple((np.array([coefficients[name] for name in domains]) @ directions).tolist())
        groups: dict[str, list[tuple[float, float]]] = {}
        for probe, (x, y) in zip(probes, places.tolist(), strict=True):
            groups.setdefault(probe["group"], []).append((x, y))
        means = {name: tuple(np.mean(own, axis=0).tolist()) for name, own in groups.items()}
        step = -(-len(probes) // MOST_POINTS)
        shown = {name: own[::step] for name, own in groups.items()}
        limits = [*map(tuple, places.tolist()), here]
        return _figure("Where the text stands among the domains' probes", coefficient_scatter(shown, means, shares, limits, star=here))

    def _probes(self) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
        """Coefficients of the index's probes, read again when the index on disk has changed."""
        place = self._library.root / FOLDER
        mark = (place / "index.json").stat().st_mtime_ns
        if self._known is None or self._known[0] != mark:
            constellation = Constellation.load(place, self._library)
            self._known = (mark, constellation.domains, _coefficients(constellation))
        return self._known[1], self._known[2]


def _coefficients(constellation: Constellation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in (*constellation.domains, *(other for other in constellation.rows if other not in constellation.domains)):
        rows: Sequence[Sequence[float]] = constellation.basis.coefficients(constellation.fingerprints(name)).tolist()
        found += [{"group": name, "task": "single", "coefficients": row} for row in rows]
    return found


def _figure(title: str, svg: str) -> str:
    return _picture(title, f"<figure>{svg}</figure>")


def _picture(title: str, body: str) -> str:
    return f'<section class="picture"><h3>{plain(title)}</h3>{body}</section>'
