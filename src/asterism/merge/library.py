"""Merge a library's specialists: the same work as a recipe's, with the result as a live model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asterism.core.errors import SettingsError, UnknownName
from asterism.merge.methods import method as named
from asterism.merge.recipe import Recipe
from asterism.merge.run import Merge
from asterism.models.anatomy import skeleton
from asterism.models.library import Library
from asterism.models.likeness import Expected
from asterism.models.loading import build
from asterism.models.types import PreTrainedModel


def merge(library: Library, method: str, *, seed: int = 42, **parameters: Any) -> PreTrainedModel:
    """One model for all queries: the library's specialists merged by a method, independent of the library.

    parameters: the method's, by name (`lambda_` for lambda). One that each model has its own value of takes one number for all or a
    mapping of specialists to numbers; `weight` is 1 where it is not given.
    Raises UnknownName, SettingsError, MismatchError for settings that the method does not take.
    """
    work = Merge(recipe_of(library, method, **parameters), seed)
    expected = Expected(skeleton(library.config))
    tensors = {}
    for job, tensor, _ in work.tensors(str(library.device)):
        tensors[expected.parameter(job.piece.name) or job.piece.name] = tensor.to(library.device, library.dtype, copy=True)
    return build(library.config, tensors, library.dtype, folder=library.folder()).requires_grad_(True)


def recipe_of(library: Library, method: str, **parameters: Any) -> Recipe:
    """The recipe of `merge`, as a file could hold it."""
    known = named(method)
    given = {name.rstrip("_"): value for name, value in parameters.items()}
    if "weight" in known.parameters:
        given.setdefault("weight", 1.0)
    each: dict[str, dict[str, Any]] = {name: {} for name in library.names}
    shared: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known.parameters:
            raise UnknownName(f"parameter of {method}", name, known.parameters)
        if not isinstance(value, Mapping):
            shared[name] = value
            continue
        for specialist, own in value.items():
            if specialist not in each:
                raise UnknownName("specialist", specialist, each)
            each[specialist][name] = own
        if missing := [specialist for specialist in each if specialist not in value]:
            mend = "give every specialist a value, or one for all"
            raise SettingsError(f"{name} lacks a specialist.", met=missing[0], mend=mend)
    base, *others = (_reference(library, name) for name in (None, *library.names))
    models = [{"model": model, "parameters": own} for model, own in zip(others, each.values(), strict=True)]
    content: dict[str, Any] = {"merge_method": method, "models": models, "parameters": shared}
    return Recipe.of(content if known.base == "none" else content | {"base_model": base})


def _reference(library: Library, name: str | None) -> dict[str, Any]:
    """How a recipe names the generalist or a specialist; an adapter lies on the generalist."""
    folder = library.folder(name)
    if (folder / "adapter_config.json").is_file():
        return {"model": {"path": str(library.folder())}, "lora": {"path": str(folder)}}
    return {"model": {"path": str(folder)}}
