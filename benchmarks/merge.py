"""Static merges beside mergekit: whole processes, from the command to the finished checkpoint, on the same recipe and the same files.

    python benchmarks/merge.py [--quick] [--rounds N] [--mergekit COMMAND]

Base and three checkpoints of about 500 M parameters in bfloat16 (Qwen2 shape, tied embeddings) are made on the spot. A round runs every
method once in each program, in turn; ratios are medians over rounds. Memory is the largest anonymous resident memory seen (pages of mapped
files are the page cache's). `copy` reads the inputs of a linear merge and writes them and its output once. Then TIES alone, at one,
two and four times the size and with 2 to 16 models: seconds without start-up should grow as the bytes do.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from common import options, ratio, report
from safetensors.torch import save_file

MODELS = ("one", "two", "three")
SPARSE = {"weight": 0.5, "density": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.5},
    "slerp": {"t": 0.4},
    "dare_ties": SPARSE,
    "ties": SPARSE,
    "breadcrumbs": {**SPARSE, "gamma": 0.01},
    "della": {**SPARSE, "epsilon": 0.1},
}
"""Method -> its parameters. SLERP merges base and one model, linear the three models, the others all."""
SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936,
}  # fmt: skip
QUICK = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512,
}  # fmt: skip


def main() -> None:
    """Make the models, run both programs in turn, print."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--mergekit", default=str(Path(sys.executable).with_name("mergekit-yaml")), help="its command, if it lies elsewhere"
    )
    parser.add_argument("--place", type=Path, help="folder for the models, about 15 GB; a temporary one by default")
    given = parser.parse_args()
    rounds, shape = (1, QUICK) if given.quick else (given.rounds, SHAPE)
    rival = given.mergekit if shutil.which(given.mergekit) else None
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        place = Path(folder)
        for number, name in enumerate(("base", *MODELS)):
            random_model(place / name, shape, number)
        found = {name: rivals(place, name, rounds, rival if not given.quick or name == "linear" else None) for name in METHODS}
        copies = [copied(place) for _ in range(rounds)]
        start = statistics.median(run([sys.executable, "-m", "asterism", "--help"])[0] for _ in range(rounds))
        scaling = scale(place, shape, given.quick)
    rows, metrics = [], {}
    for name, (ours, theirs) in found.items():
        seconds = [run[0] for run in ours]
        speed = ratio([run[0] for run in theirs], seconds) if theirs else None
        memory = max(run[1] for run in ours) / max(run[1] for run in theirs) if theirs else None
        metrics |= {f"{name}_speedup": speed, f"{name}_memory_ratio": memory}
        other = [statistics.median(run[0] for run in theirs), max(run[1] for run in theirs) / 1e9] if theirs else ["", ""]
        rows.append([name, statistics.median(seconds), max(run[1] for run in ours) / 1e9, *other, speed or "", memory or ""])
    metrics["linear_copy_ratio"] = ratio([run[0] for run in found["linear"][0]], copies)
    metrics |= scaling
    rows.append(["plain copies", statistics.median(copies), "", "", "", "", ""])
    columns = ["method", "ours, s", "GB", "mergekit, s", "GB", "times faster", "memory, ours / theirs"]
    notes = [
        f"start-up (asterism --help): {start:.2f} s; "
        + ("mergekit " + mergekit_version() if rival else "mergekit was not found: no ratios"),
        f"TIES, seconds for twice the bytes over once: {scaling['ties_size_ratio']:.2f} a doubling of size, "
        f"{scaling['ties_models_ratio']:.2f} a doubling of models",
    ]
    report("merge", "Static merges, whole processes", columns, rows, metrics, notes=notes)


def rivals(place: Path, method: str, rounds: int, mergekit: str | None) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """(seconds, bytes of anonymous memory) of every round, ours and mergekit's, in turn."""
    recipe = written(place, method)
    ours: list[tuple[float, int]] = []
    theirs: list[tuple[float, int]] = []
    for _ in range(rounds):
        ours.append(merged([sys.executable, "-m", "asterism", "merge", str(recipe), "OUT", "--quiet"], place / "out"))
        if mergekit:
            theirs.append(merged([mergekit, str(recipe), "OUT", "--quiet", "--no-copy-tokenizer"], place / "out"))
    return ours, theirs


def written(place: Path, method: str, models: tuple[str, ...] = MODELS) -> Path:
    """The recipe of one method over some models, as a file."""
    parameters = METHODS[method]
    if method == "slerp":
        models = models[:1]
    content: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16", "parameters": parameters}
    content["models"] = [{"model": str(place / name)} for name in models]
    if method != "linear":
        content["base_model"] = str(place / "base")
    path = place / f"{method}-{len(models)}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def merged(command: list[str], out: Path) -> tuple[float, int]:
    """Seconds and peak anonymous bytes of a merge into `out`, which is removed again."""
    try:
        return run([str(out) if word == "OUT" else word for word in command])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def run(command: list[str]) -> tuple[float, int]:
    """Seconds of a process and the most anonymous memory it was seen with (0 where the system does not tell)."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command[0]} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    return seconds, peak


def anonymous(pid: int) -> int:
    """Anonymous resident bytes of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
    except (OSError, IndexError):
        return 0


def copied(place: Path) -> float:
    """Seconds to copy the inputs of the linear merge once, and one model more: its output."""
    start = time.perf_counter()
    for name in (*MODELS, MODELS[0]):
        shutil.copyfile(place / name / "model.safetensors", place / "copy")
    seconds = time.perf_counter() - start
    (place / "copy").unlink()
    return seconds


def scale(place: Path, shape: Mapping[str, int], quick: bool) -> dict[str, float]:
    """How the time of TIES grows, start-up taken off, with the size of the models and with their number."""
    times: dict[int, float] = {}
    empty = tiny_time(place)
    for factor in (1, 2) if quick else (1, 2, 4):
        folder = place / f"size-{factor}"
        layers = shape["num_hidden_layers"] * factor
        for number, name in enumerate(("base", *MODELS[:2])):
            random_model(folder / name, {**shape, "vocab_size": 512, "num_hidden_layers": layers}, number)
        times[factor] = merged(command(written(folder, "ties", MODELS[:2])), place / "out")[0] - empty
        if factor > 1:
            shutil.rmtree(folder)
    counts: dict[int, float] = {}
    folder = place / "size-1"
    names = tuple(f"model-{number}" for number in range(4 if quick else 16))
    for number, name in enumerate(names):
        random_model(folder / name, {**shape, "vocab_size": 512}, number + 1)
    for count in (2, 4) if quick else (2, 4, 8, 16):
        counts[count] = merged(command(written(folder, "ties", names[:count])), place / "out")[0] - empty
    shutil.rmtree(folder)
    return {"ties_size_ratio": doubling(times), "ties_models_ratio": doubling(counts)}


def command(recipe: Path) -> list[str]:
    """Our program on a recipe."""
    return [sys.executable, "-m", "asterism", "merge", str(recipe), "OUT", "--quiet"]


def tiny_time(place: Path) -> float:
    """Seconds of a merge of next to nothing: start-up."""
    folder = place / "tiny"
    for number, name in enumerate(("base", *MODELS)):
        random_model(folder / name, QUICK, number)
    return min(merged(command(written(folder, "ties")), place / "out")[0] for _ in range(2))


def doubling(times: Mapping[int, float]) -> float:
    """Factor of the time for twice the size, from the smallest and the largest; a time below the clock's noise counts as 1 ms."""
    low, high = min(times), max(times)
    doublings = (high // low).bit_length() - 1
    return (max(times[high], 1e-3) / max(times[low], 1e-3)) ** (1 / doublings)


def random_model(folder: Path, shape: Mapping[str, int], number: int) -> None:
    """A checkpoint of Qwen2 shape in bfloat16: number 0 is the base, the others the base with small changes everywhere."""
    folder.mkdir(parents=True)
    hidden, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    keys = hidden // heads * shape["num_key_value_heads"]
    sizes = {"model.embed_tokens.weight": (shape["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(shape["num_hidden_layers"]):
        before = f"model.layers.{layer}."
        sizes |= {f"{before}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        for name, out in (("q", hidden), ("k", keys), ("v", keys)):
            sizes |= {f"{before}self_attn.{name}_proj.weight": (out, hidden), f"{before}self_attn.{name}_proj.bias": (out,)}
        sizes |= {f"{before}self_attn.o_proj.weight": (hidden, hidden), f"{before}mlp.down_proj.weight": (hidden, inner)}
        sizes |= {f"{before}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    draws, changes = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)
    tensors = {}
    for name, size in sizes.items():
        tensor = 0.02 * torch.randn(size, generator=draws)
        tensors[name] = (tensor if number == 0 else tensor + 0.002 * torch.randn(size, generator=changes)).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True, "torch_dtype": "bfloat16", **shape}
    (folder / "config.json").write_text(json.dumps(config))


def mergekit_version() -> str:
    """The one installed beside us."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mergekit")
    except PackageNotFoundError:
        return "of another environment"


if __name__ == "__main__":
    main()
