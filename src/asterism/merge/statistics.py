"""What each specialist shows on its own texts: how much every weight matters to it (Fisher), and what its linear modules are fed.

Taken one model at a time by forward and backward passes alone, so for any architecture and for LoRA specialists too. Each is kept with
the library (`merging/fisher/NAME`, `merging/regmean/NAME`) as soon as it is there, and used by every later merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from asterism.core.errors import DataError, StaleError
from asterism.core.gram import accumulator
from asterism.merge.keeping import Kept, check_texts, keep, kept, origin_of, place, recalled
from asterism.models.anatomy import Anatomy
from asterism.models.batching import placed_batches
from asterism.models.library import Library
from asterism.models.likelihood import LOGITS_BUDGET, token_losses
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["fisher", "regmean"]
_WHAT = {"fisher": "Fisher values", "regmean": "inner products of inputs"}
_TOKENS = 4096
"""Tokens a batch, where a batch may be of several texts."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """One specialist's, a tensor a parameter; read when asked for."""

    kept: Kept

    @property
    def tokens(self) -> int:
        """How many tokens it is the mean over."""
        return self.kept.facts["tokens"]

    @property
    def parameters(self) -> frozenset[str]:
        """The parameters it tells of."""
        return self.kept.names | self.kept.facts["twins"].keys()

    def __getitem__(self, parameter: str) -> Tensor:
        return self.kept[self.kept.facts["twins"].get(parameter, parameter)]


def statistics(
    library: Library, kind: Kind, texts: Mapping[str, Sequence[str]] | None = None, *, max_length: int = 256
) -> dict[str, Statistic]:
    """Every specialist's statistic, from `texts` (specialist -> texts of its domain), or those kept with the library where texts are None.

    Given texts, a specialist whose statistic is kept and comes from them, from this model and these settings is not read again; an
    interrupted run goes on with the next specialist. Only parameters that some specialist changes are measured.
    Raises UnknownName, DataError (texts missing, too short), StorageError (nothing kept), StaleError (models or settings have changed).
    """
    if texts is not None:
        check_texts(library, texts)
    wanted = changed(library) if kind == "fisher" else fed(library.anatomy, changed(library))
    return {name: _statistic(library, kind, name, texts, wanted, max_length) for name in library.names}


def changed(library: Library) -> list[str]:
    """Parameters that at least one specialist changes, in model order."""
    return [parameter for parameter in library.anatomy.shapes if any(library.change(name, parameter) for name in library.names)]


def fed(anatomy: Anatomy, parameters: Sequence[str]) -> list[str]:
    """Weights of linear modules alone: matrices that are no embedding (and so no head that is tied to one)."""
    return [name for name in parameters if len(anatomy.shapes[name]) == 2 and anatomy.role_of(name) != "embedding"]


def fisher_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], parameters: Sequence[str], *, max_length: int = 256
) -> tuple[dict[str, Tensor], int]:
    """The diagonal of the empirical Fisher information a token, {parameter: [*shape]} in float32 or wider, and the number of tokens.

    sum over texts of (d sum_t log p(x_t | x_<t) / d theta)^2, divided by the number of tokens predicted: one backward pass a text. For
    text that the model would write itself, tokens' gradients are uncorrelated, so this is the mean over tokens of their own squared
    gradients. Source: Matena & Raffel 2022, arXiv:2111.09832, with the texts' own tokens as labels.
    """
    given = {name: tensor.detach() for name, tensor in model.named_parameters()}
    leaves = {name: given[name].requires_grad_() for name in parameters}
    totals = {name: torch.zeros_like(leaf, dtype=accumulator(leaf), requires_grad=False) for name, leaf in leaves.items()}
    tokens = 0
    for batch, (row,) in placed_batches(model, tokenizer, texts, max_length, 1):
        if batch.tokens < 2:
            continue
        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": torch.ones_like(batch.ids), "use_cache": False}
        with torch.enable_grad():
            loss = token_losses(functional_call(model, given, kwargs=inputs).logits, batch.ids).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        if not bool(loss.isfinite()) or not all(bool(gradient.isfinite().all()) for gradient in gradients):
            mend = "use a wider dtype (float32, bfloat16), or check the weights"
            raise DataError("A model's gradients are not finite.", met=f"text {row}: {texts[row][:60]!r}", mend=mend)
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += gradient.to(total.dtype).square()
        tokens += batch.tokens - 1
    if not tokens:
        raise DataError("Nothing to predict: every text has one token.", met=f"{len(texts)} texts", mend="give longer texts")
    return {name: total / tokens for name, total in totals.items()}, tokens


@torch.no_grad()
def grams_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    modules: Mapping[str, str],
    *,
    max_length: int = 256,
) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """X^T X / tokens of what linear modules are fed, X [tokens, in]: {parameter: [in, in]} in float32 or wider, padding left out.

    modules: parameter -> path of its module. Also returned: parameter -> the earlier one that is fed the very same (queries, keys and
    values), whose matrix serves both, and the number of tokens. Source: RegMean, Jin et al. 2023, arXiv:2212.09849.
    """
    totals: dict[str, Tensor] = {}
    twins: dict[str, str] = {}
    last: list[Any] = [None, ""]  # the last module's input, and whose it was first
    own = torch.zeros(0)

    def take(parameter: str, _module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x is last[0] and parameter not in totals:
            twins[parameter] = last[1]
        if parameter in twins:
            return
        last[:] = x, parameter
        rows = x[own].to(accumulator(x))  # [tokens, in]
        total = totals.setdefault(parameter, torch.zeros(rows.shape[1], rows.shape[1], dtype=rows.dtype, device=rows.device))
        total.addmm_(rows.T, rows)

    tokens, fitting = 0, max(1, min(_TOKENS, LOGITS_BUDGET // (4 * model.config.vocab_size)))
    with ExitStack() as hooks:
        for parameter, path in modules.items():
            hook = model.get_submodule(path).register_forward_pre_hook(partial(take, parameter))
            hooks.callback(hook.remove)
        for batch, _ in placed_batches(model, tokenizer, texts, max_length, fitting):
            own = batch.mask
            model(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), use_cache=False)
            last[0] = None
            tokens += batch.tokens
    for parameter, total in totals.items():
        if not bool(total.isfinite().all()):
            mend = "use a wider dtype (float32, bfloat16), or check the weights"
            raise DataError("What a module is fed is not finite.", met=parameter, mend=mend)
    return {parameter: total / tokens for parameter, total in totals.items()}, twins, tokens


def _statistic(
    library: Library, kind: Kind, name: str, texts: Mapping[str, Sequence[str]] | None, wanted: Sequence[str], max_length: int
) -> Statistic:
    folder, settings = place(library, kind, name), {"max_length": max_length}
    found = recalled(folder, _WHAT[kind], library, [name], texts, settings)
    missing = set(wanted) - Statistic(found).parameters if found else set(wanted)
    if found and not missing:
        return Statistic(found)
    if texts is None:
        mend = "give texts, so that it is measured too"
        raise StaleError(f"Stale: the {_WHAT[kind]} tell nothing of a parameter that a specialist changes.", met=min(missing), mend=mend)
    origin, model = origin_of(library, [name], texts, settings), library.model(name)
    if kind == "fisher":
        tensors, tokens = fisher_of(model, library.tokenizer, texts[name], wanted, max_length=max_length)
        twins: dict[str, str] = {}
    else:
        modules = {parameter: library.anatomy.module_of(parameter) for parameter in wanted}
        tensors, twins, tokens = grams_of(model, library.tokenizer, texts[name], modules, max_length=max_length)
    keep(folder, origin, {"tokens": tokens, "twins": twins, "dtype": str(library.dtype)}, tensors)
    return Statistic(kept(folder, _WHAT[kind]))
