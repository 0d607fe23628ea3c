"""What people see: lines, tables and bars on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asterism.core.words import counted, span

if TYPE_CHECKING:
    from asterism.constellation.mixture import Mixture
    from asterism.models.fitting import AdapterReport

BAR = 24
WIDEST = 12
"""Domains up to which a square table is shown."""


def line(text: str) -> None:
    """One plain line."""
    Console(highlight=False, soft_wrap=True).print(escape(text))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table under a title; columns are numbers, but for the first and those without a name. What is too wide goes on in the next line."""
    shown = Table(header_style="bold")
    for place, name in enumerate(columns):
        shown.add_column(name, justify="right" if place and name else "left", overflow="fold")
    line(f"\n{title}")
    for row in rows:
        shown.add_row(*map(escape, row))
    Console().print(shown)


def adapter_table(title: str, report: AdapterReport) -> None:
    """Ranks and errors of an adapter by kind of matrix, and what it leaves out."""
    from asterism.merge.adapting import left_out, rows

    table(title, ("matrices", "number", "rank", "relative error"), rows(report))
    if report.left_out:
        line(left_out(report))


def bar(value: float, largest: float, width: int = BAR) -> str:
    """A bar of `width` characters at `largest`; negative values are drawn lighter."""
    length = round(width * min(1.0, abs(value) / largest)) if largest else 0
    return ("█" if value >= 0 else "░") * length


def shares_line(shares: Mapping[str, float], generalist: float = 0.0) -> str:
    """`medical 62 %, legal 30 %; generalist 8 %`, largest first."""
    told = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
    return f"{told}; generalist {generalist:.0%}" if generalist else told


def written_lines(mixture: Mixture, form: str, out: object, adapter: Mapping[str, Any]) -> None:
    """What was written of a mixture, where, and what an adapter of it misses."""
    line(f"mixture: {shares_line(mixture.shares, mixture.generalist)}")
    line(f"{form}: {out}")
    if adapter:
        missed = f"largest relative error {max(adapter['errors'].values()):.2g}"
        line(f"{missed}; {len(adapter['left_out'])} changed parameters fit in no adapter")


def answers_table(answers: Sequence[Mapping[str, Any]]) -> None:
    """Each query, its answer, and the mixture it was answered with."""
    for one in answers:
        line(f"> {one['query']}")
        line(one["answer"].strip() or "(nothing)")
        line(f"  {shares_line(one['shares'], one['generalist'])}; entropy {one['entropy']:.2f} bits\n")


def explanation_tables(found: Mapping[str, Any]) -> None:
    """Coefficients as bars, the evidence and the mixture, and who is most active in each block."""
    largest, losses, shares = max(map(abs, found["coefficients"].values())), found["losses"], found["shares"]

    def row(name: str, coefficient: float | None, share: float | None) -> list[str]:
        drawn = ["", ""] if coefficient is None else [f"{coefficient:.3f}", bar(coefficient, largest)]
        shown = [f"{values[name]:{form}}" if name in values else "" for values, form in ((losses, ".3f"), (found["nodes"], ".0%"))]
        return [name, *drawn, shown[0], "" if share is None else f"{share:.0%}", shown[1]]

    ranked = sorted(found["coefficients"].items(), key=lambda item: -item[1])
    rows = [row(name, value, shares.get(name)) for name, value in ranked]
    if found["generalist"] or losses:
        rows.append(row("generalist", None, found["generalist"]))
    table("What the text asks for", ["candidate", "coefficient", "", "loss on it", "share", "nodes led"], rows)
    line(f"entropy {found['entropy']:.2f} of at most {found['largest_entropy']:.2f} bits; deltas x {found['scale']:g}")
    names = found["specialists"]
    layers = [[str(layer["layer"]), layer["most"], *(f"{layer['held'][name]:.0%}" for name in names)] for layer in found["layers"]]
    table("Nodes led by activation, block by block", ["block", "most", *names], layers)


def diagnosis_tables(found: Mapping[str, Any]) -> None:
    """Collinearity, what other domains leave of each, retrieval, order sensitivity, and the advice with its reason."""
    domains, cosines = found["domains"], found["collinearity"]
    if len(domains) <= WIDEST:
        rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(domains, cosines["pairs"], strict=True)]
        table("Collinearity of the centroids (cosine)", ["", *domains], rows)
    basis = "none" if cosines["post"] is None else f"{cosines['post']:.3f}"
    line(f"mean {cosines['mean']:.3f}, after centring {cosines['centred_mean']:.3f}, of the basis {basis}")
    own = found["retrieval"]["by_domain"]
    parts = zip(domains, found["counts"], found["residuals"]["gram_schmidt"], found["residuals"]["unique"], strict=True)
    rows = [[name, str(n), f"{left:.3f}", f"{unique:.3f}", _rate(own.get(name, {}))] for name, n, left, unique in parts]
    table("Domains", ["domain", "probes", "left by Gram-Schmidt", "unique", "finds itself (95 %)"], rows)
    index = found["retrieval"]
    line(f"retrieval of {index['n']} left-out probes: top 1 {_rate(index)}, top 3 {_rate(index, 'top3')}")
    if order := found["order"]:
        orders = f"{'all' if order['exhaustive'] else 'sampled'} {order['orders']} orders"
        line(
            f"Gram-Schmidt over {orders}: {order['unsteady']:.0%} of probes change domain, the first domain wins {order['first_wins']:.0%}"
        )
    line(f"\nadvice: {found['advice']}\n{found['reason']}")
    for note in found["notes"]:
        line(f"note: {note}")


def comparison_tables(found: Mapping[str, Any]) -> None:
    """A router's loss, what it gains over each rival, and its load."""
    own = found["router_loss"]
    rows = [["router", f"{own['loss']:.3f}", span(own["low"], own["high"]), "", ""]]
    for rival in found["rivals"]:
        gain = f"{rival['gain']:+.3f} ({span(rival['gain_low'], rival['gain_high'], '+.3f')})"
        rows.append([rival["name"], f"{rival['loss']:.3f}", span(rival["low"], rival["high"]), gain, f"{rival['rate']:.0%}"])
    title = f"Losses on {counted(found['texts'], 'text')}, nats a token"
    table(title, ["model", "loss", "95 %", "the router saves (95 %)", "texts won"], rows)
    _loads(found)


def tokens_table(found: Mapping[str, Any]) -> None:
    """Who leads on which tokens of a text, all blocks together, and the router's load."""
    names, shares = found["models"], found["shares"]
    means = {name: [sum(column) / len(column) for column in zip(*shares[name], strict=True)] for name in names}
    rows = []
    for place, token in enumerate(found["tokens"]):
        first = max(names, key=lambda name, place=place: means[name][place])
        rows.append([repr(token)[1:-1], first, *(f"{means[name][place]:.0%}" for name in names)])
    table("Weights on every token, mean over blocks", ["token", "most", *names], rows)
    if found["left_out"]:
        line(f"The text goes on; its last {found['left_out']} tokens were not read (--max-length, or the model's positions).")
    _loads(found)


def _loads(found: Mapping[str, Any]) -> None:
    names = found["models"]
    rows = []
    for own in found["blocks"]:
        mass = dict.fromkeys(names, 0.0)
        for expert, share in zip(own["experts"], own["mass"], strict=True):
            mass[expert["model"]] += share
        rows.append([str(own["block"]), f"{own['entropy']:.2f}", f"{own['effective']:.2f}", *(f"{mass[name]:.0%}" for name in names)])
    table("Load of each block's gate", ["block", "entropy, bits", "effective experts", *names], rows)
    if "report" in found:
        line(f"report: {found['report']}")


def _rate(found: Mapping[str, Any], name: str = "top1") -> str:
    if found.get(name) is None:
        return "unknown"
    return f"{found[name]:.0%} ({found[f'{name}_low']:.0%}-{found[f'{name}_high']:.0%})"
