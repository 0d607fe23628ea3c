"""Results as terminal tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asterism.report.findings import SHORT, Cell, Findings

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print, for each protocol and task, mean loss and win rates against each rival; then retrieval, correlation and advice."""
    console = console or _console()
    findings = Findings(results)
    for cell in findings.cells:
        for table in _fitting(findings, cell, console):
            console.print(table)
    if results["retrieval"]:
        console.print(_retrieval(results))
    for row in results["correlation"]:
        say = (
            f"Coefficient x activation norm against perplexity: r = {row['r']:.2f} ({row['low']:.2f} to {row['high']:.2f}), n = {row['n']}"
        )
        console.print(f"{say}{_of_seed(row, results)}", markup=False, highlight=False)
    if advice := findings.advice:
        console.print(f"Advice: {': '.join(advice)}", markup=False, highlight=False)


def _console() -> Console:
    """The terminal, or 100 columns where output goes elsewhere."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(WIDTH, console.width))


def _fitting(findings: Findings, cell: Cell, console: Console) -> list:
    """One table, or several with fewer rivals each where the console is too narrow for one."""
    rivals, tables, roomy = findings.rivals[:6], [], console.options.update(width=1000)
    for size in range(max(1, len(rivals)), 0, -1):
        chunks = [rivals[start : start + size] for start in range(0, len(rivals), size)] or [[]]
        tables = [_wins(findings, cell, chunk) for chunk in chunks]
        if all(console.measure(table, options=roomy).maximum <= console.width for table in tables):
            break
    return tables


def _wins(findings: Findings, cell: Cell, rivals: list[str]):
    from rich.markup import escape

    table = _table(f"{cell.title} (n = {findings.n(cell)})", "won against, % of probes and 95 % interval; loss in nats a token; best first")
    table.add_column("candidate", no_wrap=True, overflow="ellipsis", max_width=21)
    table.add_column("loss", justify="right", no_wrap=True)
    for rival in rivals:
        table.add_column(SHORT.get(rival, rival)[:11], justify="right", no_wrap=True)
    for name in findings.candidates(cell):
        loss, cells = findings.loss(cell, name), []
        for rival in rivals:
            row = findings.win(cell, name, rival)
            cells.append(f"{100 * row['rate']:.0f} {100 * row['low']:.0f}-{100 * row['high']:.0f}" if row else "")
        style = "bold" if name in ("default", "paper") else ""
        table.add_row(escape(name), f"{loss['loss']:.3f}" if loss else "", *cells, style=style)
    return table


def _retrieval(results: Mapping[str, Any]):
    from rich.markup import escape

    table = _table("Retrieval: does a single-domain probe find its own specialist?", "share of probes with 95 % interval")
    table.add_column("centroids from", no_wrap=True)
    for name in ("first, %", "among three, %", "n", "seed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results["retrieval"]:
        first = f"{100 * row['top1']:.0f} {100 * row['top1_low']:.0f}-{100 * row['top1_high']:.0f}"
        table.add_row(escape(row["space"]), first, f"{100 * row['top3']:.0f}", str(row["n"]), str(row["seed"]))
    return table


def _of_seed(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    return f", seed {row['seed']}" if len(results["correlation"]) > 1 else ""


def _table(title: str, caption: str):
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
