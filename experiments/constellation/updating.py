"""Should the mixture follow a text while it goes on? Validation probes, read a little and then continued in steps.

    python -m experiments.constellation.updating --data ../shared/data --data CODE [--only RUNG]

The first READ tokens of a text give the mixture; the loss counts on the rest. `fixed` keeps the mixture; the others make it again
from everything so far after every n tokens, and either compute keys and values anew under the new mixture (`rebuilt`) or go on with
those that older mixtures left (`kept`). The text's own tokens stand for what a model would have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from asterism.constellation.calibration import Calibration
from asterism.constellation.evidence import Evidence
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.progress import counting
from asterism.core.statistics import bootstrap_mean, win_rate
from asterism.models.likelihood import states_of, token_losses
from experiments.commands import ended
from experiments.constellation.workshop import Row, Workshop, run

PLACE = Path(__file__).parent / "updating.json"
READ = 32
"""Tokens read before the first mixture."""
EVERY = (16, 32, 64)
"""New tokens between two mixtures."""
PER_GROUP = 6


def rows_of(shop: Workshop, scale: str) -> Iterator[Row]:
    """Mean loss after the first READ tokens of every way, and how often it beats the fixed mixture."""
    long = [row for row, ids in enumerate(shop.tokens) if len(ids) >= READ + max(EVERY)]
    prefixes = [_prefix_fingerprints(shop, row) for row in long]
    ways: list[tuple[str, int, bool]] = [("fixed", 0, False)]
    ways += [(f"every {n}, {'kept' if kept else 'rebuilt'}", n, kept) for n in EVERY for kept in (False, True)]
    fixed: Tensor | None = None
    with counting(f"{scale}: updating", len(ways) * len(long)) as advance:
        for name, every, kept in ways:
            losses = []
            for row, prints in zip(long, prefixes, strict=True):
                losses.append(_continued(shop, row, prints, every or len(shop.tokens[row]), kept))
                advance(1)
            found = torch.tensor(losses)
            fixed = found if fixed is None else fixed
            gain, low, high = bootstrap_mean((fixed - found).numpy())
            rate = win_rate(found.numpy(), fixed.numpy())[:3] if name != "fixed" else (0.5, 0.5, 0.5)
            told = {
                "loss": float(found.mean()),
                "gain": gain,
                "gain_low": low,
                "gain_high": high,
                "rate": rate[0],
                "low": rate[1],
                "high": rate[2],
            }
            yield {"scale": scale, "way": name, "n": len(long), **{key: round(value, 5) for key, value in told.items()}}


def _prefix_fingerprints(shop: Workshop, row: int) -> Tensor:
    """[T, d]: the fingerprint of every prefix of a probe, from one pass of the generalist."""
    ids = shop.ids(row)
    with torch.inference_mode(), states_of(shop.composer.restore(), None) as seen:
        shop.composer.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    states = seen[0][0].float().cpu()
    return states.cumsum(dim=0) / torch.arange(1, len(states) + 1)[:, None]


def _mixture(shop: Workshop, row: int, prints: Tensor, read: int) -> Mixture:
    """What the first `read` tokens ask for."""
    losses = shop.token_losses[row][:, : read - 1].mean(dim=1)  # [N + 1]
    known = Evidence(losses[-1:], {name: losses[i : i + 1] for i, name in enumerate(shop.library.names)})
    index = shop.constellation.with_calibration(Calibration())
    return index.mixture_from(prints[read - 1 : read], settings=MixtureSettings(), evidence=known)[0]


@torch.inference_mode()
def _continued(shop: Workshop, row: int, prints: Tensor, every: int, kept: bool) -> float:
    """Mean loss of the tokens after the first READ, under mixtures made again every so many tokens."""
    ids = shop.ids(row)
    cache, seen, losses = DynamicCache(), 0, []
    for start in range(READ, ids.shape[1], every):
        stop = min(start + every, ids.shape[1])
        model = shop.composer.materialise(_mixture(shop, row, prints, start))
        if not kept:
            cache, seen = DynamicCache(), 0
        # keys and values up to start - 2; the token at start - 1 predicts the one at start
        logits = model(input_ids=ids[:, seen : stop - 1], past_key_values=cache, use_cache=True).logits
        seen_before, seen = seen, stop - 1
        predicted = torch.cat([logits[:, start - 1 - seen_before :], logits[:, :1]], dim=1)  # one more column, which token_losses drops
        losses.append(token_losses(predicted, ids[:, start - 1 : stop])[0])
    return float(torch.cat(losses).mean())


def shown(rows: list[Row]) -> Iterable[str]:
    """A line a way."""
    for row in rows:
        gain = f"{row['gain']:.4f} ({row['gain_low']:.4f} to {row['gain_high']:.4f})"
        yield f"{row['scale']}  {row['way']:18s} loss {row['loss']:.4f}  better than fixed by {gain}, n = {row['n']}"


def main() -> None:
    """Measure every trained rung."""
    run(__doc__, PLACE, PER_GROUP, rows_of, shown, lambda shop: {"read": READ})


if __name__ == "__main__":
    ended(main)
