"""One self-contained HTML page from a results dict, for a reader who has not read the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterism.report import figures
from asterism.report.findings import LABELS, PROTOCOLS, SHORT, Cell, Findings, label, plane
from asterism.report.pages import rendered, written

TITLE = "A model for each query: composition and its rivals"
MOST_POINTS = 1500
"""Probes drawn in the scatter, at most; of more, every n-th."""
MOST_NAMES = 12
"""Groups named in the scatter, at most; more are drawn alike."""
EVEN = 1e-6
"""Spread of a specialist's weights over the nodes below which there is nothing to draw."""
LONGEST_EXAMPLE = 600
"""Characters of the example query that are shown."""


def write_report(results: Mapping[str, Any], out: str | Path, title: str = TITLE) -> Path:
    """Write the report of `results` (see evaluate) to the file `out`; returns its path.

    Parts whose list is empty are left out. Raises DataError when a part is missing, StorageError when the file cannot be written.
    """
    return written(report_html(results, title), out)


def report_html(results: Mapping[str, Any], title: str = TITLE) -> str:
    """The page as a string; equal results give equal text."""
    findings = Findings(results)
    lead, *more = findings.lead() or ["Nothing was compared."]
    return rendered(
        "report.html.j2",
        title=title,
        lead=lead,
        more=more,
        results=results,
        findings=findings,
        protocols={name: PROTOCOLS.get(name, name) for name in dict.fromkeys(cell.protocol for cell in findings.cells)},
        names=_names(results),
        wins=[_panel(findings, cell, _win_bars) for cell in findings.cells],
        maps=[_panel(findings, cell, _candidate_map) for cell in findings.cells],
        groups=[_panel(findings, cell, _group_map) for cell in findings.cells],
        losses=[_panel(findings, cell, _loss_dots) for cell in findings.cells],
        collinearity=_collinearity(results),
        correlation=_correlation(results),
        scatters=_scatters(results),
        example=_example(results),
        numbers=[_numbers(findings, cell) for cell in findings.cells],
        steadiness=_steadiness(results, findings),
    )


def _panel(findings: Findings, cell: Cell, draw) -> dict[str, Any]:
    return {"title": cell.title, "n": findings.n(cell), "svg": draw(findings, cell)}


def _win_bars(findings: Findings, cell: Cell) -> str:
    series = {}
    for name in ("default", "paper"):
        if rows := findings.compared(cell, name):
            series[label(name)] = [(label(row["rival"]), row["rate"], row["low"], row["high"]) for row in rows]
    return figures.win_bars(series, findings.n(cell)) if series else ""


def _candidate_map(findings: Findings, cell: Cell) -> str:
    names = [name for name in findings.candidates(cell) if findings.compared(cell, name)]
    if not names:
        return ""
    rates = [[findings.win(cell, name, rival) for rival in findings.rivals] for name in names]
    return figures.win_map([label(name) for name in names], _heads(findings), rates)


def _group_map(findings: Findings, cell: Cell) -> str:
    groups = [group for group in findings.groups(cell) if any(findings.win(cell, "default", rival, group) for rival in findings.rivals)]
    if not groups:
        return ""
    rates = [[findings.win(cell, "default", rival, group) for rival in findings.rivals] for group in groups]
    sizes = [next(row["n"] for row in row_of if row) for row_of in rates]
    rows = [f"{group} (n = {n})" for group, n in zip(groups, sizes, strict=True)]
    return figures.win_map(rows, _heads(findings), rates)


def _heads(findings: Findings) -> list[str]:
    return [SHORT.get(rival, label(rival)) for rival in findings.rivals]


def _loss_dots(findings: Findings, cell: Cell) -> str:
    rows = [row for name in findings.candidates(cell) if (row := findings.loss(cell, name))]
    if not rows:
        return ""
    strong = [label(name) for name in ("default", "paper")]
    return figures.loss_dots([(label(row["candidate"]), row["loss"], row["low"], row["high"]) for row in rows], findings.n(cell), strong)


def _collinearity(results: Mapping[str, Any]) -> dict[str, Any] | None:
    found, domains = results["collinearity"], results["domains"]
    if not found or not found["raw"] or len(domains) < 2:
        return None
    pairs = [(found["raw"][a][b], domains[a], domains[b]) for a in range(len(domains)) for b in range(a)]
    after = [round(found["post"][a][b], 9) + 0.0 for a in range(len(domains)) for b in range(a)] if found.get("post") else []
    return {
        "svg": figures.collinearity_map(domains, found["raw"]),
        "mean": found["mean"],
        "post": max(after, default=None),
        "most": max(pairs),
        "least": min(pairs),
    }


def _correlation(results: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = results["correlation"]
    if not rows:
        return None
    said = []
    for row in rows:
        seed = f" with seed {row['seed']}" if len(rows) > 1 else ""
        said.append(f"r = {row['r']:.2f} (95\u00a0% interval {row['low']:.2f} to {row['high']:.2f}){seed}".replace("-", "\u2212"))
    if all(row["high"] < 0 for row in rows):
        meaning = "negative, so yes: the larger, the less is that specialist surprised"
    elif all(row["low"] > 0 for row in rows):
        meaning = "positive, so no: the larger, the more is that specialist surprised"
    else:
        meaning = "not clearly above or below zero, so nothing can be said"
    return {"n": rows[0]["n"], "said": said, "meaning": meaning}


def _scatters(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    import numpy as np

    probes, domains = results["probes"], results["domains"]
    if not probes or len(domains) < 2:
        return []
    directions, shares = plane(probes)
    places = {place: tuple(np.round(np.array(probe["coefficients"]) @ directions, 6).tolist()) for place, probe in enumerate(probes)}
    chosen = range(0, len(probes), -(-len(probes) // MOST_POINTS))
    means = {}
    for name in domains:
        own = [places[place] for place in places if probes[place]["group"] == name]
        if own and len(domains) <= MOST_NAMES:
            means[name] = tuple(np.mean(own, axis=0).tolist())
    panels = []
    for task, title in (("single", "Single-domain probes"), ("cross", "Cross-domain probes")):
        points: dict[str, list] = {}
        for place in (place for place in chosen if probes[place]["task"] == task):
            points.setdefault(probes[place]["group"], []).append(places[place])
        if len(points) > MOST_NAMES:
            points = {f"{len(points)} groups": [point for those in points.values() for point in those]}
        if points:
            svg = figures.coefficient_scatter(points, means, shares, [places[place] for place in chosen])
            panels.append({"title": title, "n": sum(map(len, points.values())), "svg": svg})
    return panels


def _example(results: Mapping[str, Any]) -> dict[str, Any] | None:
    found = results["example"]
    if not found:
        return None
    import math

    text, weights, losses = " ".join(found["text"].split()), found["weights"], found.get("losses", {})
    shares = [100 * sum(row) / len(row) for row in weights]
    rows = list(zip(found["specialists"], found["coefficients"], map(losses.get, found["specialists"]), shares, strict=True))
    generalist = found.get("generalist", 0.0)
    if losses or generalist:
        rows.append(("generalist", None, losses.get("generalist"), 100 * generalist))
    even = all(max(row) - min(row) < EVEN for row in weights)
    return {
        "text": text if len(text) <= LONGEST_EXAMPLE else text[:LONGEST_EXAMPLE].rsplit(" ", 1)[0] + " …",
        "group": found.get("group", ""),
        "rows": sorted(rows, key=lambda row: -row[3]),
        "scale": found.get("scale", 1.0),
        "entropy": found["entropy"],
        "most": math.log2(len(rows)),
        "nodes": len(weights[0]),
        "svg": "" if even else figures.mixture_nodes(found["specialists"], weights),
    }


def _names(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    order = {name: place for place, name in enumerate(LABELS)}
    known = sorted(results["candidates"], key=lambda name: order.get(name, len(order)))
    return [(label(name), name, results["candidates"][name]) for name in known]


def _numbers(findings: Findings, cell: Cell) -> dict[str, Any]:
    rows = []
    for name in findings.candidates(cell):
        rows.append((label(name), findings.loss(cell, name), [findings.win(cell, name, rival) for rival in findings.rivals]))
    return {"title": cell.title, "n": findings.n(cell), "rivals": [label(rival) for rival in findings.rivals], "rows": rows}


def _steadiness(results: Mapping[str, Any], findings: Findings) -> list[tuple[Cell, str, Sequence[tuple[Any, Mapping[str, Any]]]]]:
    """Win rates of `default` seed by seed, where there are several."""
    if findings.seed != "all":
        return []
    found = []
    for cell in findings.cells:
        for rival in findings.rivals:
            rows = [
                (row["seed"], row)
                for row in results["table"]
                if (row["protocol"], row["task"], row["group"], row["candidate"], row["rival"])
                == (cell.protocol, cell.task, "all", "default", rival)
                and row["seed"] != "all"
            ]
            if rows:
                found.append((cell, label(rival), rows))
    return found
