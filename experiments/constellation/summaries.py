"""A ladder's results as the compact tables of docs/results.md: losses and wins, geometry, calibration, advice, library size, ideas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.findings import TASKS
from experiments.constellation import analysis
from experiments.constellation.analysis import Value
from experiments.constellation.view import SPACES, View, rate_of
from experiments.measures import Measure, over_seeds
from experiments.tables import Table

CELLS = tuple((task, protocol) for task in ("cross", "single") for protocol in ("whole", "continuation"))
RIVALS = ("generalist", "task_arithmetic", "best_single")
NUMBERS = ("temperature", "delta_scale", "generalist", "prior", "fast_prior", "fast_scale", "fast_generalist")
"""What calibration fits."""
Rows = Sequence[Mapping[str, Any]]


def everyone(view: View, task: str, protocol: str) -> Table:
    """Every candidate at every rung: mean loss, and the share of probes won against each of RIVALS; lowest mean loss first."""
    rows = view.rows("losses", task=task, protocol=protocol, group="all", seed=view.seed)
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row["candidate"], []).append(row["loss"])
    names = sorted(means, key=lambda candidate: sum(means[candidate]) / len(means[candidate]))
    n = sorted({row["n"] for row in rows})
    cells = tuple((f"`{name}`", *(_won(view, rung, name, task, protocol) for rung in view.names)) for name in names)
    title = f"{TASKS[task].capitalize()} probes, {protocol} (n = {', '.join(map(str, n))})"
    return Table("Everyone", title, ("candidate", *view.names), cells)


def _won(view: View, rung: str, candidate: str, task: str, protocol: str) -> str | None:
    loss = view.loss(rung, candidate, task, protocol)
    rates = [view.win(rung, candidate, rival, task, protocol) for rival in RIVALS]
    told = " / ".join("–" if rate is None else f"{100 * rate.value:.0f}" for rate in rates)
    return loss and f"{loss.value:.3f}; {told}"


def geometry(view: View) -> list[Table]:
    """Collinearity, retrieval, and how mixtures spread."""
    return [table for table in (analysis.collinearities(view), retrieval(view), spread(view)) if not table.empty]


def retrieval(view: View) -> Table:
    """Is a single-domain probe's own specialist first, or among the first three: a row a space, mean over seeds."""
    rows: list[tuple[Value, ...]] = []
    for whose, space in SPACES.items():
        rows.append((f"{space}: first", *(view.retrieval(name, whose) for name in view.names)))
        rows.append((f"{space}: among three", *(_among(view, name, space) for name in view.names)))
    note = "Single-domain probes whose own specialist has the largest coefficient; each probe counted once."
    return Table("Retrieval", "Does a text find its own specialist?", ("space", *view.names), tuple(rows), note)


def _among(view: View, rung: str, space: str) -> Measure | None:
    return over_seeds((row["top3"] for row in view.each_seed("retrieval", scale=rung, space=space)), "share")


def spread(view: View) -> Table:
    """Gini of the coefficients and entropy of the weights, for the default and the paper's composition."""
    rows = []
    for candidate in ("default", "paper"):
        for task in ("single", "cross"):
            for key, told in (("gini", "Gini"), ("entropy", "entropy, bits")):
                rows.append((f"`{candidate}`, {task}: {told}", *(view.mixture(name, key, candidate, task) for name in view.names)))
    note = "Gini over all coefficients; entropy of a node's weights, the generalist's own among them. Mean and range over seeds."
    return Table("Spread", "How mixtures spread", ("", *view.names), tuple(rows), note)


def general(view: View) -> Table:
    """What composing costs on general text, which needs no specialist: loss above the generalist's, beside what is allowed."""
    found = view.rows("general", seed=view.seed)
    kinds = dict.fromkeys((row["candidate"], row["protocol"]) for row in found)
    at = {(row["candidate"], row["protocol"], row["scale"]): row for row in found}
    rows = tuple((f"`{name}`, {protocol}", *(_excess(at.get((name, protocol, rung))) for rung in view.names)) for name, protocol in kinds)
    allowed = max((row["allowed"] for row in found), default=0.0)
    note = "Nats a token above the generalist's loss on held-out general text, with 95 % bootstrap intervals; `met` where the upper end is "
    note += f"at most {allowed:g} (n = {', '.join(map(str, sorted({row['n'] for row in found})))})."
    return Table("General text", "General text, which needs no specialist", ("", *view.names), rows, note)


def _excess(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    return f"{Measure(row['excess'], row['low'], row['high'], row['n'], 'nats')} {'met' if row['met'] else 'missed'}"


def layers(view: View) -> Table:
    """Where the change of the specialists sits: the default's mean loss when fewer blocks are mixed, with the share of parameters."""
    each = [[row["layers"] for row in view.rows("layers", mixture="default", scale=name)] for name in view.names]
    labels = dict.fromkeys(max(each, key=lambda own: len(set(own)), default=[]))  # of the rung with the most blocks
    rows = tuple((label, *(_with_layers(view, name, label) for name in view.names)) for label in labels)
    note = (
        "The default's mixture on cross-domain probes, whole, first seed: mean loss (share of the parameters mixed); bold: lowest on the "
    )
    note += "validation probes. `all` adds embeddings, final norm and head to the blocks."
    return Table("Layers", "Where the change sits", ("blocks mixed", *view.names), rows, note)


def _with_layers(view: View, rung: str, label: str) -> str | None:
    rows = view.pooled("layers", scale=rung, mixture="default", layers=label, protocol="whole", task="cross")
    told = f"{rows[0]['loss']:.3f} ({rows[0]['share']:.0%})" if rows else None
    return f"**{told}**" if rows and rows[0].get("chosen") else told


def calibration(view: View) -> Table:
    """The numbers that were fitted, a row a rung and seed."""
    rows = tuple((row["scale"], str(row["seed"]), *(row.get(name) for name in NUMBERS)) for row in view.rows("calibration"))
    title = "What calibration fitted, on validation probes"
    return Table("Calibration", title, ("rung", "seed", *(f"`{name}`" for name in NUMBERS)), rows, "", 2)


def ideas(rows: Rows) -> Table:
    """Every idea on every rung: mean loss, and how often it beats the best single specialist on cross-domain probes, whole."""
    scales, names = _distinct(rows, "scale"), _distinct(rows, "idea")
    known = {(row["scale"], row["idea"]): row for row in rows}
    means = {name: [known[scale, name]["mean"] for scale in scales if (scale, name) in known] for name in names}
    cells = []
    for name in sorted(names, key=lambda name: sum(means[name]) / len(means[name])):
        costs = {row["cost"] for row in rows if row["idea"] == name and row["cost"] is not None}
        cells.append((name, ", ".join(map(str, sorted(costs))) or None, *(_idea(known.get((scale, name))) for scale in scales)))
    return Table("Ideas", "Ideas side by side", ("idea", "cost", *scales), tuple(cells), "", 2)


def _idea(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    rate = row.get("whole/cross > best single")
    return f"{row['mean']:.4f}" + ("" if rate is None else f" ({rate:.0%})")


def updating(rows: Rows) -> Table:
    """What renewing the mixture gains over keeping the first one, in nats a token."""
    scales, ways = _distinct(rows, "scale"), [way for way in _distinct(rows, "way") if way != "fixed"]
    known = {(row["scale"], row["way"]): row for row in rows}
    cells = tuple((way, *(_gain(known.get((scale, way))) for scale in scales)) for way in ways)
    return Table("Updating", "Renewing the mixture while a text goes on", ("way", *scales), cells)


def _gain(row: Mapping[str, Any] | None) -> Measure | None:
    return None if row is None else Measure(row["gain"], row["gain_low"], row["gain_high"], row["n"], "nats")


def advisers(view: View) -> Table:
    """How often each adviser was right, over all libraries."""
    rows = tuple((row["adviser"], rate_of(row), row["n"]) for row in view.results.get("advisers") or [])
    return Table("Advice", "Is the advice right?", ("adviser", "right", "libraries"), rows)


def advice(view: View) -> Table:
    """Library by library: what was advised, which way was best, what each lost."""
    found = view.rows("advice")
    ways = list(dict.fromkeys(way for row in found for way in row["losses"]))
    rows = [
        (
            row["scale"],
            str(row["seed"]),
            *(_advised(row, who) for who in ("measured", "geometry")),
            row["best"],
            *(_plain(row["losses"].get(way)) for way in ways),
        )
        for row in found
    ]
    columns = ("library", "seed", "advice (measured)", "geometry's", "best way", *(f"{way}, nats" for way in ways))
    return Table("Advice", "Library by library", columns, tuple(rows), "", 2)


def _advised(row: Mapping[str, Any], who: str) -> str:
    return row[who] if row["right"][who] else f"{row[who]} (wrong)"


def sizes(view: View) -> Table:
    """Libraries of 2 to 32 specialists: retrieval, win rates, losses and cost of a query."""
    names, rates = dict.fromkeys(row["scale"] for row in view.rows("sizes")), ("top1", "rate_generalist", "rate_ta", "rate_best_single")
    found = [row for name in names for row in sorted(view.pooled("sizes", scale=name), key=lambda row: row["size"])]
    rows = tuple(
        (
            row["size"],
            *(rate_of(row, key) if row.get(key) is not None else None for key in rates),
            *(_plain(row.get(key)) for key in ("loss", "fast_loss", "ensemble_loss", "ta_loss", "generalist_loss")),
            *(_plain(row.get("cost", {}).get(key)) for key in ("query_s", "fast_query_s", "index_s")),
            _passes(row.get("cost", {})),
        )
        for row in (_with_fast(row) for row in found)
    )
    columns = ("specialists", "finds its own", "> generalist", "> task arithmetic", "> best single", "loss", "`fast`", "ensemble")
    columns += ("task arithmetic", "generalist", "query, s", "`fast`, s", "index, s", "models that read a query (ensemble)")
    return Table("Sizes", f"Library size ({', '.join(names)})", columns, rows)


def _with_fast(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the fast mode's mean loss on the same probes."""
    same = {key: row.get(key) for key in ("protocol", "task")} | {"probes": "all", "candidate": "fast"}
    cell = next((cell for cell in row.get("cells", []) if all(cell.get(key) == value for key, value in same.items())), {})
    return {**row, "fast_loss": cell.get("loss")}


def _plain(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _passes(cost: Mapping[str, float]) -> str | None:
    return f"{cost['passes']:g} ({cost['ensemble_passes']:g})" if {"passes", "ensemble_passes"} <= set(cost) else None


def _distinct(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
