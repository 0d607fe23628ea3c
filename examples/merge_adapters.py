"""LoRA adapters cut out of full specialists, and several adapters merged into one.

python examples/merge_adapters.py [LIBRARY]
"""

from pathlib import Path
from tempfile import mkdtemp

from small import opened

from asterism.merge.extract import extract
from asterism.merge.lora import merge_adapters

library, _ = opened()
base, out = library.folder(), Path(mkdtemp(prefix="asterism-adapters-"))

for name in library.names:
    report = extract(base, library.folder(name), out / name, energy=0.9)
    ranks = sorted(report.ranks.values())
    told = f"ranks {ranks[0]} to {ranks[-1]}, relative error {report.error:.2f}"
    print(f"{name}: {told}; {len(report.left_out)} parameters fit in no adapter")

models = [{"model": f"{base}+{out / name}", "parameters": {"weight": 0.5}} for name in library.names]
recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}

report = merge_adapters(recipe, out / "sum")  # a weighted sum: exact
print(f"sum: ranks up to {max(report.ranks.values())}, relative error {report.error:.2f}")

for rank in (4, 16):
    report = merge_adapters({**recipe, "merge_method": "ties", "parameters": {"density": 0.3}}, out / f"ties-{rank}", rank=rank)
    worst = max(report.errors, key=lambda name: report.errors[name])
    print(f"ties of rank {rank}: relative error {report.error:.2f}, largest {report.errors[worst]:.2f} at {worst}")
