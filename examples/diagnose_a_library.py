"""Can these specialists be composed? Measured from the index alone; no model is run.

python examples/diagnose_a_library.py [LIBRARY]
"""

from small import opened

from asterism import IndexSettings, diagnose

library, constellation = opened()
found = diagnose(constellation)
for first, second, cosine in found.pairs():
    print(f"{first} and {second}: cosine {cosine:.3f}")
print(f"advice: {found.advice}\n{found.reason}")

paper = diagnose(constellation.with_settings(IndexSettings.paper()))  # the same fingerprints, another basis
if paper.order:
    print(f"with Gram-Schmidt, {paper.order.unsteady:.0%} of the probes change their domain with the order")
