"""Merges that look at data: Fisher-weighted averages, RegMean and AdaMerging, from texts of each specialist's domain.

    model = learned_merge(library, "fisher", {"medical": [...], "legal": [...]})

What is measured on the texts is kept with the library, so the next merge needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from asterism.core.errors import SettingsError, UnknownName
from asterism.merge.adamerging import adamerging
from asterism.merge.live import mean_of, merged
from asterism.merge.settings import AdaMergingSettings, FisherSettings, RegMeanSettings
from asterism.merge.statistics import statistics
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel

LearnedMethod = Literal["fisher", "regmean", "adamerging"]
LearnedSettings = FisherSettings | RegMeanSettings | AdaMergingSettings
_SETTINGS: dict[str, type[LearnedSettings]] = {"fisher": FisherSettings, "regmean": RegMeanSettings, "adamerging": AdaMergingSettings}
_SINGULAR = 1e-4
"""Share of an input's size that no combination of the others gives: below, the inner products (float32) tell nothing of it."""
Texts = Mapping[str, Sequence[str]]


def learned_merge(
    library: Library, method: LearnedMethod, texts: Texts | None = None, settings: LearnedSettings | None = None, **changes: Any
) -> PreTrainedModel:
    """One model for all queries: the library's specialists merged by what texts of their domains say, independent of the library.

    texts: specialist -> texts of its domain (AdaMerging: unlabelled texts of the queries to come), or None to use what an earlier merge
    measured and kept in the library's `merging` folder. changes: fields of the method's settings.
    Raises UnknownName, SettingsError, DataError (texts), StorageError (no texts and nothing kept), StaleError (kept of other models).
    """
    if method not in get_args(LearnedMethod):
        raise UnknownName("merge by data", method, get_args(LearnedMethod))
    given = settings or _SETTINGS[method]()
    if not isinstance(given, _SETTINGS[method]):
        mend = f"{_SETTINGS[method].__name__}(...), or its fields by name"
        raise SettingsError(f"These settings are not those of {method}.", met=type(given).__name__, mend=mend)
    given = given.changed(**changes)
    if isinstance(given, AdaMergingSettings):
        return adamerging(library, texts, given).model(library)
    return _by_fisher(library, texts, given) if isinstance(given, FisherSettings) else _by_regmean(library, texts, given)


def fisher(tensors: Sequence[Tensor], information: Sequence[Tensor], *, floor: float = 1e-6) -> Tensor:
    """sum_i F_i theta_i / sum_i F_i, entry by entry: K tensors [*shape] and their Fisher information [*shape] -> [*shape].

    No F counts less than `floor` times the mean of all; where every F is 0 the tensors count alike. Equal tensors stay what they are.
    Source: Matena & Raffel 2022, arXiv:2111.09832 (in its code the floor is 1e-6 itself; a language model's information is often smaller).
    """
    least = floor * sum(float(each.mean(dtype=torch.float64)) for each in information) / len(information)
    total = torch.zeros_like(tensors[0])
    for each in information:
        total += each.clamp_min(least)
    result = tensors[0].clone()
    for tensor, each in zip(tensors[1:], information[1:], strict=True):
        share = torch.where(total > 0, each.clamp_min(least) / total, 1 / len(tensors))
        result += share * (tensor - tensors[0])
    return result


def regmean(weights: Sequence[Tensor], grams: Sequence[Tensor], *, alpha: float = 0.9) -> Tensor:
    """The linear map whose outputs are nearest to each model's on that model's inputs: K of W_i [out, in], G_i [in, in] -> [out, in].

    W = (sum_i W_i G'_i) (sum_i G'_i)^-1, G'_i = G_i with everything off the diagonal times alpha; solved in float64 for the distance from
    the plain mean, which stands where no input ever was. Source: RegMean, Jin et al. 2023, arXiv:2212.09849.
    Raises SettingsError where alpha is so near 1 that there is no single solution.
    """
    mean = sum(weight.double() for weight in weights) / len(weights)
    assert isinstance(mean, Tensor)
    total, pull = torch.zeros_like(grams[0], dtype=torch.float64), torch.zeros_like(mean)
    for weight, gram in zip(weights, grams, strict=True):
        damped = alpha * gram.double()
        damped.diagonal().copy_(gram.diagonal())
        total += damped
        pull += (weight.double() - mean) @ damped
    size = total.diagonal().clamp_min(0).sqrt()  # [in]
    size = size.where(size > 0, 1.0)
    total /= size[:, None] * size  # ones on the diagonal: inputs of every scale are solved for equally well
    total.diagonal().fill_(1.0)
    root, failed = torch.linalg.cholesky_ex(total)
    if int(failed) or float(root.diagonal().min()) < _SINGULAR:
        raise SettingsError("RegMean's equations have no single solution.", met=f"alpha={alpha}", mend="a smaller alpha, such as 0.9")
    away = torch.cholesky_solve((pull / size).T, root).T / size
    return (mean + away).to(weights[0].dtype)


def _by_fisher(library: Library, texts: Texts | None, settings: FisherSettings) -> PreTrainedModel:
    known = statistics(library, "fisher", texts, max_length=settings.max_length)

    def rule(parameter: str, own: Mapping[str, Tensor]) -> Tensor:
        information = [known[name][parameter].to(library.device) for name in own]
        return fisher(list(own.values()), information, floor=settings.floor)

    return merged(library, library.names, rule)


def _by_regmean(library: Library, texts: Texts | None, settings: RegMeanSettings) -> PreTrainedModel:
    """RegMean for the weights of linear modules, the mean for every other parameter."""
    known = statistics(library, "regmean", texts, max_length=settings.max_length)

    def rule(parameter: str, own: Mapping[str, Tensor]) -> Tensor:
        if not all(parameter in known[name].parameters for name in own):
            return mean_of(own)
        grams = [known[name][parameter].to(library.device) for name in own]
        upright = library.anatomy.output_axes[parameter] == 0
        found = regmean([tensor if upright else tensor.T for tensor in own.values()], grams, alpha=settings.alpha)
        return found if upright else found.T

    return merged(library, library.names, rule)
