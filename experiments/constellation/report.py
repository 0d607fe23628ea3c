"""One self-contained HTML page from a ladder's results, in the look of `asterism.report`; sections without rows are left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterism.core.storage import replacing
from asterism.report.findings import LABELS, PROTOCOLS, TASKS, label, listed
from experiments.constellation import analysis, figures
from experiments.constellation.analysis import PAPERS, Table
from experiments.constellation.claims import by_theme, counted, judged, where_the_noise_goes
from experiments.constellation.view import Measure, View, measured, over_seeds, rate_of

TITLE = "The constellation paper's claims, tested"
RIVALS = ("generalist", "task_arithmetic", "best_single", "ensemble")
CELLS = tuple((task, protocol) for task in ("cross", "single") for protocol in ("continuation", "whole"))
SWEPT = {"protocol": "whole", "task": "cross"}
"""Which rows of a sweep the figures show."""
SITES = {"centroids": "centroids (paper)", "weights": "weights (summary page)", "control": "control (one direction)"}


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report of a ladder's results to the file `path`; returns it. StorageError where it cannot be written."""
    text, path = html(results), Path(path)
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path


def html(results: Mapping[str, Any]) -> str:
    """The page as a string; equal results give equal text."""
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
    from markupsafe import Markup

    view, register = View(results), judged(results)
    loader = ChoiceLoader([FileSystemLoader(Path(__file__).parent), PackageLoader("asterism.report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= dict(svg=Markup, cell=cell, listed=listed)
    source = loader.get_source(environment, "report.html.j2")[0]
    style = re.search(r"<style>.*?</style>", source, re.DOTALL)
    lead, *more = lines(view)
    return environment.get_template("ladder.html.j2").render(
        title=TITLE,
        style=Markup(style[0] if style else ""),
        lead=lead,
        more=[*more, f"Of {counted(register).replace(':', ',')}."],
        view=view,
        ladder=ladder(view),
        first=collinearity_panels(view),
        rivals=rival_panels(view),
        noise=noise_panels(view),
        noise_words=where_the_noise_goes(view),
        orders=order_panels(view),
        layers=layer_panels(view),
        top_k=k_panels(view),
        sizes=size_panels(view),
        probes=probe_panels(view),
        diagnoses=diagnoses(view),
        themes=by_theme(register),
        counted=counted(register),
        tables=all_tables(view),
    )


def lines(view: View) -> list[str]:
    """The findings in words: what the default and the paper's composition beat, from the lowest to the highest rung."""
    if not view.names:
        return ["No rung of this ladder has been evaluated yet."]
    said = [
        f"{called} beats {clause} ({meaning})."
        for candidate, called in CALLED.items()
        for protocol, meaning in PROTOCOLS.items()
        if (clause := _beats(view, candidate, protocol))
    ]
    sizes = [rung["parameters"] / 1e6 for rung in view.rungs]
    seeds = f"{len(view.seeds)} seed{'s' if len(view.seeds) > 1 else ''}"
    ladder = f"{len(view.names)} generalists of {min(sizes):.2g} to {max(sizes):.2g} million parameters"
    about = f"Measured on {ladder}, {len(view.domains)} specialists each, {seeds}; shares from the lowest to the highest rung."
    return [*said, about]


def ladder(view: View) -> list[dict[str, Any]]:
    """The rungs as rows: size, steps, collinearity, or why there is nothing of them."""
    return [{**rung, "collinearity": view.collinearity(rung["name"])} for rung in (*view.rungs, *view.diverged)]


def collinearity_panels(view: View) -> list[Panel]:
    """Figure 1 for the paper's composition and for ours, with the paper's own points."""
    papers: dict[str, list[tuple[str, float, float]]] = {}
    for model, (family, cosine, rate) in PAPERS.items():
        papers.setdefault(f"{family} (paper)", []).append((model, cosine, rate))
    panels = []
    for candidate in ("paper", "default"):
        families = {}
        for family, names in view.families.items():
            found = [(n, c.value, w) for n in names if (c := view.collinearity(n)) and (w := view.win(n, candidate, "task_arithmetic"))]
            if found:
                families[family] = found
        if families:
            panels.append(Panel(LABELS[candidate], figures.collinearity_scatter(families, papers if candidate == "paper" else {})))
    return panels


def rival_panels(view: View, candidate: str = "default") -> list[Panel]:
    """A candidate against each rival at every rung, for both tasks and protocols."""
    panels = []
    for task, protocol in CELLS:
        rows: dict[str, dict[str, Measure]] = {}
        for name in view.names:
            rates = {LABELS[rival]: rate for rival in RIVALS if (rate := view.win(name, candidate, rival, task, protocol))}
            if rates:
                rows[name] = rates
        if rows:
            title = f"{TASKS[task].capitalize()} probes, {protocol} protocol"
            n = max(rate.n for each in rows.values() for rate in each.values())
            panels.append(Panel(title, figures.rate_dots(rows, title=title, xlabel=f"probes won, % (n = {n})")))
    return panels


def noise_panels(view: View) -> list[Panel]:
    """Figure 2: the sweep of every rung, a curve for each site of the noise."""
    panels = []
    for name in view.names:
        sweeps = {called: list(rates.items()) for site, called in SITES.items() if (rates := view.noise(name, site))}
        if sweeps:
            ticks = sorted({fraction for points in sweeps.values() for fraction, _ in points})
            cosine = view.collinearity(name)
            title = f"{name} (mean cosine {cosine.value:.2f})" if cosine else name
            panels.append(Panel(title, _rates(sweeps, name, "noise, as a fraction of the mean norm or weight", ticks)))
    return panels


def order_panels(view: View) -> list[Panel]:
    """Every order of Gram-Schmidt, with the paper's own marked."""
    panels = []
    for key, title in (("rate", "Won against task arithmetic"), ("top1", "Own specialist first, single-domain probes")):
        rows, given = {}, {}
        for name in view.names:
            found = [row for row in view.pooled("orders", scale=name, protocol="whole") if row.get(key) is not None]
            if found:
                rows[name] = [row[key] for row in found]
                own = next((row for row in found if row["order"] == view.domains), None)
                given |= {name: rate_of(own, key)} if own else {}
        if rows:
            xlabel = f"probes, % ({max(map(len, rows.values()))} orders a rung)"
            called = f"{', '.join(view.domains)} (the paper's order)"
            panels.append(Panel(title, figures.strips(rows, given, title=title, xlabel=xlabel, called=called)))
    return panels


def layer_panels(view: View) -> list[Panel]:
    """Which blocks are composed, rung by rung; what validation chose is set in bold."""
    panels = []
    for name in view.names:
        found = view.pooled("layers", scale=name, **SWEPT)
        if found:
            labels: dict[str, str] = {row["layers"]: f"{row['layers']} ({row['share']:.0%})" for row in found}
            rows: dict[str, dict[str, Measure]] = {label: {} for label in labels.values()}
            for row in found:
                rows[labels[row["layers"]]][label(row["mixture"])] = rate_of(row, "rate_ta")
            chosen = [labels[row["layers"]] for row in found if row.get("chosen") and row["mixture"] == "default"]
            xlabel = f"won against task arithmetic, % (n = {found[0]['n']})"
            panels.append(Panel(name, figures.rate_dots(rows, title=f"Layers, {name}", xlabel=xlabel, marked=chosen)))
    return panels


def k_panels(view: View) -> list[Panel]:
    """K from 1 to N, a curve for each rung."""
    panels = []
    for mixture in ("default", "paper"):
        series = {
            name: [(row["top_k"], rate_of(row, "rate_ta")) for row in found]
            for name in view.names
            if (found := view.pooled("top_k", scale=name, mixture=mixture, **SWEPT))
        }
        if series:
            ticks = sorted({k for points in series.values() for k, _ in points})
            panels.append(Panel(LABELS[mixture], _rates(series, LABELS[mixture], "specialists in a mixture (K)", ticks)))
    return panels


def size_panels(view: View) -> list[Panel]:
    """Library size: win rates against each rival, and retrieval."""
    told = {"rate_generalist": "> generalist", "rate_ta": "> task arithmetic", "rate_best_single": "> best single", "top1": "finds its own"}
    panels = []
    for name in dict.fromkeys(row["scale"] for row in view.rows("sizes")):
        rows = sorted(view.pooled("sizes", scale=name), key=lambda row: row["size"])
        series = {
            called: [(row["size"], rate_of(row, key)) for row in rows if row.get(key) is not None]
            for key, called in told.items()
            if any(row.get(key) is not None for row in rows)
        }
        if series:
            panels.append(Panel(name, _rates(series, name, "specialists in the library", [row["size"] for row in rows])))
    return panels


def probe_panels(view: View) -> list[Panel]:
    """How many index probes: mean and range over draws, a curve for each rung."""
    panels = []
    mixtures = dict.fromkeys(row["mixture"] for row in view.rows("probes"))
    for mixture in mixtures:
        series: dict[str, list[tuple[float, Measure]]] = {}
        for name in view.names:
            rates: dict[float, list[float]] = {}
            for row in view.each_seed("probes", scale=name, mixture=mixture, **SWEPT):
                rates.setdefault(row["count"], []).append(row["rate_ta"])
            points = [(count, rate) for count, values in sorted(rates.items()) if (rate := over_seeds(values, "share"))]
            if points:
                series[name] = points
        if series:
            ticks = sorted({count for points in series.values() for count, _ in points})
            called = label(mixture)
            panels.append(Panel(called, _rates(series, called, "index probes a domain", ticks)))
    return panels


def diagnoses(view: View) -> list[dict[str, Any]]:
    """What each rung's index alone advises, from the first seed, beside which candidate was best."""
    found = []
    for name in view.names:
        rows = view.each_seed("diagnosis", scale=name)
        if rows:
            losses = {
                candidate: loss for candidate in ("default", "paper", *RIVALS[1:2], "generalist") if (loss := view.loss(name, candidate))
            }
            best = min(losses, key=lambda candidate: losses[candidate].value) if losses else ""
            advice = list(dict.fromkeys(row["advice"] for row in rows))
            found.append({"rung": name, "advice": advice, "reason": rows[0]["reason"], "best": label(best), "loss": losses.get(best)})
    return found


def all_tables(view: View) -> list[Table]:
    """The paper's tables for its composition, ours in the same form, ranks, losses, and the sweeps as they stand."""
    tables = analysis.paper_tables(view)
    tables += [table for table in (analysis.rank_table(view), analysis.tracking_table(view)) if not table.empty]
    for candidate, protocol in (("default", "whole"), ("paper", "continuation"), ("default", "continuation")):
        told = (analysis.single_domain(view, candidate, protocol), analysis.cross_domain(view, candidate, protocol))
        tables += [table for table in told if not table.empty]
    tables += [table for task, protocol in CELLS if not (table := _losses(view, task, protocol)).empty]
    names = {"calibration": "Calibration", "updating": "Updating while generating", "ideas": "Ideas side by side", "advice": "Advice"}
    names |= {"layers": "Layers", "top_k": "K", "probes": "Index probes", "sizes": "Library size"}
    for section, title in names.items():
        if rows := view.rows(section):
            tables.append(analysis.plain_table("All rows", title, rows))
    return tables


def cell(value: Any) -> Any:
    """One cell of a table; what stands in brackets after a figure is set apart."""
    from markupsafe import Markup, escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    figure, bracket, rest = str(value).partition(" (")
    if isinstance(value, str) or not bracket:
        return str(value)
    return Markup(f'{escape(figure)} <span class="interval">({escape(rest)}</span>')


CALLED = {"default": "The model that is composed for each text", "paper": "With the paper's settings it"}
PHRASED = {
    "generalist": "the generalist", "task_arithmetic": "task arithmetic at its best scale",
    "best_single": "the best single specialist picked with hindsight", "ensemble": "the weighted ensemble of all specialists",
}  # fmt: skip


def _beats(view: View, candidate: str, protocol: str) -> str:
    parts, n = [], 0
    for rival in RIVALS:
        found = measured(view, lambda name, r=rival: view.win(name, candidate, r, "cross", protocol)).values()
        if found:
            low, high = (f"{100 * side(rate.value for rate in found):.0f}" for side in (min, max))
            parts.append(f"{PHRASED[rival]} on {low if low == high else f'{low} to {high}'}\u00a0%")
            n = max(rate.n for rate in found)
    return f"{listed(parts)} of {n} texts that need two domains" if parts else ""


def _losses(view: View, task: str, protocol: str) -> Table:
    where = dict(task=task, protocol=protocol, group="all", seed=view.seed)
    names = dict.fromkeys(row["candidate"] for row in view.rows("losses", **where))
    rows = [(label(c), *(view.loss(name, c, task, protocol) for name in view.names)) for c in names]
    return Table("Mean loss", f"{TASKS[task]} probes, {protocol}", ("candidate", *view.names), tuple(rows), "Nats a token.")


def _rates(series: Mapping[str, Sequence[tuple[float, Measure]]], what: str, xlabel: str, ticks: Sequence[float]) -> str:
    return figures.curves(series, title=f"{what}: {xlabel}", xlabel=xlabel, ylabel="probes won, %", ticks=ticks)
