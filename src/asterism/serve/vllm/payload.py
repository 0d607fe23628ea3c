"""A composition as text, so that it travels with a request: `vllm_xargs={"asterism": payload_of(composition)}`.

JSON of the shares where every node weighs the same, and of base64 float32 weights where nodes differ.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import AsterismError, DataError, UnknownName
from asterism.core.storage import digest_of
from asterism.serve.jobs import Composition

FIELD = "asterism"
"""The key among a request's extra arguments."""
KNOWN = {"specialists", "shares", "weights", "modules", "generalist", "scale", "settings"}


def payload_of(composition: Composition, *, rename: Callable[[str], str] = str) -> str:
    """A composition as one line of text; `rename` gives specialists other names there."""
    made = composition.mixture
    told: dict[str, Any] = {"specialists": [rename(name) for name in made.specialists]}
    if is_even(composition):
        told["shares"] = [float(share) for share in made.weights[:, 0]]
    else:
        told["weights"] = _packed(made.weights)
        told["modules"] = {path: _packed(rows) for path, rows in made.modules.items()}
    told |= {"generalist": made.generalist, "scale": made.scale, "settings": composition.settings.model_dump(mode="json")}
    return json.dumps(told, separators=(",", ":"))


def composition_from(payload: object, nodes: int, known: Iterable[str]) -> Composition:
    """The composition that a payload tells. DataError for anything malformed, UnknownName for a specialist not among `known`."""
    try:
        told = json.loads(payload) if isinstance(payload, str) else None
        if not isinstance(told, dict) or not told.keys() <= KNOWN:
            raise ValueError(f"not an object of {', '.join(sorted(KNOWN))}")
        names = tuple(told["specialists"])
        weights = _spread(told["shares"], nodes) if "shares" in told else _unpacked(told["weights"])
        modules = {path: _unpacked(rows) for path, rows in told.get("modules", {}).items()}
        numbers = [float(told.get("generalist", 0.0)), float(told.get("scale", 1.0))]
        if tuple(weights.shape) != (len(names), nodes) or not all(bool(each.isfinite().all()) for each in [weights, *modules.values()]):
            raise ValueError(f"weights {list(weights.shape)} that are not finite, or not [{len(names)}, {nodes}]")
        if not all(np.isfinite(numbers)):
            raise ValueError("generalist or scale is not finite")
        mixture = Mixture(names, weights, weights.mean(dim=1), modules, generalist=numbers[0], scale=numbers[1])
        found = Composition(mixture, CompositionSettings(**told.get("settings", {})))
    except AsterismError:
        raise
    except Exception as error:
        mend = "make it with asterism.serve.vllm.payload.payload_of"
        raise DataError("A request's mixture cannot be read.", met=f"{type(error).__name__}: {error}"[:200], mend=mend) from None
    known = tuple(known)
    for name in names:
        if name not in known:
            raise UnknownName("specialist", name, known)
    return found


def is_even(composition: Composition) -> bool:
    """Whether every node has the same weights, so that a specialist's weight is one number everywhere."""
    weights = composition.mixture.weights
    return composition.settings.node_map != "per_module" and bool((weights == weights[:, :1]).all())


def salt_of(composition: Composition | None, given: str | None = None) -> str | None:
    """What a prompt's keys and values are kept under beside its tokens: those of one mixture never answer for another.

    `given` is the caller's own salt, kept apart as well. None: the generalist without a salt of the caller's.
    """
    return given if composition is None else digest_of(composition.key, given)


def _packed(weights: Tensor) -> dict[str, Any]:
    rows = weights.detach().to("cpu", torch.float32).numpy().astype("<f4")
    return {"shape": list(rows.shape), "float32": base64.b64encode(rows.tobytes()).decode()}


def _unpacked(told: dict[str, Any]) -> Tensor:
    rows = np.frombuffer(base64.b64decode(told["float32"], validate=True), dtype="<f4").reshape(told["shape"])
    return torch.from_numpy(rows.astype(np.float32))


def _spread(shares: list[float], nodes: int) -> Tensor:
    return torch.tensor(shares, dtype=torch.float32)[:, None].expand(-1, nodes).clone()
