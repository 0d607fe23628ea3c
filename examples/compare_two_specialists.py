"""Do two specialists fit together? Layers, deltas, the loss on the path between them, and what to do with them.

python examples/compare_two_specialists.py [LIBRARY]
"""

from small import opened, texts

from asterism.route.compat import compat, pair_texts
from asterism.route.interpolation import path
from asterism.route.settings import CompatSettings

library, _ = opened()
left, right = library.names[:2]
target, general = pair_texts(texts(), left, right)

found = compat(library, left, right, target, general=general, settings=CompatSettings(points=5, attention="generalist"))
print(f"corresponding layers: CKA {found.similar['target']:.3f} on these texts, {found.similar['general']:.3f} on general ones")
print(f"deltas: cosine {found.deltas['mlp'].cosine:.3f} in MLPs, {found.deltas['attention'].cosine:.3f} in attention")
for kind, own in found.barriers.items():
    print(f"{kind}: barrier of {own.height:.3f} nats a token")
print(f"advice: {found.advice}\n{found.reason}")

best = found.best
model = path(library, left, right, "lerp").at(0.5)  # a transformers model, halfway
print(f"least loss: {best['loss']:.3f} at {best['share']:.0%} {left} ({best['kind']}); halfway has {model.num_parameters():,} parameters")
