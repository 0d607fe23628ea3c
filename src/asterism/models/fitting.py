"""Changes of a model cut to what a LoRA adapter can hold, and what that loses of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from asterism.core.errors import DataError, SettingsError
from asterism.core.lowrank import Factors, difference, nearest_for_energy, nearest_low_rank, shortened, size
from asterism.models.adapters import write_adapter
from asterism.models.anatomy import Anatomy
from asterism.models.changes import LowRank


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter keeps of the change it stands for."""

    errors: dict[str, float] = field(default_factory=dict)
    """Parameter -> relative error of its change, |D - B A| / |D| in Frobenius norm; 0.0 where the adapter is exact."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Parameter -> rank it takes in the adapter."""
    norms: dict[str, float] = field(default_factory=dict)
    """Parameter -> |D|."""
    left_out: dict[str, float] = field(default_factory=dict)
    """Parameter -> norm of its change, for those that no LoRA can hold: norms, biases, embeddings, a tied head."""

    @property
    def error(self) -> float:
        """Relative error of all parameters that the adapter holds, taken as one vector."""
        total = sum(norm**2 for norm in self.norms.values())
        return sqrt(sum((self.errors[name] * norm) ** 2 for name, norm in self.norms.items()) / total) if total else 0.0

    @property
    def lost(self) -> float:
        """Relative error of the whole change, what is left out included."""
        left = sum(norm**2 for norm in self.left_out.values())
        held = sum(norm**2 for norm in self.norms.values())
        return sqrt((self.error**2 * held + left) / (held + left)) if held + left else 0.0

    def kinds(self) -> dict[str, AdapterReport]:
        """The parameters that the adapter holds by what they are in every block: `mlp.down_proj` -> the report of these alone."""
        found: dict[str, AdapterReport] = {}
        for name in self.ranks:
            part = found.setdefault(".".join(name.split(".")[-3:-1]), AdapterReport())
            part.errors[name], part.ranks[name], part.norms[name] = self.errors[name], self.ranks[name], self.norms[name]
        return found


class Fitting:
    """An adapter in the making: changes are given one parameter at a time, cut, measured and kept as factors."""

    def __init__(self, anatomy: Anatomy, *, rank: int | None = None, energy: float | None = None, dtype: torch.dtype | None = None) -> None:
        """rank: the most that each parameter gets; energy: without one, the share that a dense change's rank must keep (else all of it).

        dtype: what the factors are rounded to, the error measured after it; else they stay as wide as the changes. SettingsError.
        """
        if rank is not None and rank < 1:
            raise SettingsError("An adapter's rank is at least 1.", met=rank, mend="e.g. 16")
        if energy is not None and not 0 < energy <= 1:
            raise SettingsError("Energy is a share of the whole.", met=energy, mend="above 0, at most 1; e.g. 0.9")
        self.anatomy, self.rank, self.energy, self.dtype = anatomy, rank, energy, dtype
        self.factors: dict[str, LowRank] = {}
        self.report = AdapterReport()

    def take(self, parameter: str, factors: Factors) -> None:
        """A change of low rank, up [out, r] and down [r, in]: kept as it is up to the rank allowed, cut beyond. Zero is passed over."""
        up, down = factors
        norm, error = size(up, down), 0.0
        if norm == 0:
            return
        most = min(self.rank or up.shape[1], up.shape[0], down.shape[1])
        if up.shape[1] > most:
            up, down, error = shortened(up, down, most)
        self._keep(parameter, (up, down), norm, lambda kept: size(*difference(factors, kept)), error)

    def cut(self, parameter: str, delta: Tensor) -> None:
        """A dense change in the parameter's own layout: the nearest of the rank, or of the energy, asked for. Zero is passed over."""
        norm = torch.linalg.vector_norm(delta, dtype=torch.float64).item()
        if norm == 0:
            return
        turned = delta if self.anatomy.output_axes[parameter] == 0 else delta.mT
        factors = nearest_low_rank(turned, self.rank) if self.rank is not None else nearest_for_energy(turned, self.energy or 1.0)

        def missed(kept: Factors) -> float:
            up, down = (factor.to(turned.dtype) for factor in kept)
            return torch.linalg.vector_norm(torch.addmm(turned, up, down, alpha=-1), dtype=torch.float64).item()

        self._keep(parameter, factors, norm, missed)

    def kept(self, parameter: str) -> dict[str, Tensor]:
        """What is kept of a parameter and known of it, as tensors for `restore`."""
        low = self.factors[parameter]
        told = torch.tensor([self.report.errors[parameter], self.report.norms[parameter]], dtype=torch.float64)
        return {"up": low.up, "down": low.down, "told": told}

    def restore(self, parameter: str, kept: Mapping[str, Tensor]) -> None:
        """Take up what another fitting of the same change has `kept`."""
        self.factors[parameter] = LowRank(kept["up"], kept["down"])
        self.report.errors[parameter], self.report.norms[parameter] = kept["told"].tolist()
        self.report.ranks[parameter] = self.factors[parameter].rank

    def leave_out(self, parameter: str, norm: float) -> None:
        """A change that no LoRA can hold is told of, not kept."""
        if norm:
            self.report.left_out[parameter] = norm

    def check(self, what: str) -> None:
        """SettingsError when nothing is in the adapter of this `what`."""
        if self.factors:
            return
        left = sorted(self.report.left_out)
        if not left:
            mend = "the base itself is the result; check weights and models"
            raise SettingsError(f"Nothing is left of this {what}: no parameter changes.", met="an adapter of zeros", mend=mend)
        met = f"{len(left)} other parameters change: {', '.join(left[:3])}"
        raise SettingsError(f"Nothing of this {what} fits in an adapter.", met=met, mend="save a checkpoint instead")

    def write(self, folder: Path, base: str, revision: str | None = None) -> None:
        """The adapter as a PEFT folder; see `write_adapter`."""
        write_adapter(folder, self.factors, base, self.anatomy, revision=revision)

    def _keep(self, parameter: str, factors: Factors, norm: float, missed: Callable[[Factors], float], error: float | None = None) -> None:
        """missed: norm of what factors lack of the change; error: that of these, relative, where it is known."""
        if self.dtype is not None and factors[0].dtype != self.dtype:
            factors, error = (factors[0].to(self.dtype), factors[1].to(self.dtype)), None
            if not all(factor.isfinite().all() for factor in factors):
                met = f"{parameter}, {self.dtype}"
                raise DataError("A factor is too large for its dtype.", met=met, mend="another dtype, or smaller weights")
        self.factors[parameter] = LowRank(factors[0].cpu(), factors[1].cpu())
        self.report.errors[parameter] = missed(factors) / norm if error is None else error
        self.report.norms[parameter], self.report.ranks[parameter] = norm, self.factors[parameter].rank
