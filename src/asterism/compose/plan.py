"""Which parameters a composition touches, and how: base coefficient and weighted changes of each, for several mixtures at once.

With W_i [out] the weights of specialist i at a parameter's output nodes, w the generalist's own weight, s the scale (the setting's
times the mixture's), and each specialist's change dense (D: its whole parameter), low-rank (R: B_i A_i beside the generalist's) or
none (U: equal to the generalist's):

    specialists   theta = w theta_G + sum_i W_i theta_i              (Eq. 9 where w = 0)
    deltas        theta = theta_G + s sum_i W_i (theta_i - theta_G)

are both   theta = c0 theta_G + s sum_D W_i theta_i + s sum_R W_i B_i A_i   with c0 = w + sum_(R, U) W_i (specialists, s = 1)
or c0 = 1 - s sum_D W_i (deltas).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import MismatchError, SettingsError
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Change, Dense

ROUNDING = 1e-6
"""Columns of float32 weights sum to 1 only to about this; a base coefficient that near to 0 or 1 at every node is taken to be it."""


@dataclass(frozen=True, eq=False)
class Part:
    """One specialist's share in a parameter."""

    specialist: str
    change: Change
    weights: Tensor
    """[G, out], or [G, 1] where every node has the same: s W_i of each of the G mixtures."""


@dataclass(frozen=True, eq=False)
class Terms:
    """One parameter under G mixtures: base * generalist's + the parts."""

    base: Tensor | float
    """[G, out] or [G, 1]; plain 0.0 or 1.0 where it is that for every mixture and node."""
    parts: tuple[Part, ...]


def composed_parameters(anatomy: Anatomy, settings: CompositionSettings) -> tuple[str, ...]:
    """Names of the parameters that the setting `layers` selects, in model order; SettingsError for blocks that are not there."""
    layers, n = settings.layers, anatomy.n_blocks
    if layers == "all":
        return tuple(anatomy.shapes)
    if isinstance(layers, int):
        if not 1 <= layers <= n:
            raise SettingsError("The model has fewer blocks.", met=f"the last {layers}", mend=f"1 to {n}, or all")
        layers = range(n - layers, n)
    wrong = [block for block in layers if not 0 <= block < n]
    if wrong or not layers:
        raise SettingsError("No such block.", met=wrong or "an empty list", mend=f"blocks are counted from 0 to {n - 1}")
    return anatomy.parameters_of(frozenset(layers))


class Plan:
    """G mixtures over one model, checked, with their weights carried to output nodes once for each distinct output.

    Raises MismatchError when a mixture's weights do not fit the model, SettingsError when `layers` names blocks that are
    not there, the node map `per_module` meets a mixture without module weights, or specialists' parameters are to be mixed with a scale.
    """

    def __init__(self, anatomy: Anatomy, mixtures: Sequence[Mixture], settings: CompositionSettings, like: Tensor) -> None:
        """`like`: a parameter of the model; weights come on its device, in float64 where it is float64, else float32."""
        self.anatomy, self.mixtures, self.settings = anatomy, tuple(mixtures), settings
        self.parameters = composed_parameters(anatomy, settings)
        self.specialists = tuple(dict.fromkeys(name for mixture in mixtures for name in mixture.specialists))
        self._device, self._dtype = like.device, torch.float64 if like.dtype == torch.float64 else torch.float32
        self._scales = torch.tensor([settings.scale * mixture.scale for mixture in mixtures], dtype=torch.float64)  # [G]
        if settings.mix == "specialists" and bool((self._scales != 1).any()):
            raise SettingsError("A scaled mixture is a mixture of deltas.", met="mix: specialists", mend="mix: deltas")
        self._hidden = self._gathered([mixture.weights for mixture in mixtures], anatomy.hidden_size, "a mixture")
        self._mean = self._hidden.mean(dim=-1, keepdim=True)  # [G, N, 1]
        self._even = settings.node_map != "per_module" and bool((self._hidden == self._hidden[..., :1]).all())
        self._weights: dict[str | int, Tensor] = {}  # [G, N, out] float64 on the CPU
        self._parts: dict[str | int, list[Tensor | None]] = {}
        self._bases: dict[tuple, Tensor | float] = {}

    def terms(self, parameter: str, change_of: Callable[[str, str], Change | None]) -> Terms | None:
        """How one parameter is composed from `change_of(specialist, parameter)`; None where it stays the generalist's."""
        changes = [change_of(name, parameter) for name in self.specialists]
        key = self._key(parameter)
        weights = self._parts_at(key)
        base = self._base(key, tuple(isinstance(change, Dense) for change in changes))
        triples = zip(self.specialists, changes, weights, strict=True)
        parts = tuple(Part(name, change, weight) for name, change, weight in triples if change is not None and weight is not None)
        return None if not parts and isinstance(base, float) and base == 1.0 else Terms(base, parts)

    def _key(self, parameter: str) -> str | int:
        """What decides a parameter's weights: its module (`per_module`), its output size, or 0 for the mean weight.

        Weights that are the same at every node are their mean everywhere, whatever the node map.
        """
        if self._even or self.settings.node_map == "mean" or self.anatomy.block_of(parameter) is None:
            return 0
        if self.settings.node_map == "per_module":
            return self.anatomy.module_of(parameter)
        out, d = self.anatomy.output_size(parameter), self.anatomy.hidden_size
        return out if out == d or (self.settings.node_map == "tiled" and out % d == 0) else 0

    def _at(self, key: str | int) -> Tensor:
        """Weights at the output nodes of a key, [G, N, out] (or [G, N, 1]), float64."""
        if key not in self._weights:
            if isinstance(key, str):
                self._weights[key] = self._gathered([self._module(mixture, key) for mixture in self.mixtures], self._module_size(key), key)
            else:
                self._weights[key] = self._hidden.repeat(1, 1, key // self.anatomy.hidden_size) if key else self._mean
        return self._weights[key]

    def _parts_at(self, key: str | int) -> list[Tensor | None]:
        """s W_i for each specialist, None for one without weight anywhere."""
        if key not in self._parts:
            scaled = self._scales[:, None, None] * self._at(key)
            used = (scaled != 0).flatten(2).any(dim=2).any(dim=0).tolist()
            self._parts[key] = [self._placed(scaled[:, i]) if there else None for i, there in enumerate(used)]
        return self._parts[key]

    def _base(self, key: str | int, dense: tuple[bool, ...]) -> Tensor | float:
        if (key, dense) not in self._bases:
            weights = self._at(key)
            chosen = torch.tensor(dense)
            if self.settings.mix == "specialists":
                own = torch.tensor([mixture.generalist for mixture in self.mixtures], dtype=torch.float64)
                base = own[:, None] + weights[:, ~chosen].sum(dim=1)
            else:
                base = 1 - self._scales[:, None] * weights[:, chosen].sum(dim=1)
                base[(base.abs() < ROUNDING).all(dim=1)] = 0.0
            base[((base - 1).abs() < ROUNDING).all(dim=1)] = 1.0
            same = next((value for value in (0.0, 1.0) if bool((base == value).all())), None)
            self._bases[key, dense] = self._placed(base) if same is None else same
        return self._bases[key, dense]

    def _gathered(self, weights: Sequence[Tensor], out: int, whose: str) -> Tensor:
        """[K, out] of each mixture -> [G, N, out] over the union of specialists; zero where a mixture does not name one."""
        place = {name: i for i, name in enumerate(self.specialists)}
        whole = torch.zeros(len(self.mixtures), len(place), out, dtype=torch.float64)
        for row, (mixture, own) in enumerate(zip(self.mixtures, weights, strict=True)):
            if tuple(own.shape) != (len(mixture.specialists), out):
                mend = f"[{len(mixture.specialists)}, {out}]: make the mixture from this library's generalist"
                raise MismatchError(f"Weights of {whose} do not fit the model.", met=list(own.shape), mend=mend)
            whole[row, [place[name] for name in mixture.specialists]] = own.detach().to("cpu", torch.float64)
        return whole

    def _module(self, mixture: Mixture, path: str) -> Tensor:
        if path not in mixture.modules:
            mend = "make the mixture with per_module=True, or choose another node map"
            raise SettingsError("The node map per_module needs weights at every module.", met=f"none at {path}", mend=mend)
        return mixture.modules[path]

    def _module_size(self, path: str) -> int:
        return next(self.anatomy.output_size(name) for name in self.parameters if self.anatomy.module_of(name) == path)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)
