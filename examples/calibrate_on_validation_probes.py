"""How much should the query's likelihood weigh, and the fingerprint? Fitted on held-out texts that no evaluation scores again.

python examples/calibrate_on_validation_probes.py [LIBRARY DATA]
"""

import sys

from small import opened, texts

from asterism import EvaluationSettings, diagnose, read_corpus
from asterism.evaluate.calibrate import calibrate
from asterism.evaluate.probes import draw, validation_probes

QUERY = "Is the surgeon liable when the nurse gives the wrong dosage?"

library, constellation = opened()
corpus = read_corpus(sys.argv[2]) if len(sys.argv) > 2 else texts()
corpus = corpus.only(library.names)
# the settings that `evaluate` is given: what it draws is left alone
settings = EvaluationSettings(protocols=("continuation",), single_per_domain=2, cross_per_pair=1)
validation = validation_probes(corpus, library.names, settings, per_group=1)
assert not {probe.text for probe in validation} & {probe.text for probe in draw(corpus, library.names, settings)}

fitted = calibrate(library, constellation, validation, settings)  # fitted.save() would keep it with the library
numbers = fitted.calibration
print(f"temperature {numbers.temperature:g}, deltas x {numbers.scale:g}, generalist {numbers.generalist:+g}, prior {numbers.prior:g}")
for name, loss in sorted(numbers.losses.items(), key=lambda pair: pair[1]):
    print(f"{name:22} {loss:.3f} nats a token on {len(validation)} validation probes")

for when, index in (("before", constellation), ("after", fitted)):
    mixture = index.mixture(QUERY)
    print(f"{when}: {mixture.shares}, generalist {mixture.generalist:.2f}")
print(f"advice, now measured: {diagnose(fitted).advice}")
