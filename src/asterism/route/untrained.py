"""Gates without training: each expert's direction from prompts, or from texts of its domain. Arrow's are in `route.arrow`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.core.progress import track
from asterism.models.inputs import mean_inputs
from asterism.models.library import Library
from asterism.models.routed import RoutedForCausalLM, reached
from asterism.route.build import route
from asterism.route.experts import GENERALIST, Attention
from asterism.route.settings import RouterSettings


@dataclass(frozen=True, eq=False)
class Gates:
    """A direction for the MLP of every block and expert; a token asks for an expert by its input's product with it."""

    weights: Tensor
    """[blocks, E, d]"""
    experts: tuple[str, ...]
    """Specialists in the library's order, then perhaps `generalist`."""
    mode: Literal["softmax", "absolute", "cosine"]
    """What probabilities are made of: products, their absolute values, or cosines."""
    scale: float
    """Factor of those before the softmax: 1 / temperature."""


def route_untrained(
    library: Library, gates: Gates, settings: RouterSettings | None = None, *, attention: Attention = "refuse", **changes: Any
) -> RoutedForCausalLM:
    """The routed model of untrained gates: their experts, mode and scale, everything else as `settings` and `changes` say (see `route`).

    A gate that weighs experts of other blocks takes their directions there; a single gate takes block 0's.
    Raises MismatchError for gates of another library, SettingsError for settings of a gate without directions, and what `route` raises.
    """
    settings = (settings or RouterSettings()).changed(**changes)
    if settings.gate != "linear":
        raise SettingsError("Untrained gates are linear.", met=f"gate {settings.gate}", mend="gate linear, or train a router")
    specialists = tuple(name for name in gates.experts if name != GENERALIST)
    size = (library.anatomy.n_blocks, len(gates.experts), library.anatomy.hidden_size)
    if any(name not in library.names for name in specialists) or gates.weights.shape != size:
        met = f"{list(gates.weights.shape)} for {', '.join(gates.experts)}"
        mend = f"make them from this library: {list(size)}, experts of {', '.join(library.names)}"
        raise MismatchError("Gates are of another library.", met=met, mend=mend)
    settings = settings.changed(experts=specialists, with_generalist=GENERALIST in gates.experts, mode=gates.mode, scale=gates.scale)
    count = 1 if settings.scope == "single" else size[0]
    weighed = [gates.weights[list(reached(block, settings.depth, size[0]))].flatten(0, 1) for block in range(count)]
    return route(library, settings, attention=attention, gates=torch.stack(weighed))


def prompt_gates(
    library: Library,
    prompts: Mapping[str, Sequence[str]],
    negative: Mapping[str, Sequence[str]] | None = None,
    *,
    pool: Literal["last", "mean"] = "last",
    max_length: int = 1024,
) -> Gates:
    """mergekit-moe's gates: what each block of the generalist reads at the end of the expert's prompts, less that of its negative ones.

    prompts: by expert, which are specialists or `generalist`; negative: for some of them. Each prompt starts with the tokenizer's first
    token; the mean over prompts is made a unit vector. pool `last` is mergekit's `hidden`, `mean` its `hidden_avg`; unlike there
    padding never counts. Raises UnknownName, DataError for missing or equal prompts.
    """
    negative = negative or {}
    experts = _experts((*library.names, GENERALIST), prompts, "prompts")
    if negative:
        _experts(experts, negative, "negative prompts")
    if len(experts) > 1 and len({(*prompts[name], None, *negative.get(name, ())) for name in experts}) == 1:
        raise DataError("All experts have the same prompts.", met=repr(list(prompts[experts[0]])), mend="say what each expert is for")
    paths = [library.anatomy.block_path(block) for block in range(library.anatomy.n_blocks)]

    def read(texts: Sequence[str]) -> Tensor:
        started = _started(library.tokenizer, texts)
        return mean_inputs(library.model(), library.tokenizer, started, paths, pool=pool, max_length=max_length)

    means = [read(prompts[name]) - (read(negative[name]) if name in negative else 0.0) for name in experts]
    for name, mean in zip(experts, means, strict=True):
        if not bool(mean.norm(dim=-1).all()):
            raise DataError("Prompts and negative prompts of an expert cancel.", met=name, mend="give it other negative prompts")
    return Gates(F.normalize(torch.stack(means, dim=1), dim=-1), experts, "softmax", 1.0)


def average_activation_gates(
    library: Library,
    texts: Mapping[str, Sequence[str]],
    *,
    by: Literal["generalist", "expert"] = "generalist",
    temperature: float = 1.0,
    max_length: int = 256,
) -> Gates:
    """A token goes to the experts on whose texts the MLP's input looked alike: softmax of cosine / temperature.

    texts: by expert, which are specialists or `generalist`. An expert's direction in a block is the mean, over its texts, of a text's
    mean input to the MLP, in the generalist or in the expert's own model. Source: the baseline of Muqeeth et al. 2024
    (arXiv:2402.05859), centroid matching in Ostapenko et al. 2024 (arXiv:2405.11157). Raises UnknownName, DataError.
    """
    if by not in ("generalist", "expert"):
        raise UnknownName("model to read by", by, ("generalist", "expert"))
    experts, scale = _experts((*library.names, GENERALIST), texts, "texts"), scale_of(temperature)
    anatomy = library.anatomy
    paths = [f"{anatomy.block_path(block)}.{anatomy.layout.mlp}" for block in range(anatomy.n_blocks)]
    means = []
    for name in track(experts, "average activations"):
        model = library.model(None if by == "generalist" or name == GENERALIST else name)
        means.append(mean_inputs(model, library.tokenizer, texts[name], paths, max_length=max_length))
    return Gates(F.normalize(torch.stack(means, dim=1), dim=-1), experts, "cosine", scale)


def only(gates: Gates, names: Sequence[str]) -> Gates:
    """The gates of some of their experts. UnknownName for one that has no gate."""
    for name in names:
        if name not in gates.experts:
            raise UnknownName("expert with a gate", name, gates.experts)
    kept = [place for place, name in enumerate(gates.experts) if name in names]
    return replace(gates, weights=gates.weights[:, kept], experts=tuple(gates.experts[place] for place in kept))


def _experts(known: tuple[str, ...], given: Mapping[str, Sequence[str]], what: str) -> tuple[str, ...]:
    """Those of the known experts that texts are given for, in order."""
    if not given:
        raise DataError(f"There are no {what}.", met=repr(given), mend=f"give each expert a list of {what}")
    for name, texts in given.items():
        if name not in known:
            raise UnknownName("expert", name, known)
        if isinstance(texts, str) or not texts:
            raise DataError(f"An expert has no {what}.", met=f"{name}: {texts!r}", mend=f"give it a list of {what}")
    return tuple(name for name in known if name in given)


def _started(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Prompts that start with the tokenizer's first token, if it has one and does not put it there by itself."""
    if "" in texts:
        raise DataError("A prompt is empty.", met=repr(list(texts)), mend="leave it out or give it some words")
    if tokenizer.bos_token is None or tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return list(texts)
    return [tokenizer.bos_token + text for text in texts]


def scale_of(temperature: float) -> float:
    """The scale of a temperature; SettingsError unless it is positive."""
    if not temperature > 0:
        raise SettingsError("A temperature is positive.", met=temperature, mend="e.g. 1.0; lower makes gates choose more sharply")
    return 1 / temperature
