"""Merges that look at a few texts of each domain, beside the plain mean, each scored on held-out texts.

python examples/merge_with_data.py [LIBRARY DATA]
"""

import sys

from small import opened, texts

from asterism import read_corpus
from asterism.merge.emr import Emr
from asterism.merge.learned import learned_merge
from asterism.merge.library import merge
from asterism.merge.soup import greedy_soup
from asterism.models.likelihood import read

library, _ = opened()
corpus = read_corpus(sys.argv[2]) if len(sys.argv) > 2 else texts()
seen = {name: corpus.train[name][:16] for name in library.names}  # what the merges may look at
heldout = {name: [probe.text for probe in corpus.heldout[name]] for name in library.names}
tasted, unseen = ({name: own[half::2] for name, own in heldout.items()} for half in (0, 1))


def loss(model, texts=unseen) -> float:
    """Mean over the domains, nats a token."""
    return float(sum(read(model, library.tokenizer, own)[1].mean() for own in texts.values()) / len(texts))


print(f"{'generalist':12} {loss(library.model()):.3f}")
print(f"{'mean':12} {loss(merge(library, 'uniform')):.3f}")
print(f"{'fisher':12} {loss(learned_merge(library, 'fisher', seen)):.3f}")
print(f"{'fisher':12} {loss(learned_merge(library, 'fisher', floor=1e-2)):.3f}  another floor, nothing measured again")
print(f"{'regmean':12} {loss(learned_merge(library, 'regmean', seen)):.3f}")
print(f"{'adamerging':12} {loss(learned_merge(library, 'adamerging', seen, steps=5, batch_size=4, learning_rate=0.05)):.3f}")

soup = greedy_soup(library, tasted)
print(f"{'greedy soup':12} {loss(soup.model):.3f}  of {', '.join(soup.names)}")

emr = Emr.build(library)  # not one model for all: each specialist is taken by name
for name in emr.names:
    own = {name: unseen[name]}
    print(f"{name:12} {loss(emr.model(name), own):.3f}  by EMR, {loss(library.model(name), own):.3f} the specialist itself")
print(f"EMR holds {emr.size.kept:,} bytes, the specialists {emr.size.specialists:,}")
