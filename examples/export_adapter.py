"""A composition as files: a checkpoint for any tool, and a PEFT adapter beside the generalist.

python examples/export_adapter.py [LIBRARY]
"""

from pathlib import Path
from tempfile import mkdtemp

from small import opened
from transformers import AutoModelForCausalLM

from asterism import CompositionSettings
from asterism.compose.export import save_adapter, save_checkpoint

library, constellation = opened()
mixture = constellation.mixture("Is the surgeon liable when the nurse gives the wrong dosage?", top_k=2)
out = Path(mkdtemp(prefix="asterism-composed-"))

save_checkpoint(library, mixture, out / "checkpoint")
model = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
print(f"{out / 'checkpoint'}: {sum(p.numel() for p in model.parameters()):,} parameters")

for rank in (4, 16):
    report = save_adapter(library, mixture, out / f"adapter-{rank}", CompositionSettings(layers=2), rank=rank)
    worst = max(report.errors, key=lambda name: report.errors[name])
    print(f"rank {rank}: largest relative error {report.errors[worst]:.3f} at {worst}; {len(report.left_out)} parameters fit in no adapter")
