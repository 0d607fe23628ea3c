"""The main path: what a query asks of the library, and the model that answers it.

python examples/compose_for_a_query.py [LIBRARY]
"""

from small import opened

from asterism import compose

QUERY = "Is the surgeon liable when the nurse gives the wrong dosage?"

library, constellation = opened()
mixture = constellation.mixture(QUERY, top_k=2)
for name, share in mixture.shares.items():
    print(f"{name:10} {share:.0%} of the weights")

model = compose(library, mixture, layers=2)
prompt = library.tokenizer(QUERY, return_tensors="pt")
written = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=library.tokenizer.pad_token_id)
print(library.tokenizer.decode(written[0]))
