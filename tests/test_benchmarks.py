"""Every benchmark runs in its quick setting and ends with one JSON line that holds the figures it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
METRICS = {
    "startup": {"help_s", "import_s"},
    "compose": {"copy_ratio_fp32", "copy_ratio_bf16", "naive_speedup_fp32", "naive_speedup_bf16"},
    "fingerprint": {"forward_ratio"},
    "mixture": {"prefill_ratio", "fast_ratio"},
    "index": {"coefficients_ms_1000", "open_50_s", "open_50_mb"},
    "evaluate": {"one_by_one_speedup"},
    "cka": {"seconds_12x12", "peak_gb", "products_ratio", "largest_difference"},
    "merge": {"linear_copy_ratio", "ties_size_ratio", "ties_models_ratio"},
    "route": {"dense_ratio", "top1_ratio", "depth2_ratio", "training_ratio", "top1_speedup"},
    "serve": {
        "batch16_bound_ratio",
        "batch16_evidence_bound_ratio",
        "batch16_lowrank_ratio",
        "batch16_truncated_ratio",
        "one_by_one_speedup",
        "batch1_ratio",
        "first_token_ratio",
        "memory_10th_ratio",
    },
    "fuse": {"step_ratio", "memory_ratio", "deep_step_ratio", "deep_memory_ratio", "wide_step_ratio", "wide_memory_ratio"},
    "load": {"answers", "answers_per_s", "tokens_per_s", "p50_s", "p95_s", "queue_peak", "queue_bound", "rss_mb"},
}


@pytest.mark.parametrize("name", METRICS)
def test_quick_setting(name):
    done = subprocess.run([sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["name"] == name
    assert METRICS[name] <= last["metrics"].keys()
    assert all(value > 0 for key, value in last["metrics"].items() if key in METRICS[name])
    if name == "load":
        assert last["metrics"]["wrong"] == last["metrics"]["errors"] == last["metrics"]["left_behind"] == 0
    if name == "merge":
        methods = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties", "breadcrumbs", "della")
        assert {f"{method}_{kind}" for method in methods for kind in ("speedup", "memory_ratio")} <= last["metrics"].keys()
