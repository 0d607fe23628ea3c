"""Experts side by side, weighed token by token: a router that learns from a task's texts beside one that needs none.

python examples/route_between_experts.py [LIBRARY]
"""

from pathlib import Path
from tempfile import mkdtemp

from small import opened, texts

from asterism import TrainingSettings, route
from asterism.report.routing import write_routing
from asterism.route.arrow import arrow_gates
from asterism.route.build import load_router
from asterism.route.comparison import compare
from asterism.route.trace import trace
from asterism.route.training import split, train_router
from asterism.route.untrained import route_untrained

library, _ = opened()
out = Path(mkdtemp(prefix="asterism-routers-"))
task = [probe.text for probe in texts().cross]  # what the experts are to be combined for
learnt, unseen = split(task, held_out=0.3)

# these specialists were tuned whole; a routed model takes their MLPs and, by choice, the generalist's attention
few = TrainingSettings(method="router", steps=12, batch_size=4, max_length=48, learning_rate=0.05)
model = route(library, with_generalist=True, attention="generalist")
train_router(model, library.tokenizer, learnt, out / "full", few, device="cpu")
arrow = route_untrained(library, arrow_gates(library), attention="generalist")

for name, routed in (("trained", model), ("Arrow", arrow)):
    found = compare(routed, library, unseen, max_length=48)
    print(f"{name:10} {float(found.router.mean()):.3f} nats a token; generalist {float(found.rivals['generalist'].mean()):.3f}")
    print(f"{'':10} entropy by block, bits: {', '.join(f'{own.entropy:.2f}' for own in found.blocks)}")

again = load_router(out / "full", library)  # the gates alone lie on the disk, and belong to this library
shown = trace(again, library.tokenizer, unseen[0], max_length=16)
for place, token in enumerate(shown.tokens):
    print(f"{token!r:14}", "  ".join(f"{name} {float(own[:, place].mean()):.0%}" for name, own in shown.shares().items()))

found = compare(again, library, unseen, max_length=48).to_dict() | {"settings": again.config.origin["settings"]}
print(write_routing(found, out / "router.html"))
