"""A routed model from a library, and its gates alone on disk: a router, which belongs to the models that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import AsterismError, MismatchError, SettingsError, StaleError, StorageError, UnknownName
from asterism.core.progress import track
from asterism.core.storage import read_json, read_tensors, replacing, vacant, write_json, write_tensors
from asterism.models.anatomy import skeleton
from asterism.models.library import Library
from asterism.models.loading import build
from asterism.models.routed import RoutedConfig, RoutedForCausalLM
from asterism.route.experts import GENERALIST, Attention, check_experts, expert_tensor, shared_tensor
from asterism.route.settings import RouterSettings

FORMAT_VERSION = 1
RECORD = "router.json"
TENSORS = "router.safetensors"


def route(
    library: Library,
    settings: RouterSettings | None = None,
    *,
    attention: Attention = "refuse",
    gates: Tensor | Mapping[str, Tensor] | None = None,
    **changes: Any,
) -> RoutedForCausalLM:
    """The generalist with the MLPs of the library's models side by side in every block, weighed token by token (arXiv:2411.02207).

    The model is independent of the library; its gates alone ask for gradients. `changes` are fields of RouterSettings, e.g. `depth=2`.
    attention: what to do where specialists differ in more than their MLPs (see `Attention`). gates: their weights, drawn anew (fixed
    ones: all equal) without them: [gates, E, d] for linear and [gates, E] for fixed gates, or without the first axis the same for
    all; or tensors by name as `RoutedForCausalLM.gate_state` gives them.
    Raises MismatchError (attention that differs, gates of another shape), SettingsError, UnknownName.
    """
    settings = (settings or RouterSettings()).changed(**changes)
    names = specialists_of(library, settings)
    _check(library, settings, names)
    check_experts(library, names, attention)
    experts = [*names, GENERALIST] if settings.with_generalist else names
    config = RoutedConfig(
        library.config,
        experts,
        depth=settings.depth,
        scope=settings.scope,
        gate=settings.gate,
        mode=settings.mode,
        scale=settings.scale,
        num_experts_per_tok=settings.top_k,
        normalise=settings.normalise,
        balance=settings.balance,
        origin=_origin(library, settings, names, attention),
    )
    tensors: dict[str, Tensor] = {}
    for parameter in track(list(library.anatomy.shapes), "gathering experts"):
        if library.anatomy.role_of(parameter) == "mlp":
            before, after = parameter.split(".mlp.", 1)
            for index, name in enumerate(experts):
                tensors[f"{before}.mlp.experts.{index}.{after}"] = expert_tensor(library, name, parameter)
        else:
            tensors[parameter] = shared_tensor(library, parameter, names, attention)
    gated = (named for named in skeleton(config).named_parameters() if named[0] not in tensors)
    tensors |= {name: torch.empty(gate.shape, dtype=library.dtype, device=library.device) for name, gate in gated}
    model: Any = build(config, tensors, library.dtype, folder=library.folder())
    _fill(model, settings, gates)
    for gate in model.gates:
        gate.requires_grad_(True)
    return model


def specialists_of(library: Library, settings: RouterSettings) -> list[str]:
    """The specialists that settings name; UnknownName for one that the library has not."""
    for name in settings.experts or ():
        if name not in library.names:
            raise UnknownName("specialist", name, library.names)
    return list(library.names if settings.experts is None else settings.experts)


def save_router(model: RoutedForCausalLM, folder: str | Path) -> Path:
    """Write the gates alone, a few vectors a block, with the digests of the models that they were made for; whole or absent.

    Raises MismatchError for a model that is not routed, StorageError when `folder` holds something else than an earlier router.
    `model.save_pretrained` writes the whole model instead.
    """
    if not hasattr(model, "gate_state"):
        raise MismatchError("A router is the gates of a routed model.", met=type(model).__name__, mend="give a model that `route` made")
    folder = vacant(folder, RECORD, "router")
    with replacing(folder) as temporary:
        write_router(temporary, model.gate_state(), model.config.origin)
    return folder


def write_router(folder: Path, gates: Mapping[str, Tensor], origin: Mapping[str, Any]) -> None:
    """The files of a router in a folder of the caller's."""
    write_tensors(folder / TENSORS, gates)
    write_json(folder / RECORD, {"format_version": FORMAT_VERSION, "origin": origin})


def load_router(folder: str | Path, library: Library) -> RoutedForCausalLM:
    """The routed model of a router and the library that it was made from.

    Raises what `read_router` raises, StorageError for damaged gates.
    """
    settings, attention = read_router(folder, library)
    return route(library, settings, attention=attention, gates=read_tensors(Path(folder) / TENSORS))


def read_router(folder: str | Path, library: Library) -> tuple[RouterSettings, Attention]:
    """What `route` was given for a router; no model is built.

    Raises StaleError where generalist or specialists are others than then, StorageError for a folder that holds no router or a damaged one.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise StorageError("There is no router here.", met=folder, mend="train one with `asterism route train`, or save_router")
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        met = f"{folder}: format_version {record.get('format_version') if isinstance(record, dict) else None}, not {FORMAT_VERSION}"
        raise StorageError("The router was written by another version of asterism.", met=met, mend="upgrade asterism, or train it again")
    try:
        origin = record["origin"]
        settings, attention = RouterSettings(**origin["settings"]), origin["attention"]
        known = {None: origin["generalist"], **origin["specialists"]}
    except (KeyError, TypeError, AsterismError) as error:
        raise StorageError("A router's record is damaged.", met=f"{folder / RECORD}: {error}", mend="train the router again") from None
    for name, digest in known.items():
        if name is not None and name not in library.names:
            raise StaleError("The router was made with another library.", met=f"it has no specialist {name!r}", mend=_AGAIN)
        if library.digest(name) != digest:
            met = f"{name or 'the generalist'} is {library.digest(name)[:12]}, the router knows {digest[:12]}"
            raise StaleError("The router was made with another library.", met=met, mend=_AGAIN)
    return settings.changed(experts=tuple(origin["specialists"])), attention


_AGAIN = "open the library that the router was trained on, or train it again"


def _check(library: Library, settings: RouterSettings, names: list[str]) -> None:
    """SettingsError for a depth or a top-k beyond what there is, and for a single expert."""
    blocks, models = library.anatomy.n_blocks, len(names) + settings.with_generalist
    if settings.depth > blocks:
        raise SettingsError("depth asks for more layers than the model has.", met=settings.depth, mend=f"1 <= depth <= {blocks} here")
    weighed = models * settings.depth
    if settings.top_k is not None and settings.top_k > weighed:
        met = f"top_k {settings.top_k}, {models} models x depth {settings.depth}"
        raise SettingsError("top_k asks for more experts than there are.", met=met, mend=f"1 <= top_k <= {weighed} here")
    if weighed < 2:
        mend = "add a specialist, or take with_generalist or a depth of 2"
        raise SettingsError("There is nothing to route between.", met=f"{weighed} experts a block", mend=mend)


def _origin(library: Library, settings: RouterSettings, names: list[str], attention: Attention) -> dict[str, Any]:
    return {
        "generalist": library.digest(),
        "specialists": {name: library.digest(name) for name in names},
        "attention": attention,
        "settings": settings.model_dump(mode="json"),
    }


def _fill(model: RoutedForCausalLM, settings: RouterSettings, gates: Tensor | Mapping[str, Tensor] | None) -> None:
    """Give the gates their weights. MismatchError where those have another shape or other names than the model's."""
    own = model.gate_state()
    if gates is None:
        model.reset_gates(settings.seed)
    elif isinstance(gates, Tensor):
        one = [] if settings.gate == "mlp" else list(next(iter(own.values())).shape)
        if not one or list(gates.shape) not in (one, [len(model.gates), *one]):
            mend = f"{[len(model.gates), *one]}, or {one} for all" if one else "give their tensors by name"
            met = f"{settings.gate} gates, {list(gates.shape)}"
            raise MismatchError("Gates have another shape than their weights.", met=met, mend=mend)
        model.set_gates(gates)
    else:
        shapes = {name: list(tensor.shape) for name, tensor in gates.items()}
        wanted = {name: list(tensor.shape) for name, tensor in own.items()}
        if shapes != wanted:
            odd = min(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
            met = f"{odd} is {shapes.get(odd)}, the model wants {wanted.get(odd)}"
            raise MismatchError("A router does not fit its model.", met=met, mend="take the router's own settings and library")
        model.load_state_dict(dict(gates), strict=False)
