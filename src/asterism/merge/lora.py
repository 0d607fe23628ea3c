"""Merge LoRA adapters of one base into one adapter. Always what they change is merged, up @ down; never the factors apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import MismatchError, SettingsError, UnsupportedError
from asterism.core.lowrank import Factors, products
from asterism.core.parts import Parts, passing_parts
from asterism.core.progress import track
from asterism.core.storage import alone, digest_of
from asterism.merge.adapting import Ground, save, told_of
from asterism.merge.card import RECORD, record
from asterism.merge.findings import content_digest, model_digest
from asterism.merge.methods.families import Combination
from asterism.merge.methods.method import arguments_for
from asterism.merge.places import place_for
from asterism.merge.recipe import Recipe
from asterism.merge.run import Job, Merge, stamp
from asterism.merge.sources import check_apart
from asterism.models.adapters import Adapter, read_adapter
from asterism.models.fitting import AdapterReport, Fitting

_WHOLE = 1e-9  # how far from 1 the sum of coefficients may be that leave the base as it is


def merge_adapters(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path, *, rank: int | None = None, seed: int = 42, device: str = "cpu"
) -> AdapterReport:
    """Write the merge that a recipe describes as one PEFT LoRA, with `merge.json` and a card beside it; what it loses is reported.

    Every model of the recipe is BASE+ADAPTER, or BASE itself, of one base. A combination of deltas (task_arithmetic, model_stock, ...), or
    of models whose weights sum to 1, is again of low rank, sum r_i at most: exact without `rank`, O((out + in) (sum r_i)^2) a matrix.
    Any other merge is computed in full, one matrix at a time, and cut to the nearest of `rank`. The recipe's dtype is the factors'.
    From a library: `merge_adapters(recipe_of(library, "ties", density=0.2), out, rank=16)`. `out` is whole or absent; a killed run goes on.
    Raises SettingsError (a rank is needed; nothing to write), MismatchError (several bases), UnsupportedError (what an adapter cannot
    hold), StorageError when `out` holds something other than an earlier merge, and whatever `merge_recipe` raises.
    """
    recipe = Recipe.given(recipe)
    out = place_for(out, RECORD, "merge")
    _check_holdable(recipe)
    asked = recipe.out_dtype or recipe.dtype
    work = _Adapters(recipe, seed, device)
    models = (work.merge.donor, *work.merge.models)
    check_apart(out, models)
    fitting = Fitting(work.ground.anatomy, rank=rank, dtype=getattr(torch, asked) if asked else None)
    origin = digest_of(recipe.digest, rank, seed, device, [stamp(model) for model in models])
    with alone(out), passing_parts(out.with_name(f".{out.name}.fitting"), origin) as parts:
        for job in track(work.merge.jobs, "tensors"):
            work.into(fitting, job, parts)
        fitting.check("merge")
        method = work.merge.method
        sources = work.sources()
        told = record(recipe, method, work.merge.models, seed, sources)
        told |= {"kind": "adapter", "rank": rank, "adapter": told_of(fitting.report)}
        story = f"a merge of adapters by {method.title} ({method.source}), seed {seed}."
        save(out, fitting, work.ground, RECORD, told, story, {each["model"]: each["digest"] for each in sources}, recipe.content)
    return fitting.report


class _Adapters:
    """A merge whose models are one base with adapters on it."""

    def __init__(self, recipe: Recipe, seed: int, device: str) -> None:
        self.device = device
        self.merge = Merge(recipe, seed)
        models = [*self.merge.models, self.merge.donor]
        for model in models:
            if not model.folder.samefile(models[0].folder):
                met = f"{models[0].reference.model} and {model.reference.model}"
                mend = "name every model as BASE+ADAPTER; `asterism extract-lora` cuts an adapter out of a whole model"
                raise MismatchError("Adapters of different bases do not make one adapter.", met=met, mend=mend)
        self.base = models[0].checkpoint
        self.ground = Ground.of(models[0].reference.model, models[0].folder)
        self.adapters: list[Adapter | None] = [
            None if model.lora is None else read_adapter(model.lora).fitted(self.ground.anatomy, self.ground.expected.prefix)
            for model in self.merge.models
        ]
        if not any(self.adapters):
            mend = "name them as BASE+ADAPTER, or leave out --as adapter"
            raise SettingsError("The recipe merges no adapters.", met=", ".join(map(str, recipe.models)), mend=mend)
        self._check_places()

    def into(self, fitting: Fitting, job: Job, parts: Parts) -> None:
        """One tensor's merged change: kept as factors where it is of low rank, else cut, once; told where no LoRA can hold it."""
        name = self.ground.parameter(job.piece.name)
        changes = [self._change(job, place, name) for place in job.order]
        origin = None if job.base is None else self._change(job, job.base, name)
        if not any(changes) and origin is None and (job.base is not None or job.keeps):
            return
        if (found := self._combined(job, changes, origin, name)) is not None:
            if found[0].shape[1]:
                fitting.take(name, found)
        elif not self.ground.anatomy.is_linear(name):
            fitting.leave_out(name, self._dense(job, changes, origin, name).norm().item())
        elif fitting.rank is not None:
            kept = parts.tensors(name, lambda: self._cut(fitting, name, self._dense(job, changes, origin, name)))
            if "up" in kept:
                fitting.restore(name, kept)
        else:
            mend = "give a rank, e.g. 16 (--rank 16); what it loses is reported"
            wrong = "This merge of adapters is not of low rank: an adapter can only approximate it."
            raise SettingsError(wrong, met=f"{name} changes in full by {self.merge.method.name}", mend=mend)

    def _cut(self, fitting: Fitting, name: str, delta: Tensor) -> dict[str, Tensor]:
        """What `restore` takes up; only a word of it where nothing changes."""
        fitting.cut(name, delta)
        return fitting.kept(name) if name in fitting.factors else {"told": torch.zeros(2)}

    def sources(self) -> list[dict[str, Any]]:
        """The adapters by their content."""
        found = []
        for model, adapter in zip(self.merge.models, self.adapters, strict=True):
            if adapter is not None:
                stored = adapter.checkpoint
                digest = model_digest({name: content_digest(stored.mapped(name)) for name in stored.names})
                found.append({"model": str(model.reference), "tensors": len(stored.names), "digest": digest})
        return found

    def _change(self, job: Job, place: int, name: str) -> Factors | None:
        """What a source of the job adds to the base."""
        adapter = self.adapters[job.piece.sources[place].model]
        change = adapter.change(name, device=self.device) if adapter else None
        return None if change is None else (change.up, change.down)

    def _combined(self, job: Job, changes: Sequence[Factors | None], origin: Factors | None, name: str) -> Factors | None:
        """The merged change as factors, exact; none where the merge is not of low rank.

        Of deltas x_i - o the merge is o + sum_i c_i (x_i - o); of models b + x_i it is sum_i c_i x_i if the c_i sum to 1.
        """
        method = self.merge.method
        if not isinstance(method, Combination) or (job.base is None and not method.blind):
            return None
        split = method.split(**arguments_for(method.split, job.bound)) if method.split else "whole"
        rows_are_outputs = self.ground.anatomy.output_axes[name] == 0
        by = "whole" if split == "whole" else "up" if (split == "rows") == rows_are_outputs else "down"
        terms = [*changes, origin]
        apart = torch.cat([torch.eye(len(changes)), -torch.ones(len(changes), 1)], dim=1).double()  # terms -> their differences from o
        weights = method.coefficients(apart @ products(terms, by) @ apart.mT, job.bound)  # [K], [out, K] or [in, K]
        rest = 1 - weights.sum(-1, keepdim=True)
        if job.base is None and rest.abs().max() > _WHOLE:
            return None
        weights = torch.cat([weights, rest.where(rest.abs() > _WHOLE, 0.0)], dim=-1)
        weighted = [_scaled(term, weight, by) for term, weight in zip(terms, weights.unbind(-1), strict=True) if term and weight.any()]
        if not weighted:
            return torch.zeros(1, 0), torch.zeros(0, 1)
        dtype = self._dtype([up for up, _ in weighted])
        return torch.cat([up.to(dtype) for up, _ in weighted], dim=1), torch.cat([down.to(dtype) for _, down in weighted])

    def _dense(self, job: Job, changes: Sequence[Factors | None], origin: Factors | None, name: str) -> Tensor:
        """The merged change in the parameter's layout. Deltas are merged as such, float32; models in float64, less the base."""
        method, about = self.merge.method, job.piece.name
        if job.base is not None:
            dtype = self._dtype([term[0] for term in (*changes, origin) if term])
            start = self._full(origin, name, dtype)
            stack = [self._full(change, name, dtype) - start for change in changes]
        else:
            start = self.base.mapped(job.piece.sources[0].name).to(self.device, torch.float64)
            stack = [start + self._full(change, name, torch.float64) for change in changes]
        merged = torch.empty_like(start)
        method.into(merged, stack, None, bound=job.bound, keys=job.keys, name=about)
        return merged + start if job.base is not None else (merged - start).to(self._dtype([]))

    def _full(self, change: Factors | None, name: str, dtype: torch.dtype) -> Tensor:
        shape, axis = self.ground.anatomy.shapes[name], self.ground.anatomy.output_axes[name]
        if change is None:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        product = change[0].to(dtype) @ change[1].to(dtype)
        return product if axis == 0 else product.mT.contiguous()

    def _dtype(self, tensors: Sequence[Tensor]) -> torch.dtype:
        """float64 where one is, or where the recipe asks for it, else float32."""
        wide = "float64" in (self.merge.recipe.dtype, self.merge.recipe.out_dtype) or any(each.dtype == torch.float64 for each in tensors)
        return torch.float64 if wide else torch.float32

    def _check_places(self) -> None:
        """UnsupportedError unless every tensor of the merge stands where it stood in the base."""
        moved = next((p for p in self.merge.pieces if any(source.name != p.name for source in p.sources)), None)
        met = f"{moved.name} is made of {moved.sources[0].name}" if moved else ""
        if not moved:
            absent = self.ground.anatomy.shapes.keys() - {self.ground.parameter(piece.name) for piece in self.merge.pieces}
            met = f"{min(absent)} is not in the merge" if absent else ""
        if met:
            mend = "merge whole models with `models`, or write a checkpoint"
            raise UnsupportedError("An adapter changes the base's own layers: slices that move them cannot be one.", met=met, mend=mend)


def _scaled(term: Factors, weight: Tensor, by: str) -> Factors:
    """weight: [], or one number a row of up or a column of down."""
    up, down = term
    weight = weight.to(up.device)
    return (up, down * weight) if by == "down" else (up * (weight[:, None] if by == "up" else weight), down)


def _check_holdable(recipe: Recipe) -> None:
    """UnsupportedError, by name, for what a recipe asks of the tokenizer: an adapter has none."""
    for key in ("tokenizer", "tokenizer_source", "chat_template"):
        if recipe.content.get(key) is not None:
            mend = "remove it, or write a checkpoint"
            raise UnsupportedError(f"An adapter leaves the tokenizer alone: {key} is not supported.", met=recipe.content[key], mend=mend)
