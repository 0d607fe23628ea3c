"""Several queries in one batch, each under its own mixture, without building a model for any of them.

python examples/mixed_batch.py [LIBRARY]
"""

import torch
from small import opened

from asterism import Composer

QUERIES = ["The patient was given", "The court held that", "def total(values):"]

library, constellation = opened()
mixtures = constellation.mixtures(QUERIES, top_k=2)
composer = Composer(library)

tokenizer = library.tokenizer
tokenizer.padding_side = "left"
batch = tokenizer(QUERIES, return_tensors="pt", padding=True)
with composer.mixed(mixtures) as model:
    together = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)

for query, mixture, row in zip(QUERIES, mixtures, together, strict=True):
    print(mixture.shares, tokenizer.decode(row, skip_special_tokens=True), sep="\n")

    model = composer.materialise(mixture)  # the same answer from a model built for this query
    alone = model.generate(**tokenizer(query, return_tensors="pt"), max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert torch.equal(alone[0], row[-alone.shape[1] :])
