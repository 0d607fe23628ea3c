"""The report's figures, section by section, from a ladder's results: each function gives the panels that have rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from asterism.constellation.calibration import Calibration
from asterism.report.findings import LABELS, TASKS, label
from experiments.constellation import figures
from experiments.constellation.analysis import PAPERS
from experiments.constellation.targets import RIVALS as ASKED
from experiments.constellation.targets import WANTED
from experiments.constellation.view import View, rate_of
from experiments.measures import Measure, over_seeds

RIVALS = ("generalist", "task_arithmetic", "best_single", "ensemble")
CELLS = tuple((task, protocol) for task in ("cross", "single") for protocol in ("continuation", "whole"))
SWEPT = {"protocol": "whole", "task": "cross"}
"""Which rows of a sweep the figures show."""
SITES = {"centroids": "centroids (paper)", "weights": "weights (summary page)", "control": "control (one direction)"}
CONTENDERS = {"default": "default", "refined": "refined", "fast": "fast", "nodes": "per node", "paper": "paper", "ensemble": "ensemble"}
"""Who is shown beside the targets, and under what short name."""
PLAIN = f"evidence, scale {Calibration().scale:g}"
"""The default among the ideas: every one differs from it in one thing."""


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str


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
    """K from 1 to N for each mixture and family, a curve for each rung."""
    panels = []
    for mixture, (family, names) in product(("default", "paper"), view.families.items()):
        series = {
            name: [(row["top_k"], rate_of(row, "rate_ta")) for row in found]
            for name in names
            if (found := view.pooled("top_k", scale=name, mixture=mixture, **SWEPT))
        }
        if series:
            ticks = sorted({k for points in series.values() for k, _ in points})
            title = f"{LABELS[mixture]}, {family}"
            panels.append(Panel(title, _rates(series, title, "specialists in a mixture (K)", ticks)))
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
    """How many index probes for each mixture and family: mean and range over draws, a curve for each rung."""
    panels = []
    mixtures = dict.fromkeys(row["mixture"] for row in view.rows("probes"))
    for mixture, (family, names) in product(mixtures, view.families.items()):
        series: dict[str, list[tuple[float, Measure]]] = {}
        for name in names:
            rates: dict[float, list[float]] = {}
            for row in view.each_seed("probes", scale=name, mixture=mixture, **SWEPT):
                rates.setdefault(row["count"], []).append(row["rate_ta"])
            points = [(count, rate) for count, values in sorted(rates.items()) if (rate := over_seeds(values, "share"))]
            if points:
                series[name] = points
        if series:
            ticks = sorted({count for points in series.values() for count, _ in points})
            title = f"{label(mixture)}, {family}"
            panels.append(Panel(title, _rates(series, title, "index probes a domain", ticks)))
    return panels


def target_panels(view: View) -> list[Panel]:
    """Default, refined, fast and their rivals at every rung, against task arithmetic and the best single specialist, with the targets."""
    panels = []
    for (task, protocol), bounds in WANTED.items():
        for rival, bound in zip(ASKED, bounds, strict=True):
            if rival == "generalist" or bound is None:
                continue
            rows: dict[str, dict[str, Measure]] = {}
            for name in view.names:
                rates = {told: rate for who, told in CONTENDERS.items() if (rate := view.win(name, who, rival, task, protocol))}
                if rates:
                    rows[name] = rates
            if rows:
                title = f"{TASKS[task].capitalize()}, {protocol}: > {label(rival)}"
                n = max(rate.n for each in rows.values() for rate in each.values())
                xlabel = f"probes won, % (n = {n}; target {100 * bound:.0f} %)"
                panels.append(Panel(title, figures.rate_dots(rows, title=title, xlabel=xlabel, bound=bound)))
    return panels


def idea_panels(view: View) -> list[Panel]:
    """Ways of weighing on validation probes: over all rungs, beside the default; then rung by rung. Lowest mean loss first."""
    rows = view.rows("ideas")
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        means.setdefault(row["scale"], {})[row["idea"]] = row["mean"]
    if not means:
        return []
    hollow = [row["idea"] for row in rows if row["cost"] is None]
    beyond: dict[str, Measure] = {}
    for idea in dict.fromkeys(row["idea"] for row in rows):
        found = [each[idea] - each[PLAIN] for each in means.values() if idea in each and PLAIN in each]
        if gap := over_seeds(found, "nats"):
            beyond[idea] = gap
    panels = []
    if len(means) > 1 and beyond:
        title, xlabel = f"All {len(means)} rungs", "loss beyond the bold, nats a token"
        panels.append(Panel(title, _ideas(beyond, f"Ideas, {title}", xlabel, hollow, even=0.01)))
    probes = {row["n"] for row in rows if row.get("n")}
    xlabel = "mean loss, nats a token" + (f" (n = {probes.pop()})" if len(probes) == 1 else "")
    for name, each in means.items():
        found = {idea: Measure(mean, mean, mean, 1, "nats", "seeds") for idea, mean in each.items()}
        panels.append(Panel(name, _ideas(found, f"Ideas, {name}", xlabel, hollow)))
    return panels


def updating_panels(view: View) -> list[Panel]:
    """What renewing the mixture while a text goes on gains over keeping the first one, a panel a family."""
    panels = []
    for family, names in view.families.items():
        rows: dict[str, dict[str, Measure]] = {}
        for row in (row for name in names for row in view.rows("updating", scale=name) if row["way"] != "fixed"):
            gain = Measure(row["gain"], row["gain_low"], row["gain_high"], row["n"], "nats")
            rows.setdefault(row["way"], {})[row["scale"]] = gain
        if rows:
            n = max(gain.n for each in rows.values() for gain in each.values())
            xlabel = f"loss saved, nats a token (n = {n})"
            panels.append(Panel(family, figures.rate_dots(rows, title=f"Updating, {family}", xlabel=xlabel, share=False)))
    return panels


def adviser_panels(view: View) -> list[Panel]:
    """How often each adviser's way was the best or close to it."""
    found = {row["adviser"]: {"": rate_of(row)} for row in view.results.get("advisers") or []}
    if not found:
        return []
    n = max(rate.n for each in found.values() for rate in each.values())
    title = "Advice that was right"
    return [Panel(title, figures.rate_dots(found, title=title, xlabel=f"libraries, % (n = {n})"))]


def _ideas(found: Mapping[str, Measure], title: str, xlabel: str, hollow: Sequence[str], even: float = 0.0) -> str:
    ordered = dict(sorted(found.items(), key=lambda item: item[1].value))
    return figures.value_dots(ordered, title=title, xlabel=xlabel, hollow=hollow, marked=[PLAIN], even=even)


def _rates(series: Mapping[str, Sequence[tuple[float, Measure]]], what: str, xlabel: str, ticks: Sequence[float]) -> str:
    return figures.curves(series, title=f"{what}: {xlabel}", xlabel=xlabel, ylabel="probes won, %", ticks=ticks)
