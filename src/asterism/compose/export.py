"""A composition as files: a checkpoint that any tool loads, or a LoRA adapter beside the generalist."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.compose.build import compose
from asterism.compose.composer import concatenated, write
from asterism.compose.plan import Plan, Terms
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import SettingsError, StorageError
from asterism.core.storage import replacing, write_json
from asterism.models.adapters import write_adapter
from asterism.models.changes import Dense, LowRank
from asterism.models.library import Library

RECORD = "composition.json"
FORMAT_VERSION = 1
THIN_SVD = 1024
"""Matrices whose shorter side is at most this take an exact SVD; larger ones a randomised one."""


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter keeps of a composition."""

    errors: dict[str, float]
    """Parameter -> relative error of its change, |D - B A| / |D| in Frobenius norm; 0.0 where the adapter is exact."""
    ranks: dict[str, int]
    """Parameter -> rank it takes in the adapter."""
    left_out: dict[str, float]
    """Parameter -> norm of its change, for those that no LoRA can hold: norms, biases, embeddings, a tied head."""


def save_checkpoint(library: Library, mixture: Mixture, out: str | Path, settings: CompositionSettings | None = None) -> Path:
    """Write the composed model, its tokenizer and `composition.json` as one folder, whole or absent.

    Raises StorageError when `out` holds something other than an earlier composition, and whatever `compose` raises.
    """
    settings, out = settings or CompositionSettings(), _free(out)
    model = compose(library, mixture, settings)
    with replacing(out) as temporary:
        model.save_pretrained(temporary)
        library.tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, _record(library, mixture, settings, kind="checkpoint"))
    return out


def save_adapter(
    library: Library, mixture: Mixture, out: str | Path, settings: CompositionSettings | None = None, rank: int | None = None
) -> AdapterReport:
    """Write the composition as one PEFT LoRA adapter of the generalist, with `composition.json` beside it.

    LoRA specialists give an exact adapter of rank sum r_i whose B rows are scaled by W (DESIGN, fact 2). Full specialists, and anything
    beyond `rank`, need a `rank`: the nearest adapter of that rank, with its relative error for each parameter.
    Raises SettingsError when a rank is needed and none is given, StorageError when `out` holds something else.
    """
    settings, out = settings or CompositionSettings(), _free(out)
    if rank is not None and rank < 1:
        raise SettingsError("An adapter's rank is at least 1.", met=rank, mend="e.g. 16")
    anatomy = library.anatomy
    plan = Plan(anatomy, [mixture], settings, library.tensor(next(iter(anatomy.shapes))))
    factors: dict[str, LowRank] = {}
    report = AdapterReport({}, {}, {})
    for name in plan.parameters:
        terms = plan.terms(name, library.change)
        if terms is None:
            continue
        if not _holdable(library, name):
            report.left_out[name] = _delta(library, name, terms).norm().item()
            continue
        found, error = _held(library, name, terms, rank)
        if found is not None:
            factors[name], report.errors[name], report.ranks[name] = found, error, found.rank
    if not factors:
        mend = "save a checkpoint instead; what changes: " + (", ".join(sorted(report.left_out)[:3]) or "nothing")
        raise SettingsError("Nothing of this composition fits in an adapter.", met=f"{len(report.left_out)} other parameters", mend=mend)
    with replacing(out) as temporary:
        write_adapter(temporary, factors, library.generalist, anatomy)
        write_json(temporary / RECORD, {**_record(library, mixture, settings, kind="adapter"), "rank": rank, "adapter": asdict(report)})
    return report


def nearest_low_rank(delta: Tensor, rank: int) -> LowRank:
    """Nearest matrix of rank at most `rank` in Frobenius norm: delta [out, in] -> up [out, r], down [r, in].

    Thin SVD, O(out in min(out, in)); where both sides exceed THIN_SVD a randomised one, seeded, with four power iterations,
    O(out in rank) and within a fraction of a percent of the optimum. Sources: Eckart & Young 1936; Halko et al. 2011.
    """
    if min(delta.shape) <= max(THIN_SVD, 2 * rank):
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[delta.device] if delta.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=min(rank + 16, *delta.shape), niter=4)
        vt = v.mT
    return _factors(u, s, vt, rank)


def shortened(change: LowRank, rank: int) -> tuple[LowRank, float]:
    """Nearest change of rank at most `rank`, and its relative error, without forming up @ down: O((out + in) r^2)."""
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(change.up), torch.linalg.qr(change.down.mT)
    u, s, vt = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    error = (s[rank:].norm() / s.norm()).item() if len(s) > rank else 0.0
    return _factors(q_up @ u, s, vt @ q_down.mT, rank), error


def _factors(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> LowRank:
    root = s[:rank].sqrt()
    return LowRank((u[:, :rank] * root).contiguous(), (root[:, None] * vt[:rank]).contiguous())


def _held(library: Library, name: str, terms: Terms, rank: int | None) -> tuple[LowRank | None, float]:
    """Factors that hold a matrix's change, and their relative error; none for a change of zero."""
    if isinstance(terms.base, float) and terms.base == 1.0 and not any(isinstance(part.change, Dense) for part in terms.parts):
        exact = LowRank(*concatenated(terms.parts, terms.parts[0].weights.dtype))
        return (exact, 0.0) if rank is None or exact.rank <= rank else shortened(exact, rank)
    if rank is None:
        mend = "give a rank, e.g. 16; the error of each parameter is reported"
        raise SettingsError(
            "This composition is not of low rank: an adapter can only approximate it.", met=f"{name} changes in full", mend=mend
        )
    delta, axis = _delta(library, name, terms), library.anatomy.output_axes[name]
    norm = delta.norm().item()
    if norm == 0:
        return None, 0.0
    found = nearest_low_rank(delta if axis == 0 else delta.mT, rank)
    return found, ((delta - found.delta(axis)).norm() / norm).item()


@torch.no_grad()
def _delta(library: Library, name: str, terms: Terms) -> Tensor:
    """Composed parameter minus the generalist's, in float32 or wider."""
    original = library.tensor(name)
    wide = original.to(torch.promote_types(original.dtype, torch.float32))
    composed = torch.empty_like(wide)
    widened = _widened(terms, wide.dtype)
    write(composed, widened, lambda: wide, library.anatomy.output_axes[name])
    return composed - wide


def _widened(terms: Terms, dtype: torch.dtype) -> Terms:
    parts = [replace(part, change=Dense(part.change.tensor.to(dtype))) if isinstance(part.change, Dense) else part for part in terms.parts]
    return Terms(terms.base, tuple(parts))


def _holdable(library: Library, name: str) -> bool:
    """Whether a LoRA can hold the parameter: a matrix of a linear module that is not tied to the embedding."""
    return len(library.anatomy.shapes[name]) == 2 and library.anatomy.role_of(name) != "embedding"


def _free(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and not (out / RECORD).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise StorageError(
            "The output place holds something else.", met=out, mend="choose another folder; only an earlier composition is replaced"
        )
    return out


def _record(library: Library, mixture: Mixture, settings: CompositionSettings, *, kind: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "settings": settings.model_dump(mode="json"),
        "generalist": library.digest(),
        "specialists": {name: library.digest(name) for name in mixture.specialists},
        "shares": mixture.shares,
        "generalist_share": mixture.generalist,
        "scale": mixture.scale,
        "coefficients": _numbers(mixture.coefficients),
        "weights": _numbers(mixture.weights),
        "modules": {path: _numbers(weights) for path, weights in mixture.modules.items()},
    }


def _numbers(tensor: Tensor) -> list:
    return tensor.detach().cpu().tolist()
