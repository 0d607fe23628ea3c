"""AdaMerging: how much of each specialist's delta each layer takes, learnt on texts without labels by making predictions more certain.

Yang et al. 2024, arXiv:2310.02575. theta_l = base_l + sum_i w_li delta_li, 0 <= w <= 1; the loss is the entropy of the next-token
predictions, and its gradient by w_li is <d loss / d theta_l, delta_li>. All specialists' changes are in memory while it learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.draws import stream_key
from asterism.core.errors import DataError, StorageError
from asterism.core.gram import accumulator
from asterism.core.progress import track
from asterism.merge.keeping import check_texts, keep, origin_of, place, recalled
from asterism.merge.live import assembled
from asterism.merge.settings import AdaMergingSettings
from asterism.models.anatomy import Anatomy
from asterism.models.batching import batches, pad_id, room_of, tokenise
from asterism.models.changes import Change, Dense
from asterism.models.deltas import delta_of, original
from asterism.models.library import Library
from asterism.models.likelihood import LOGITS_BUDGET, logits_of
from asterism.models.types import PreTrainedModel

WHAT = "AdaMerging weights"


@dataclass(frozen=True)
class LayerWeights:
    """How much of each specialist's delta each layer takes."""

    each: str
    """What a layer is: AdaMergingSettings.each."""
    weights: Mapping[str, Mapping[str, float]]
    """Layer -> specialist -> weight; of the specialists that change something there."""
    entropy: tuple[float, ...]
    """Mean entropy of the predictions before each step, nats a token."""

    def of(self, anatomy: Anatomy, parameter: str) -> Mapping[str, float]:
        """The weights of a parameter; none where nobody changes it."""
        return self.weights.get(layer_of(anatomy, parameter, self.each), {})

    def model(self, library: Library) -> PreTrainedModel:
        """The merge, as a live model of its own."""

        def entry(parameter: str) -> Tensor | None:
            own = self.of(library.anatomy, parameter)
            changes = {name: change for name in own if (change := library.change(name, parameter)) is not None}
            return combined(library, parameter, changes, own) if changes else None

        return assembled(library, entry)


def adamerging(
    library: Library, texts: Mapping[str, Sequence[str]] | None = None, settings: AdaMergingSettings | None = None
) -> LayerWeights:
    """The weights learnt on texts (specialist -> texts of its domain), kept with the library; those kept there where texts are None.

    Weights kept that come from these models, texts and settings are not learnt again. Raises UnknownName, DataError, StorageError
    (nothing kept, damaged), StaleError (kept of other models or settings).
    """
    settings = settings or AdaMergingSettings()
    if texts is not None:
        check_texts(library, texts)
    folder, names = place(library, "adamerging"), sorted(library.names)
    found = recalled(folder, WHAT, library, names, texts, settings.model_dump())
    if found is None:
        assert texts is not None
        learnt = learn(library, texts, settings)
        facts = {"weights": learnt.weights, "entropy": learnt.entropy}
        keep(folder, origin_of(library, names, texts, settings.model_dump()), facts, {})
        return learnt
    try:
        weights = {layer: {name: float(own[name]) for name in own} for layer, own in found.facts["weights"].items()}
        return LayerWeights(settings.each, weights, tuple(map(float, found.facts["entropy"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError("A file is damaged.", met=f"{found.folder}: {error!r}", mend="give texts to learn the weights again") from None


def learn(library: Library, texts: Mapping[str, Sequence[str]], settings: AdaMergingSettings) -> LayerWeights:
    """Adam on the weights; every step takes `batch_size` texts of each specialist, and each specialist's mean entropy counts alike."""
    work = _Work(library, settings)
    drawn = {name: _drawn(library, texts[name], settings, name) for name in work.names}
    optimiser = torch.optim.Adam([work.weights], lr=settings.learning_rate)
    entropies = []
    for _ in track(range(settings.steps), "learning to merge"):
        work.write()
        loss = sum(work.uncertainty(next(drawn[name])) for name in work.names) / len(work.names)
        entropies.append(loss)
        work.weights.grad = work.gradient() / len(work.names)
        optimiser.step()
        with torch.no_grad():
            work.weights.clamp_(0, 1)
    return LayerWeights(settings.each, work.told(), tuple(entropies))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions softmax(logits), [..., V] -> [...], in float32 or wider."""
    logs = F.log_softmax(logits.to(accumulator(logits)), dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def combined(library: Library, parameter: str, changes: Mapping[str, Change], weights: Mapping[str, Any]) -> Tensor:
    """base + sum_i w_i delta_i of one parameter, in float32 or wider."""
    total = original(library, parameter).clone()
    for name, change in changes.items():
        total += weights[name] * delta_of(library, change, parameter)
    return total


def layer_of(anatomy: Anatomy, parameter: str, each: str) -> str:
    """What a parameter shares its weights with: everything, its block (or its role outside the blocks), or nothing."""
    if each == "parameter":
        return parameter
    block = anatomy.block_of(parameter)
    return "model" if each == "model" else anatomy.role_of(parameter) if block is None else anatomy.block_path(block)


class _Work:
    """A live model that follows the weights, and the way back: its gradient along every delta."""

    def __init__(self, library: Library, settings: AdaMergingSettings) -> None:
        self.library, self.names = library, sorted(library.names)  # no order of the library changes a bit
        self.changes: dict[str, dict[str, Change]] = {}
        for parameter in library.anatomy.shapes:
            found = {name: change for name in self.names if (change := library.change(name, parameter)) is not None}
            if found:
                self.changes[parameter] = found
        if not self.changes:
            raise DataError("There is nothing to merge.", met="no specialist differs from the generalist", mend="train or add specialists")
        layers = [layer_of(library.anatomy, parameter, settings.each) for parameter in self.changes]
        self.layers = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
        self.rows = {parameter: self.layers[layer] for parameter, layer in zip(self.changes, layers, strict=True)}
        self.weights = torch.full((len(self.layers), len(self.names)), settings.start, requires_grad=True)  # [L, N]
        model: Any = library.fresh_model()
        self.model, self.parameters = model, dict(model.named_parameters())
        for parameter in self.changes:
            self.parameters[parameter].requires_grad_(True)

    @torch.no_grad()
    def write(self) -> None:
        """Give the model the parameters that the weights say, and no gradients."""
        for parameter, changes in self.changes.items():
            own = dict(zip(self.names, self.weights[self.rows[parameter]].tolist(), strict=True))
            self.parameters[parameter].copy_(combined(self.library, parameter, changes, own))
            self.parameters[parameter].grad = None

    def uncertainty(self, tokens: Sequence[Sequence[int]]) -> float:
        """The mean entropy a token of the model's predictions, whose gradient is added to the parameters'."""
        library, count, total = self.library, sum(map(len, tokens)), 0.0
        fitting = max(1, LOGITS_BUDGET // (4 * library.anatomy.vocabulary))
        for batch in batches(tokens, max_tokens=fitting, pad=pad_id(library.tokenizer)):
            batch = batch.to(library.device)
            with torch.enable_grad():
                loss = entropy(logits_of(self.model, batch.ids))[batch.mask].sum() / count
                loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """[L, N]: the inner product of the model's gradient with every specialist's delta, layer by layer."""
        found = torch.zeros_like(self.weights, dtype=torch.float64)
        for parameter, changes in self.changes.items():
            gradient = self.parameters[parameter].grad
            assert gradient is not None
            for name, change in changes.items():
                found[self.rows[parameter], self.names.index(name)] += self._along(gradient, change, parameter)
        if not bool(found.isfinite().all()):
            raise DataError("A model's gradients are not finite.", met="AdaMerging", mend="use a wider dtype (float32, bfloat16)")
        return found.to(self.weights.dtype)

    def _along(self, gradient: Tensor, change: Change, parameter: str) -> float:
        if isinstance(change, Dense):
            delta = delta_of(self.library, change, parameter)
            return float((gradient.to(delta.dtype) * delta).sum(dtype=torch.float64))
        own = (gradient if self.library.anatomy.output_axes[parameter] == 0 else gradient.T).to(change.up.dtype)  # [out, in]
        return float(((change.up.T @ own) * change.down).sum(dtype=torch.float64))

    def told(self) -> dict[str, dict[str, float]]:
        """The weights by name, of those who change something in the layer."""
        layers, rows = list(self.layers), self.weights.tolist()
        found: dict[str, dict[str, float]] = {layer: {} for layer in layers}
        for parameter, changes in self.changes.items():
            row = self.rows[parameter]
            found[layers[row]] |= {name: rows[row][self.names.index(name)] for name in changes}
        return found


def _drawn(library: Library, texts: Sequence[str], settings: AdaMergingSettings, name: str) -> Iterator[list[list[int]]]:
    """Batches of a specialist's texts as tokens, without end: all of them in a drawn order, then in another."""
    lists = tokenise(library.tokenizer, texts, room_of(library, settings.max_length))
    random = torch.Generator().manual_seed(stream_key(settings.seed, "adamerging", name))

    def endless() -> Iterator[list[int]]:
        while True:
            for number in torch.randperm(len(lists), generator=random).tolist():
                yield lists[number]

    source, size = endless(), min(settings.batch_size, len(lists))
    while True:
        yield [next(source) for _ in range(size)]
