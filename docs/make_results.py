"""python docs/make_results.py [--check]: write docs/results.md from the JSON that experiments and benchmarks wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
EXPERIMENT = ROOT / "experiments" / "compose"
CANDIDATES = ("default", "paper", "joint", "specialist_space", "random", "uniform", "task_arithmetic", "ensemble_uniform", "ensemble")
CANDIDATES += ("routed_coefficient", "routed_activation", "best_single", "generalist")
RIVALS = ("generalist", "task_arithmetic", "best_single", "ensemble")
TITLES = {
    ("cross", "whole"): "Cross-domain probes, whole", ("cross", "continuation"): "Cross-domain probes, continuation",
    ("single", "whole"): "Single-domain probes, whole", ("single", "continuation"): "Single-domain probes, continuation",
}  # fmt: skip
LIMITS = {
    "copy_ratio_fp32": "at least 0.9", "copy_ratio_bf16": "at least 0.9", "naive_speedup_fp32": "at least 8",
    "naive_speedup_bf16": "at least 8",
    "forward_ratio": "at least 0.9", "one_by_one_speedup": "at least 5", "coefficients_ms_1000": "under 5", "open_50_s": "under 1",
    "open_50_mb": "under 200", "help_s": "under 0.5",
}  # fmt: skip
HEAD = """# What was measured

Written by `docs/make_results.py` from `experiments/compose/results.json`, `experiments/compose/choose.json` and
`benchmarks/results.json`; `make check` holds it in step. Nothing here was typed by hand. [experiments/LOG.md](../experiments/LOG.md)
says what was tried and what failed.
"""


def read(path: Path) -> Any:
    """A JSON file, or None where it has not been made yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def quality(results: dict[str, Any]) -> list[str]:
    """The experiment on real text: losses and win rates over all seeds."""
    seed = "all" if len(results["seeds"]) > 1 else results["seeds"][0]
    losses = {(r["protocol"], r["task"], r["candidate"]): r for r in results["losses"] if (r["seed"], r["group"]) == (seed, "all")}
    wins = {(r["protocol"], r["task"], r["candidate"], r["rival"]): r for r in results["table"] if (r["seed"], r["group"]) == (seed, "all")}
    parts = [
        "## Composition on real text\n",
        "`python -m experiments.compose --data ../shared/data --data CODE`: a GPT-2 shape of 4.3 M parameters",
        f"trained from nothing, four specialists a seed (seeds {', '.join(map(str, results['seeds']))}), the same probes for every seed.",
        "Loss in nats a token, win rate = share of probes with lower loss; 95 % intervals (bootstrap; Wilson), each probe counted once.\n",
    ]
    for (task, protocol), title in TITLES.items():
        rows = []
        for name in CANDIDATES:
            loss = losses.get((protocol, task, name))
            if loss:
                told = [share(wins.get((protocol, task, name, rival))) for rival in RIVALS]
                rows.append([f"`{name}`", f"{loss['loss']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})", *told])
        if rows:
            n = losses[protocol, task, "generalist"]["n"]
            parts += [f"### {title} (n = {n})\n", table(["candidate", "mean loss", *(f"> {rival}" for rival in RIVALS)], rows)]
    parts += ["What each candidate is:\n", "\n".join(f"- `{name}`: {line}" for name, line in results["candidates"].items()) + "\n"]
    return parts + geometry(results)


def share(row: dict[str, Any] | None) -> str:
    """A win rate with its interval."""
    return f"{row['rate']:.0%} ({row['low']:.0%} to {row['high']:.0%})" if row else "-"


def geometry(results: dict[str, Any]) -> list[str]:
    """Collinearity, retrieval, correlation, sparsity, and who leads."""
    names = results["domains"]
    cosines = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, results["collinearity"]["raw"], strict=True)]
    seen = [
        [str(r["seed"]), r["space"], f"{r['top1']:.0%} ({r['top1_low']:.0%} to {r['top1_high']:.0%})", f"{r['top3']:.0%}"]
        for r in results["retrieval"]
    ]
    facts = [
        [m["candidate"], m["task"], f"{m['entropy']:.2f}", f"{m['gini']:.2f}", ", ".join(f"{k} {v:.0%}" for k, v in m["first"].items())]
        for m in results["mixtures"]
        if m["group"] == "all"
    ]
    related = ", ".join(f"{c['r']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in results["correlation"])
    return [
        f"### Geometry\n\nCosines of the domains' centroids (seed {results['seeds'][0]}; mean {results['collinearity']['mean']:.3f}):\n",
        table(["", *names], cosines),
        "Retrieval: is a single-domain probe's own specialist first, or among the first three?\n",
        table(["seed", "space", "top 1", "top 3"], seen),
        "Mixtures (protocol whole): mean entropy in bits, Gini of the coefficients, and which specialist weighs most on how many probes:\n",
        table(["candidate", "task", "entropy", "Gini", "weighs most"], facts),
        f"Pearson correlation of coefficient x activation norm with the specialist's perplexity, a seed each: {related}.\n",
    ]


def choice(made: dict[str, Any]) -> list[str]:
    """How the default was chosen."""
    keys = ["whole/single", "whole/cross", "continuation/single", "continuation/cross", "mean"]
    rows = []
    for entry in made["tried"]:
        what = ", ".join(f"{k} {v}" for k, v in entry.items() if k != "knob" and k not in keys)
        rows.append([entry["knob"], what, *(f"{entry[key]:.3f}" for key in keys)])
    rows += [["rival", name, *(f"{entry[key]:.3f}" for key in keys)] for name, entry in made["rivals"].items()]
    chosen = ", ".join(f"{k} {v}" for k, v in made["chosen"].items())
    return [
        "## How the default was chosen\n",
        f"`python -m experiments.compose.choose`: mean loss on {made['probes']} validation probes (held-out texts that the test draw",
        f"left over), one knob after another, the first seed's specialists. Chosen: {chosen}.\n",
        table(["knob", "variant", *keys], rows),
    ]


def speed(kept: list[dict[str, Any]]) -> list[str]:
    """The benchmarks' metrics beside their limits."""
    rows = [[b["name"], f"`{m}`", f"{v:g}" if v is not None else "-", LIMITS.get(m, "")] for b in kept for m, v in b["metrics"].items()]
    where = kept[0]["machine"]
    told = f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}"
    return [
        "## Speed\n",
        f"`make bench` on {told}. Ratios are medians of paired runs in one process; above 1 we are faster.\n",
        table(["benchmark", "metric", "measured", "limit"], rows),
    ]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path, told in (
        (EXPERIMENT / "results.json", quality),
        (EXPERIMENT / "choose.json", choice),
        (ROOT / "benchmarks" / "results.json", speed),
    ):
        made = read(path)
        if made is not None:
            parts += told(made)
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != page():
        sys.exit("docs/results.md is not in step with the JSON: run `python docs/make_results.py`")
