"""A composition as files: a checkpoint that any tool loads, or a LoRA adapter beside the generalist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.compose.build import compose
from asterism.compose.composer import concatenated, write
from asterism.compose.plan import Plan, Terms
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import SettingsError, StaleError, StorageError
from asterism.core.storage import replacing, vacant, write_json
from asterism.models.changes import Dense
from asterism.models.fitting import AdapterReport, Fitting
from asterism.models.library import Library

RECORD = "composition.json"
FORMAT_VERSION = 1


def save_checkpoint(
    library: Library,
    mixture: Mixture,
    out: str | Path,
    settings: CompositionSettings | None = None,
    *,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Write the composed model, its tokenizer and `composition.json` as one folder, whole or absent; `origin` is what asked for it.

    Raises StorageError when `out` holds something other than an earlier composition, and whatever `compose` raises.
    """
    settings, out = settings or CompositionSettings(), vacant(out, RECORD, "composition")
    model = compose(library, mixture, settings)
    with replacing(out) as temporary:
        model.save_pretrained(temporary)
        library.tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record(library, mixture, settings, kind="checkpoint", origin=origin))
    return out


def save_adapter(
    library: Library,
    mixture: Mixture,
    out: str | Path,
    settings: CompositionSettings | None = None,
    rank: int | None = None,
    *,
    origin: Mapping[str, Any] | None = None,
) -> AdapterReport:
    """Write the composition as one PEFT LoRA adapter of the generalist, with `composition.json` beside it; `origin` as above.

    LoRA specialists give an exact adapter of rank sum r_i whose B rows are scaled by W (DESIGN, fact 2). Full specialists, and anything
    beyond `rank`, need a `rank`: the nearest adapter of that rank, with its relative error for each parameter.
    Raises SettingsError when a rank is needed and none is given, StorageError when `out` holds something else.
    """
    settings, out = settings or CompositionSettings(), vacant(out, RECORD, "composition")
    anatomy = library.anatomy
    plan, fitting = Plan(anatomy, [mixture], settings, library.tensor(next(iter(anatomy.shapes)))), Fitting(anatomy, rank=rank)
    for name in plan.parameters:
        terms = plan.terms(name, library.change)
        if terms is None:
            continue
        if not anatomy.is_linear(name):
            fitting.leave_out(name, _delta(library, name, terms).norm().item())
        elif isinstance(terms.base, float) and terms.base == 1.0 and not any(isinstance(part.change, Dense) for part in terms.parts):
            fitting.take(name, concatenated(terms.parts, terms.parts[0].weights.dtype))
        elif rank is not None:
            fitting.cut(name, _delta(library, name, terms))
        else:
            mend = "give a rank, e.g. 16; the error of each parameter is reported"
            raise SettingsError(
                "This composition is not of low rank: an adapter can only approximate it.", met=f"{name} changes in full", mend=mend
            )
    fitting.check("composition")
    with replacing(out) as temporary:
        fitting.write(temporary, library.generalist)
        told = {**record(library, mixture, settings, kind="adapter", origin=origin), "rank": rank, "adapter": asdict(fitting.report)}
        write_json(temporary / RECORD, told)
    return fitting.report


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


def record(
    library: Library, mixture: Mixture, settings: CompositionSettings, *, kind: str, origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that decides a composition, and the digests of what it was made from; JSON-able."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "origin": dict(origin or {}),
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


def recalled(told: Any, library: Library) -> tuple[Mixture, CompositionSettings]:
    """The mixture and the settings that a `record` told of.

    Raises StorageError when it is damaged, UnknownName for a specialist that the library lacks, StaleError where one, or the generalist,
    is another one by now.
    """
    if not isinstance(told, dict) or told.get("format_version") != FORMAT_VERSION:
        raise StorageError("This is no record of a composition.", met=repr(told)[:60], mend="make it again")
    try:
        names = dict(told["specialists"])
        mixture = Mixture(
            tuple(names),
            torch.tensor(told["weights"], dtype=torch.float32),
            torch.tensor(told["coefficients"], dtype=torch.float32),
            {path: torch.tensor(rows, dtype=torch.float32) for path, rows in told["modules"].items()},
            generalist=float(told["generalist_share"]),
            scale=float(told["scale"]),
        )
        settings, generalist = CompositionSettings(**told["settings"]), told["generalist"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError("A record of a composition is damaged.", met=repr(error), mend="make it again") from None
    changed = [name for name, digest in names.items() if library.digest(name) != digest]
    if library.digest() != generalist:
        changed.insert(0, "the generalist")
    if changed:
        raise StaleError("The composition is of models that have changed.", met=", ".join(changed), mend="make it again")
    return mixture, settings


def _numbers(tensor: Tensor) -> list:
    return tensor.detach().cpu().tolist()
