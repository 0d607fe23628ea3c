"""How alike two models, or the layers of one, represent the same texts: a map of centred kernel alignment, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.constellation.settings import SimilaritySettings
from asterism.core.cka import LinearCka
from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.core.hsic import Grams
from asterism.core.kernel_cka import kernel_grams
from asterism.core.progress import quiet, track
from asterism.models.anatomy import anatomy_of
from asterism.models.batching import Batch, hidden_states, masked_mean, placed_batches, room_of
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Similarity:
    """Maps over pairs of layers, [L, M] float64: rows are the left model's layers, columns the right one's."""

    map: Tensor
    """CKA; 0 by definition where a layer's output is constant."""
    z: Tensor
    """Standard deviations above what random pairing of the samples gives."""
    p: Tensor
    """Chance of as much under random pairing (`core.hsic.Null.p`). With tokens as samples z and p are too bold: neighbours are alike."""
    n: int
    """Samples compared."""
    names: tuple[str, str]
    layers: tuple[tuple[int, ...], tuple[int, ...]]
    """Blocks of the rows and of the columns, counted from 0."""
    settings: SimilaritySettings

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; maps as nested lists."""
        maps = {name: getattr(self, name).tolist() for name in ("map", "z", "p")}
        layers = [list(each) for each in self.layers]
        return {**maps, "n": self.n, "names": list(self.names), "layers": layers, "settings": self.settings.model_dump(mode="json")}


@dataclass(frozen=True)
class _Side:
    """One of the models, and which of its modules are looked at."""

    name: str
    model: PreTrainedModel
    layers: tuple[int, ...]
    paths: tuple[str, ...]
    width: int
    vocabulary: int


@torch.no_grad()
def similarity(
    left: PreTrainedModel,
    right: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: SimilaritySettings | None = None,
    *,
    names: tuple[str, str] = ("left", "right"),
) -> Similarity:
    """CKA of every layer of `left` with every layer of `right`, or of the layers of `left` among themselves where right is None.

    Both models read the same tokens, so they share the tokenizer; depths and widths may differ. The features of linear kernels are
    streamed where their rows would take more memory than the cross moments (`LinearCka`), else held; the result is the same.
    Raises DataError (no texts, an empty text, fewer than 4 samples, states that are not finite), SettingsError (no such block),
    MismatchError (a vocabulary too small for the tokens). Source: Kornblith et al. 2019; Fig. 3, 7, 8 of compatible specialization.
    """
    settings = settings or SimilaritySettings()
    sides = [_side(model, name, settings) for model, name in zip((left, right), names, strict=True) if model is not None]
    length = min(room_of(side.model, settings.max_length) for side in sides)
    with quiet():
        batches = [batch for batch, _ in placed_batches(left, tokenizer, texts, length, MAX_TOKENS)]
    _check_vocabularies(sides, max(int(batch.ids.max()) for batch in batches))
    kept = _drawn([batch.tokens if settings.unit == "token" else len(batch.rows) for batch in batches], settings)
    n = sum(int(rows.sum()) for rows in kept)
    features = _features(sides, batches, kept, settings)
    grams = _streamed(features, sides) if _streams(sides, n, settings) else _held(features, sides, n, settings)
    found, null = grams.similarity(settings.estimator), grams.null(settings.estimator)
    layers = (sides[0].layers, sides[-1].layers)
    return Similarity(found, null.z(found), null.p(found), n, (sides[0].name, sides[-1].name), layers, settings)


def _side(model: PreTrainedModel, name: str, settings: SimilaritySettings) -> _Side:
    anatomy = anatomy_of(model)
    layers = tuple(range(anatomy.n_blocks)) if settings.layers is None else settings.layers
    if not layers or not all(0 <= layer < anatomy.n_blocks for layer in layers):
        raise SettingsError(f"The model {name!r} has no such block.", met=f"layers {list(layers)}", mend=f"0 to {anatomy.n_blocks - 1}")
    part = f".{anatomy.layout.mlp}" if settings.site == "mlp" else ""
    paths = tuple(anatomy.block_path(layer) + part for layer in layers)
    return _Side(name, model, layers, paths, anatomy.hidden_size, anatomy.vocabulary)


def _check_vocabularies(sides: Sequence[_Side], largest: int) -> None:
    for side in sides:
        if largest >= side.vocabulary:
            met, mend = f"{side.name}: token {largest}, vocabulary {side.vocabulary}", "models that share the tokenizer"
            raise MismatchError("A model does not know a token.", met=met, mend=mend)


def _drawn(counts: Sequence[int], settings: SimilaritySettings) -> list[Tensor]:
    """Which samples of each batch are kept: bool [count] each; all, or `settings.samples` of them."""
    total = sum(counts)
    kept = torch.ones(total, dtype=torch.bool)
    if settings.samples is not None and settings.samples < total:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed))
        kept[order[settings.samples :]] = False
    return list(kept.split(list(counts)))


def _features(
    sides: Sequence[_Side], batches: Sequence[Batch], kept: Sequence[Tensor], settings: SimilaritySettings
) -> Iterator[list[Tensor]]:
    """Batch by batch the samples kept, [k, width] a layer, the left model's layers first, all on its device."""
    for batch, rows in track(list(zip(batches, kept, strict=True)), "similarity"):
        layers: list[Tensor] = []
        for side in sides if rows.any() else ():
            with _watching(side, batch, rows, settings) as seen:
                hidden_states(side.model, batch)
            layers += [seen[path].to(batch.ids.device) for path in side.paths]
        if layers:
            yield layers


@contextmanager
def _watching(side: _Side, batch: Batch, kept: Tensor, settings: SimilaritySettings) -> Iterator[dict[str, Tensor]]:
    """Inside, a forward pass leaves each module's samples in the yielded dict: path -> [k, width]."""
    seen: dict[str, Tensor] = {}

    def watch(path: str):
        def hook(_module: Any, _given: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]  # [B, T, width]
            samples = states[batch.mask.to(states.device)] if settings.unit == "token" else _means(states, batch)
            seen[path] = samples[kept.to(states.device)]
            if not bool(seen[path].isfinite().all()):
                mend = "use a wider dtype (float32, bfloat16), or check the weights"
                raise DataError("A model's hidden states are not finite.", met=f"{side.name}: {path}", mend=mend)

        return hook

    handles = [side.model.get_submodule(path).register_forward_hook(watch(path)) for path in side.paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _means(states: Tensor, batch: Batch) -> Tensor:
    """[B, T, width] -> [B, width] over each row's own positions; summed in float64, so that of a constant it is that constant."""
    return masked_mean(states.double(), batch.lengths).to(torch.promote_types(states.dtype, torch.float32))


def _streams(sides: Sequence[_Side], n: int, settings: SimilaritySettings) -> bool:
    """Whether cross moments (6 bytes a number) take less memory than the rows (4 bytes); they then take fewer operations as well."""
    if settings.kernel != "linear":
        return False
    rows, *columns = [len(side.layers) * side.width for side in sides]
    moments = rows * columns[0] if columns else rows**2 / 2
    return 6 * moments < 4 * n * (rows + sum(columns))


def _streamed(features: Iterator[list[Tensor]], sides: Sequence[_Side]) -> Grams:
    widths = [[side.width] * len(side.layers) for side in sides]
    cka, lefts = LinearCka(*widths), len(sides[0].layers)
    for layers in features:
        cka.add(layers[:lefts], layers[lefts:] or None)
    return cka.grams()


def _held(features: Iterator[list[Tensor]], sides: Sequence[_Side], n: int, settings: SimilaritySettings) -> Grams:
    held, lefts, filled = [], len(sides[0].layers), 0
    for layers in features:
        held = held or [layer.new_empty(n, layer.shape[1]) for layer in layers]
        for whole, layer in zip(held, layers, strict=True):
            whole[filled : filled + len(layer)] = layer
        filled += len(layers[0])
    return kernel_grams(held[:lefts], held[lefts:] or None, kernel=settings.kernel, bandwidth=settings.bandwidth)
