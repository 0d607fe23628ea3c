"""How well compositions predict text: continuations of contexts, and whole texts.

A text is read in blocks. The first one has nothing before it; each later one runs under a mixture made from the text so far, on the
keys and values that earlier mixtures left, as answers are written. So every token is scored under a mixture made from what stands
before it, and the losses of a text's tokens add up to the loss of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.cost import cheaper
from asterism.constellation.mixture import Mixture
from asterism.models.likelihood import logits_of
from asterism.models.types import PreTrainedModel

FIRST = 8
"""Tokens of the first block; each block is as long as all before it together, up to `renew`."""

Choose = Callable[[Sequence[Sequence[int]]], list[Mixture]]
"""Tokens read so far of each text (none at first) -> a mixture each."""


@dataclass(frozen=True)
class Window:
    """A part of a text: inputs [T] and what follows each [T], of which all but the first `known` are scored."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    before: tuple[int, ...] = ()
    """Tokens of the text before the first target, or the last of them."""
    known: int = 0


@torch.no_grad()
def rolling_losses(composer: Composer, windows: Sequence[Window], choose: Choose | None, *, renew: int, pad: int) -> list[float]:
    """The summed loss of each window's scored targets in nats; all windows are one batch.

    `choose` makes the mixtures of a block; None scores every token under the model as it is, in one block.
    """
    total, cache, start = [0.0] * len(windows), None, 0
    live = list(range(len(windows)))
    longest = max(len(one.inputs) for one in windows)
    while live:
        stop = start + (longest if choose is None else min(renew, max(FIRST, start)))
        parts = [windows[row].inputs[start:stop] for row in live]
        made = choose([(*windows[row].before, *windows[row].targets[:start]) for row in live]) if choose else None
        ids = _padded(parts, pad).to(composer.library.device)
        with running(composer, made) as model:
            asked = dict(input_ids=ids, attention_mask=ids.new_ones(len(live), start + ids.shape[1]), past_key_values=cache)
            written = model(**asked, use_cache=choose is not None)
        for place, row in enumerate(live):
            first, targets = max(0, windows[row].known - start), torch.tensor(windows[row].targets[start:stop], device=ids.device)
            total[row] -= float(chosen_log_probs(written.logits[place, first : len(targets)], targets[first:]).sum())
        kept = [place for place, row in enumerate(live) if len(windows[row].inputs) > stop]
        live, cache, start = [live[place] for place in kept], written.past_key_values, stop
        if live and cache is not None:
            cache.batch_select_indices(torch.tensor(kept, device=ids.device))
    return total


@contextmanager
def running(composer: Composer, mixtures: Sequence[Mixture] | None) -> Iterator[PreTrainedModel]:
    """The model for a batch of these mixtures, built where they are one and run mixed where they are several; None: as it is."""
    if mixtures is None:
        yield composer.model
    elif all(one is mixtures[0] for one in mixtures):
        yield composer.materialise(mixtures[0])
    else:
        with composer.mixed(mixtures) as model:
            yield model


def continuation_scores(
    composer: Composer, rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], mixtures: Sequence[Mixture] | None, *, pad: int
) -> list[tuple[float, bool]]:
    """Of each row of tokens: the summed log-probability in nats of its last targets, and whether each of them is the likeliest token.

    Row b is `rows[b]` [T_b], and position T_b - len(targets[b]) + i predicts targets[b][i]. All rows are one batch where that costs less
    than a built model for each distinct mixture.
    """
    found: dict[int, tuple[float, bool]] = {}
    for part in _parts(composer, rows, mixtures):
        with running(composer, [mixtures[row] for row in part] if mixtures else None) as model, torch.no_grad():
            logits = logits_of(model, _padded([rows[row] for row in part], pad).to(composer.library.device))
        for place, row in enumerate(part):
            wanted = torch.tensor(list(targets[row]), device=logits.device)
            own = logits[place, len(rows[row]) - len(wanted) : len(rows[row])]
            found[row] = float(chosen_log_probs(own, wanted).sum()), bool((own.argmax(dim=-1) == wanted).all())
    return [found[row] for row in range(len(rows))]


def _parts(composer: Composer, rows: Sequence[Sequence[int]], mixtures: Sequence[Mixture] | None) -> Iterable[Sequence[int]]:
    """A batch as it is run: whole where one model or mixed execution serves it, else its rows by mixture."""
    if mixtures is None:
        return [range(len(rows))]
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(mixtures):
        groups.setdefault(id(one), []).append(row)
    library, k = composer.library, max(len(one.specialists) for one in mixtures)
    mean, most = sum(map(len, rows)) / len(rows), len(rows) / len(groups)
    way = cheaper(library.anatomy, composer.settings, k=k, tokens=mean * most, rows=len(groups), device=str(library.device))
    return [range(len(rows))] if way == "mixed" else groups.values()


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Token ids [B, T], padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def chosen_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [T] of targets [T] under logits [T, V], in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
