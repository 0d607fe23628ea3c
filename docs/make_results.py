"""python docs/make_results.py [--check]: write docs/results.md from the JSON that experiments and benchmarks wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "who-wins.svg"
EXPERIMENT = ROOT / "experiments" / "constellation"
MERGES = ROOT / "experiments" / "merge" / "results.json"
ROUTING = ROOT / "experiments" / "route" / "results.json"
FUSION = ROOT / "experiments" / "fuse" / "results.json"
BENCHMARKS = ROOT / "benchmarks" / "results.json"
VLLM = ROOT / "benchmarks" / "serve_vllm.json"
sys.path.insert(0, str(ROOT))  # experiments/ is no installed package

from asterism.constellation.calibration import Calibration  # noqa: E402
from asterism.constellation.settings import MixtureSettings  # noqa: E402
from asterism.core.statistics import wilson  # noqa: E402
from asterism.report.figures import win_bars  # noqa: E402
from asterism.report.findings import LABELS  # noqa: E402
from experiments.constellation import summaries, targets  # noqa: E402
from experiments.constellation.advice import CLOSE  # noqa: E402
from experiments.constellation.view import View  # noqa: E402
from experiments.fuse import summaries as fusions  # noqa: E402
from experiments.fuse.report import size  # noqa: E402
from experiments.fuse.view import View as Fusions  # noqa: E402
from experiments.route import summaries as routes  # noqa: E402
from experiments.route.view import View as Routes  # noqa: E402
from experiments.tables import Table  # noqa: E402

MERGED = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties", "breadcrumbs", "della")
LIMITS = {
    "copy_ratio_fp32": "at least 0.9", "copy_ratio_bf16": "at least 0.9", "naive_speedup_fp32": "at least 8",
    "naive_speedup_bf16": "at least 8",
    "forward_ratio": "at least 0.9", "one_by_one_speedup": "at least 5", "coefficients_ms_1000": "under 5", "open_50_s": "under 1",
    "open_50_mb": "under 200", "help_s": "under 0.5", "prefill_ratio": "about 1", "fast_ratio": "about 1",
    "linear_speedup": "at least 2.5", "task_arithmetic_speedup": "at least 2.5", "slerp_speedup": "at least 3",
    "dare_ties_speedup": "at least 3", "ties_speedup": "at least 8", "breadcrumbs_speedup": "at least 8", "della_speedup": "at least 8",
    "dense_ratio": "at least 0.8", "seconds_12x12": "under 60", "peak_gb": "under 1",
    "linear_copy_ratio": "at most 4", "ties_size_ratio": "about 2", "ties_models_ratio": "about 2",
    "step_ratio": "at most 1.3", "memory_ratio": "at most 1.5",
    "batch16_bound_ratio": "at least 0.85", "batch16_lowrank_ratio": "at least 0.7", "batch16_truncated_ratio": "at least 0.7",
    "batch1_ratio": "at least 0.85", "first_token_ratio": "at most 1", "memory_10th_ratio": "about 1", "vllm_bound_ratio": "at least 0.85",
    "vllm_bound_ratio_16": "at least 0.85", "vllm_lora_ratio": "above 1", "vllm_lora_ratio_16": "above 1",
    "vllm_single_cost": "at most 1.15", "vllm_single_cost_16": "at most 1.15",
    "wrong": "0", "errors": "0", "left_behind": "0",
    **{f"{name}_memory_ratio": "at most 0.5" for name in MERGED},
}  # fmt: skip
HEAD = """# What was measured

Written by `docs/make_results.py` from `results.json`, `ideas.json` and `updating.json` of `experiments/constellation`, `results.json`
of `experiments/merge`, `experiments/route` and `experiments/fuse`, and `results.json` and `serve_vllm.json` of `benchmarks`; `make check`
holds it in step, and a part whose JSON has not been made yet is left out. No figure here was typed by hand.
[experiments/LOG.md](../experiments/LOG.md) says what was tried and what failed.
"""


def read(path: Path) -> Any:
    """A JSON file, or None where it has not been made yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown(made: Table, level: int = 3) -> list[str]:
    """A table with its heading and note; nothing where it is empty."""
    if not made.rows or made.empty:
        return []
    rows = [["–" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in made.rows]
    note = [f"{made.note}\n"] if made.note else []
    return [f"{'#' * level} {made.title}\n", *note, table(list(made.columns), rows)]


def ladder(results: Mapping[str, Any]) -> list[str]:
    """Everything that the ladder measured."""
    view = View(results)
    return [*measured_on(view), *held(view), *everyone(view), *geometry(view), *calibrated(view), *advice(view), *sizes(view)]


def measured_on(view: View) -> list[str]:
    """The rungs and how they were measured."""
    rows = [
        [r["name"], r["family"], f"{r['parameters']:,}", f"{r['blocks']} x {r['hidden']}", targets.mixed(view, r["name"]) or "–"]
        for r in view.rungs
    ]
    rows += [[r["name"], r["family"], "–", "–", f"left out, training diverged: {r['diverged']}"] for r in view.diverged]
    machine = ", ".join(f"{key} {value}" for key, value in view.results.get("machine", {}).items())
    return [
        "## The ladder\n",
        f"`python -m experiments.constellation`, `{view.results.get('ladder', '')}` ladder: at every rung a generalist trained from",
        f"nothing and {len(view.domains)} specialists ({', '.join(view.domains)}) a seed (seeds {', '.join(map(str, view.seeds))}), the",
        f"same test probes everywhere ({machine}).",
        "Win rate: share of probes with the lower loss, ties half, 95 % Wilson interval; loss in nats a token; over seeds a probe counts",
        "once. `whole`: the mixture is made from the very text that is scored, as the paper does it; `continuation`: from its first half,",
        "scored on the second. What the paper claims is held against these figures in [claims.md](claims.md).\n",
        table(["rung", "family", "parameters", "blocks x width", "mixed by the default"], rows),
    ]


def held(view: View) -> list[str]:
    """The default against the numbers asked of it."""
    made = targets.target_tables(view)
    if not made:
        return []
    counted = ", ".join(f"{outcome} {count}" for outcome, count in targets.kept(view).items())
    costs = targets.passes(len(view.domains))
    reading = [[f"`{row['candidate']}`", *(str(row[key]) for key in ("reading", "query", "token"))] for row in costs]
    return [
        "## The default against its targets\n",
        "What was asked of the default on test probes. A win rate is `met` where its interval's lower end reaches the number; where so",
        "few probes allow no such lower end even at 100 %, the rate itself must reach it (`as far as n allows`); else it is `missed`. The",
        f"mean loss is asked to be at or below the logit ensemble's. Rung by rung: {counted}.",
        f"`{targets.POOLED}`: the same probes are asked at every rung, so a probe's wins are averaged over rungs and it counts once.\n",
        *(part for each in made for part in markdown(each)),
        *markdown(summaries.general(view)),
        "Passes of one model that a query and a generated token cost:\n",
        table(["candidate", "reads the query", "passes a query", "passes a token"], reading),
        *markdown(summaries.layers(view)),
    ]


def everyone(view: View) -> list[str]:
    """All candidates, compactly."""
    made = [part for task, protocol in summaries.CELLS for part in markdown(summaries.everyone(view, task, protocol))]
    if not made:
        return []
    sizes = [row["n"] for row in view.rows("losses", group="all")]
    widest = 100 * (0.5 - wilson(min(sizes) / 2, min(sizes))[1])
    lines = view.results.get("candidates", {}).get(view.names[0], {})
    return [
        "## Everyone\n",
        "Mean loss; per cent of the probes won against generalist / best task arithmetic / best single specialist (oracle); lowest mean",
        f"loss first. An interval reaches at most {widest:.0f} points to either side; `results.json` and the ladder's report have all of",
        "them.\n",
        *made,
        f"What each candidate is, at {view.names[0]}:\n",
        "\n".join(f"- `{name}`: {line}" for name, line in lines.items()) + "\n",
    ]


def geometry(view: View) -> list[str]:
    """Collinearity, retrieval, spread."""
    made = [part for each in summaries.geometry(view) for part in markdown(each)]
    return ["## Geometry\n", *made] if made else []


def calibrated(view: View) -> list[str]:
    """The numbers that were fitted."""
    return markdown(summaries.calibration(view), 2)


def advice(view: View) -> list[str]:
    """Whether `diagnose` was right."""
    made = markdown(summaries.advisers(view), 2)
    if not made:
        return []
    return [
        made[0],
        f"Right: the way advised loses at most {CLOSE:g} nats a token more than the best way, on the mean over both tasks and protocols of",
        "the test probes. `measured`: what `diagnose` says of a calibrated index; `geometry`: what it says by collinearity and retrieval",
        "alone; beside them, always composing and always merging by task arithmetic or the uniform average.\n",
        *made[1:],
        *markdown(summaries.advice(view)),
    ]


def sizes(view: View) -> list[str]:
    """Library size."""
    made = markdown(summaries.sizes(view), 2)
    if not made:
        return []
    return [
        made[0],
        "`python -m experiments.constellation.sizes`: the domains are divided further; libraries are nested, and each is calibrated for",
        "itself. Cross-domain probes, whole; losses in nats a token; seconds a query are medians with the models loaded.\n",
        *made[1:],
    ]


def choice(made: Mapping[str, Any]) -> list[str]:
    """How the default was chosen: the ideas side by side."""
    found, plain = markdown(summaries.ideas(made["rows"])), Calibration()
    return [
        "## How the default was chosen\n",
        f"`python -m experiments.constellation.ideas`: {made['probes']} validation probes, which no table above scores, first seed of each",
        "rung. Mean loss in nats a token over both tasks and protocols (in brackets: cross-domain probes, whole, won against the best",
        "single specialist). `cost`: forward passes of one model to read a query, a backward pass counted as two. Unless its name says",
        f"otherwise an idea has temperature {plain.temperature:g}, delta scale {plain.scale:g}, prior {plain.prior:g}, the generalist",
        f"among the candidates, K = {MixtureSettings().top_k}, and mixes all parameters.\n",
        *found[1:],
    ]


def renewed(made: Mapping[str, Any]) -> list[str]:
    """Whether the mixture should follow the text."""
    found = markdown(summaries.updating(made["rows"]), 3)
    return [
        found[0],
        f"`python -m experiments.constellation.updating`: the mixture of the first {made['read']} tokens is kept, or made again after",
        "every so many; nats a token gained over keeping it, on the rest of validation probes (95 % bootstrap interval). `kept`: keys and",
        "values of older mixtures stay; `rebuilt`: they are computed anew.\n",
        *found[1:],
    ]


CELLS = (("cross", "whole"), ("cross", "continuation"), ("single", "whole"))


def merges(made: Mapping[str, Any]) -> list[str]:
    """Static merges, each at its best setting, beside the composition and its rivals."""
    parts = [
        "## Static merges\n",
        "`python -m experiments.merge`: every method that can merge all specialists of a library, over its usual grid; the setting with",
        "the lowest mean loss on validation probes is scored on the ladder's test probes. Mean loss (per cent of the probes won against",
        "the generalist / best task arithmetic / the default); two domains whole, two domains by continuation, one domain whole; lowest",
        "loss first. Not static: the default and `fast` (a mixture a probe), `emr` and the routers (a specialist a probe), the ensemble.",
        "`task_arithmetic` is the best of scales from 0.05 to 1, by the test itself; `task_arithmetic_paper` the best of the paper's 0.3,",
        "0.5 and 1, which the ladder's tables tell of.\n",
    ]
    for scale in dict.fromkeys(row["scale"] for row in made["losses"]):
        losses = {(row["candidate"], row["task"], row["protocol"]): row["loss"] for row in _pooled(made["losses"], scale)}
        wins = {(r["candidate"], r["rival"], r["task"], r["protocol"]): r["rate"] for r in _pooled(made["table"], scale)}
        names = sorted({name for name, *_ in losses}, key=lambda name: (losses[name, *CELLS[0]], name))
        rows = [[f"`{name}`", _settings(made, scale, name), *(_cell(losses, wins, name, *cell) for cell in CELLS)] for name in names]
        columns = [
            "candidate",
            "chosen, seed by seed",
            *(f"{'two domains' if task == 'cross' else 'one domain'}, {p}" for task, p in CELLS),
        ]
        parts += [f"### {scale}\n", table(columns, rows)]
    return parts


def _pooled(rows: list[dict[str, Any]], scale: str) -> list[dict[str, Any]]:
    """A rung's rows over all seeds, or of its one seed."""
    own = [row for row in rows if row["scale"] == scale]
    return [row for row in own if row["seed"] == "all"] or own


def _settings(made: Mapping[str, Any], scale: str, name: str) -> str:
    chosen = [row["parameters"] for row in made["tuned"] if (row["scale"], row["method"]) == (scale, name)]
    told = [", ".join(f"{key} {value:g}" if not isinstance(value, list) else " + ".join(value) for key, value in p.items()) for p in chosen]
    return "; ".join(dict.fromkeys(filter(None, told))) or "–"


def _cell(losses: Mapping[tuple, float], wins: Mapping[tuple, float], name: str, task: str, protocol: str) -> str:
    rates = [wins.get((name, rival, task, protocol)) for rival in ("generalist", "task_arithmetic", "default")]
    won = " / ".join("–" if rate is None else f"{100 * rate:.0f}" for rate in rates)
    return f"{losses[name, task, protocol]:.3f} ({won})"


def routing(made: Mapping[str, Any]) -> list[str]:
    """Routing between experts: the ladder of degrees of freedom, training, everyone, the curve, and the advice of `compat`."""
    view, model = Routes(made), made["model"]
    counts = [f"{view.called(own['name'])} {own['adapt']} / {own['chosen']} / {own['tested']}" for own in made["targets"]]
    return [
        "## Routing between experts\n",
        f"`python -m experiments.route`: a generalist of {model['parameters']:,} parameters trained from nothing, experts of which only",
        f"the MLPs were trained, seeds {', '.join(map(str, view.seeds))}. Texts of each target to train on / to choose by / held out:",
        f"{'; '.join(counts)}.",
        "A gain pairs the losses of two ways text by text (95 % bootstrap interval over texts; a text's losses are averaged over seeds",
        "first). What the paper claims is held against these figures in [claims.md](claims.md).\n",
        *(part for each in routes.tables(view) for part in markdown(each)),
    ]


def fusing(made: Mapping[str, Any]) -> list[str]:
    """Fusion across families: what the sources add, everyone in each part, variants, gates and what became of B."""
    view = Fusions(made)
    tasks = [
        f"{view.called(own['name'])} {own['trained']} / {own['replayed']} / {own['chosen']} / {own['tested']}" for own in made["tasks"]
    ]
    return [
        "## Fusing experts of different families\n",
        f"`python -m experiments.fuse`, seeds {', '.join(map(str, view.seeds))}. {size(view)}",
        f"Examples of each task to train an expert on / to replay / to choose by / held out: {'; '.join(tasks)}.",
        "A gain pairs the marks of two candidates example by example (95 % bootstrap interval; averaged over seeds first). What the paper",
        "claims is held against these figures in [claims.md](claims.md).\n",
        *(f"- {line}" for line in fusions.lines(view)),
        "",
        *(part for each in fusions.tables(view) for part in markdown(each)),
    ]


def speed(kept: list[dict[str, Any]]) -> list[str]:
    """The benchmarks' metrics beside their limits; vLLM's, from an environment of its own, among them."""
    kept = [*kept, *(read(VLLM) or [])]
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
    sources: tuple[tuple[Path, Callable[[Any], list[str]]], ...] = (
        (EXPERIMENT / "results.json", ladder),
        (EXPERIMENT / "ideas.json", choice),
        (EXPERIMENT / "updating.json", renewed),
        (MERGES, merges),
        (ROUTING, routing),
        (FUSION, fusing),
        (BENCHMARKS, speed),
    )
    for path, told in sources:
        made = read(path)
        if made is not None:
            parts += told(made)
    return "\n".join(parts)


def picture(view: View) -> str:
    """The default and the paper's composition against each rival, cross-domain probes by continuation, at the largest rung."""
    largest = max(view.rungs, key=lambda rung: rung["parameters"])["name"]
    rivals = (*summaries.RIVALS, "ensemble")
    found = {
        candidate: {rival: rate for rival in rivals if (rate := view.win(largest, candidate, rival, "cross", "continuation"))}
        for candidate in ("default", "paper")
    }
    n = max(rate.n for rates in found.values() for rate in rates.values())
    return win_bars({LABELS[c]: [(LABELS[r], m.value, m.low, m.high) for r, m in rates.items()] for c, rates in found.items()}, n)


def files() -> dict[Path, str]:
    """Everything that is made here: the page, and the picture where the ladder has been measured."""
    results = read(EXPERIMENT / "results.json")
    drawn = {PICTURE: picture(View(results))} if results and View(results).rows("table") else {}
    return {PAGE: page(), **drawn}


def main() -> None:
    """Write the page and the picture, or with --check say that they are not in step."""
    for path, text in files().items():
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            sys.exit(f"docs/{path.name} is not in step with the JSON: run `python docs/make_results.py`")


if __name__ == "__main__":
    main()
