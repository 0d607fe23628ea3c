"""A library merged by the name of a method, and written: what a recipe can say, what is learnt from texts, greedy soups, EMR's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from asterism.core.errors import SettingsError, StorageError, UnknownName
from asterism.core.storage import digest_of
from asterism.merge.card import RECORD
from asterism.merge.emr import Emr
from asterism.merge.files import SHARD_BYTES
from asterism.merge.findings import content_digest, model_digest
from asterism.merge.learned import LearnedMethod, Texts, learned_merge
from asterism.merge.library import recipe_of
from asterism.merge.methods import METHODS
from asterism.merge.places import place_for
from asterism.merge.recipe import Recipe
from asterism.merge.run import Job, Merge, merge_recipe
from asterism.merge.soup import greedy_soup
from asterism.models.anatomy import skeleton
from asterism.models.library import Library
from asterism.models.likeness import Expected
from asterism.models.types import PreTrainedModel

SOUP, EMR = "greedy_soup", "emr"
BY_DATA: tuple[str, ...] = get_args(LearnedMethod)
"""Methods that learn from texts of each specialist's domain."""
OTHERS = {
    "fisher": ("Fisher-weighted average", "arXiv:2111.09832"),
    "regmean": ("RegMean", "arXiv:2212.09849"),
    "adamerging": ("AdaMerging", "arXiv:2310.02575"),
    SOUP: ("Greedy soup", "arXiv:2203.05482"),
    EMR: ("EMR-Merging", "arXiv:2405.17461"),
}
"""Merges that no recipe can ask for: title and source."""


def merge_library(
    library: Library,
    method: str,
    out: str | Path,
    texts: Texts | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 42,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the merge of a library's specialists by any method, as `merge_recipe` writes one; returns what `merge.json` beside it says.

    texts: for `fisher`, `regmean` and `adamerging` specialist -> texts of its domain, or None for what an earlier merge has kept with the
    library; for `greedy_soup` domain -> held-out texts; no other method reads any. parameters: the method's, by name. `emr` is no one
    model: its parts are written, which `Emr.load(library, out)` opens, in a folder that is not there yet.
    Raises UnknownName, SettingsError (texts or parameters that the method does not take), StorageError (the place; nothing kept), and what
    the merges themselves raise.
    """
    parameters = dict(parameters or {})
    check_method(method, texts is not None, parameters)
    if method == EMR:
        return _emr(library, Path(out))
    place_for(out, RECORD, "merge")
    if method in METHODS:
        recipe = recipe_of(library, method, **parameters)
        return merge_recipe(recipe, out, seed=seed, device=str(library.device), shard_bytes=shard_bytes)
    facts = _facts(library, method, parameters, texts)
    if method == SOUP:
        soup = greedy_soup(library, texts or {}, **parameters)
        weight = {name: float(name in soup.names) for name in library.names}
        facts["soup"] = {"names": list(soup.names), "loss": soup.loss, "alone": dict(soup.alone), "tried": dict(soup.tried)}
        work = _Named(recipe_of(library, "linear", weight=weight), seed, facts)
    else:
        parameters = ({"seed": seed} if method == "adamerging" else {}) | parameters
        model = learned_merge(library, method, texts, **parameters)  # pyright: ignore[reportArgumentType]
        work = _Named(recipe_of(library, "task_arithmetic"), seed, facts | {"recipe": None, "parameters": parameters}, model)
    return work.write(out, device=str(library.device), shard_bytes=shard_bytes)


def check_method(method: str, texts: bool = False, parameters: Mapping[str, Any] | None = None) -> None:
    """UnknownName for a method that there is not, SettingsError for texts that it does not read or for parameters of one that has none.

    texts: whether some are given. A soup needs them.
    """
    if method not in METHODS and method not in OTHERS:
        raise UnknownName("merge method", method, (*METHODS, *OTHERS))
    if texts and (method in METHODS or method == EMR):
        mend = f"leave the texts out; {', '.join((*BY_DATA, SOUP))} read some"
        raise SettingsError(f"{method} reads no texts.", met="texts", mend=mend)
    if method == SOUP and not texts:
        raise SettingsError(
            "A soup is tasted on held-out texts.", met="none", mend="give texts by domain, files <domain>.heldout in a folder"
        )
    for name in parameters or ():
        if method == EMR:
            raise SettingsError("emr has no parameters.", met=name, mend="leave it out")
        if method == SOUP and name != "max_length":
            raise UnknownName(f"parameter of {method}", name, ("max_length",))


class _Named(Merge):
    """A merge with a record of its own and, where there is a live model, with its weights; the recipe tells what lies beside them."""

    def __init__(self, recipe: Recipe, seed: int, facts: Mapping[str, Any], model: PreTrainedModel | None = None) -> None:
        super().__init__(recipe, seed)
        self._facts, self._state = facts, {} if model is None else self._tensors(model)
        self._content = model_digest({name: content_digest(tensor) for name, tensor in self._state.items()})

    def _tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The model's, by the names of the checkpoint to be written."""
        expected, own = Expected(skeleton(model.config)), dict(model.named_parameters())
        named = {piece.name: expected.parameter(piece.name) for piece in self.pieces}
        return {tensor: own[parameter].detach().cpu() for tensor, parameter in named.items() if parameter in own}

    def _merged(self, job: Job, tensors: Sequence[Tensor], out: Tensor, device: str) -> Tensor:
        own = self._state.get(job.piece.name)
        return super()._merged(job, tensors, out, device) if own is None else out.copy_(own)

    def _origin(self, device: str, shard_bytes: int) -> str:
        return digest_of(super()._origin(device, shard_bytes), self._content, self._facts)

    def _told(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return super()._told(found) | dict(self._facts)


def _facts(library: Library, method: str, parameters: Mapping[str, Any], texts: Texts | None) -> dict[str, Any]:
    """What the record says in the place of a recipe's method."""
    title, source = OTHERS[method]
    read = {name: {"number": len(own), "digest": digest_of(list(own))} for name, own in (texts or {}).items()}
    return {
        "method": {"name": method, "title": title, "source": source}, "parameters": dict(parameters),
        "library": str(library.root.resolve()), "texts": read or None,
    }  # fmt: skip


def _emr(library: Library, out: Path) -> dict[str, Any]:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError("The output place holds something.", met=out, mend="choose another folder, or remove that one")
    emr = Emr.build(library)
    emr.save(out)
    return {**_facts(library, EMR, {}, None), "rescalers": emr.rescalers, "share": emr.size.share}
