"""A live model whose parameters follow the mixture: rewritten in place, or run mixed with another mixture in every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from asterism.compose.mixed import running_mixed
from asterism.compose.plan import Part, Plan, Terms, composed_parameters
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import SettingsError, UnknownName
from asterism.core.mixing import mix_into
from asterism.models.changes import Change, Dense
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel


class Composer:
    """One model of its own, composed again and again; the changed tensors of the specialists it meets are loaded once and kept.

    `model` is the generalist until `materialise` and again after `restore`. Not for use from several threads at once.
    """

    def __init__(self, library: Library, settings: CompositionSettings | None = None) -> None:
        """SettingsError when `settings.layers` names blocks that the model does not have."""
        self.library, self.settings = library, settings or CompositionSettings()
        self._scope = composed_parameters(library.anatomy, self.settings)
        with torch.inference_mode(False):  # tensors born in inference mode could not be rewritten outside it
            self.model: PreTrainedModel = library.fresh_model().requires_grad_(False)
        self._parameters = dict(self.model.named_parameters())
        self._changes: dict[str, dict[str, Change]] = {}
        self._written: set[str] = set()
        self._mixing = False

    def materialise(self, mixture: Mixture) -> PreTrainedModel:
        """Write the composed parameters (Eq. 9) into `model` and return it; an earlier mixture leaves no trace.

        Raises UnknownName for a specialist that the library lacks, MismatchError for weights of another size, SettingsError
        when the node map needs module weights that the mixture lacks.
        """
        self._refuse_while_mixing()
        plan = self._plan([mixture])
        composed = {name: terms for name in plan.parameters if (terms := plan.terms(name, self._change)) is not None}
        self._put_back(self._written - composed.keys())
        axes = self.library.anatomy.output_axes
        for name, terms in composed.items():
            write(self._parameters[name], terms, lambda name=name: self.library.tensor(name), axes[name])
            self._written.add(name)
        return self.model

    def restore(self) -> PreTrainedModel:
        """Make `model` the generalist again."""
        self._refuse_while_mixing()
        self._put_back(set(self._written))
        return self.model

    @contextmanager
    def mixed(self, mixtures: Sequence[Mixture]) -> Iterator[PreTrainedModel]:
        """Within, row b of every batch that `model` is given runs under `mixtures[b]`, without weights being built.

        A batch of m times as many rows (beams, several returned sequences) gives each mixture m rows in a row. Afterwards, also
        after an exception, `model` is the generalist. Errors as `materialise`; MismatchError for a batch of another size.
        """
        if not mixtures:
            raise SettingsError("Mixed execution needs a mixture a row.", met="none", mend="give one mixture for each row of the batch")
        self.restore()
        distinct = {id(mixture): mixture for mixture in mixtures}
        number = {key: i for i, key in enumerate(distinct)}
        plan = self._plan(list(distinct.values()))
        with running_mixed(self.model, plan, self._change, [number[id(mixture)] for mixture in mixtures]):
            self._mixing = True
            try:
                yield self.model
            finally:
                self._mixing = False

    def changes(self, specialist: str) -> Mapping[str, Change]:
        """What a specialist changes of the composed parameters, {parameter: change}; loaded when first asked for."""
        if specialist not in self._changes:
            self._changes[specialist] = self._load(specialist)
        return self._changes[specialist]

    def gradient(self, parameter: str) -> Tensor | None:
        """The gradient that a backward pass left at one of `model`'s parameters."""
        return self._parameters[parameter].grad

    def _plan(self, mixtures: Sequence[Mixture]) -> Plan:
        plan = Plan(self.library.anatomy, mixtures, self.settings, next(iter(self._parameters.values())))
        for name in plan.specialists:
            self.changes(name)
        return plan

    def _load(self, specialist: str) -> dict[str, Change]:
        if specialist not in self.library.names:
            raise UnknownName("specialist", specialist, self.library.names)
        with torch.inference_mode(False):
            found = {name: self.library.change(specialist, name) for name in self._scope}
        return {name: change for name, change in found.items() if change is not None}

    def _change(self, specialist: str, parameter: str) -> Change | None:
        return self._changes[specialist].get(parameter)

    def _put_back(self, names: set[str]) -> None:
        with torch.no_grad():
            for name in names:
                self._parameters[name].copy_(self.library.tensor(name))
                self._written.discard(name)

    def _refuse_while_mixing(self) -> None:
        if self._mixing:
            raise SettingsError(
                "The model is running mixed.", met="a change of mixture inside", mend="leave the `with composer.mixed(...)` block first"
            )


@torch.no_grad()
def write(out: Tensor, terms: Terms, original: Callable[[], Tensor], axis: int) -> None:
    """Compose one parameter in place: `out` <- its terms under the plan's first mixture, summed in float32 or wider.

    out in the parameter's own layout with outputs along `axis`; `original()` gives the generalist's tensor (not `out` itself) where
    it takes part. No temporary larger than one tensor.
    """
    low_rank = [part for part in terms.parts if not isinstance(part.change, Dense)]
    whole = [(part.change.tensor, part.weights[0]) for part in terms.parts if isinstance(part.change, Dense)]
    if isinstance(terms.base, Tensor):
        whole.append((original(), terms.base[0]))
    elif terms.base:
        whole.append((original(), torch.ones(1, dtype=torch.float32, device=out.device)))
    if out.dtype.itemsize < 4 and low_rank:  # sum in float32 and round once
        total = torch.zeros_like(out, dtype=torch.float32)
        for tensor, weight in whole:
            total.addcmul_(tensor.float(), weight[:, None] if axis == 0 else weight)
    else:
        total = out
        if len(whole) == 1 and isinstance(terms.base, float) and terms.base:
            total.copy_(whole[0][0])
        elif whole:
            mix_into(total, [tensor for tensor, _ in whole], [weight for _, weight in whole], axis)
        else:
            total.zero_()
    if low_rank:
        up, down = concatenated(low_rank, total.dtype)
        total.addmm_(*((up, down) if axis == 0 else (down.T, up.T)))
    if total is not out:
        out.copy_(total)


def concatenated(parts: Sequence[Part], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Low-rank parts under the plan's first mixture as one: up [out, sum r_i] with rows scaled by W_i, and down [sum r_i, in]."""
    ups = [part.change.up.to(dtype) * part.weights[0].to(dtype)[:, None] for part in parts if not isinstance(part.change, Dense)]
    downs = [part.change.down.to(dtype) for part in parts if not isinstance(part.change, Dense)]
    return torch.cat(ups, dim=1), torch.cat(downs)
