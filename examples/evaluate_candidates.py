"""Is composing worth it here? Every candidate on held-out and cross-domain probes.

python examples/evaluate_candidates.py [LIBRARY DATA]
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

from small import opened, texts

from asterism import EvaluationSettings, evaluate, read_corpus
from asterism.evaluate.probes import draw
from asterism.report.html import write_report
from asterism.report.terminal import print_results

library, constellation = opened()
corpus = read_corpus(sys.argv[2]) if len(sys.argv) > 2 else texts()
corpus = corpus.only(library.names)  # a probe of a domain without a specialist would be refused
settings = EvaluationSettings(protocols=("continuation",), single_per_domain=4, cross_per_pair=2, ensembles=False)
out = Path(mkdtemp(prefix="asterism-evaluation-"))

results = evaluate(library, constellation, draw(corpus, library.names, settings), settings, out=out)
print_results(results)
print(write_report(results, out / "report.html"))
