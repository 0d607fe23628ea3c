"""Static merges as candidates: each method over its usual grid, the best setting on validation probes, scored on the test probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.corpus import Probe, check_domains
from asterism.core.errors import DataError, UnknownName
from asterism.core.progress import track
from asterism.core.storage import digest_of
from asterism.evaluate.calibrate import mean_loss
from asterism.evaluate.parts import Parts
from asterism.evaluate.passes import score_static
from asterism.evaluate.probes import check_lengths
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.merge.emr import Emr
from asterism.merge.learned import learned_merge
from asterism.merge.library import merge
from asterism.merge.methods import METHODS
from asterism.merge.soup import greedy_soup
from asterism.models.batching import Batch, batches, pad_id, tokenise
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel

_SCALES = (0.3, 0.5, 1.0)
GRIDS: dict[str, dict[str, tuple[float | bool, ...]]] = {
    "ties": {"density": (0.1, 0.2, 0.5), "lambda": (0.5, 1.0, 1.5)},
    "dare_linear": {"density": (0.1, 0.2, 0.5), "lambda": _SCALES},
    "dare_ties": {"density": (0.1, 0.2, 0.5), "lambda": _SCALES},
    "breadcrumbs": {"density": (0.7, 0.85), "gamma": (0.01,), "lambda": _SCALES},
    "breadcrumbs_ties": {"density": (0.7, 0.85), "gamma": (0.01,), "lambda": _SCALES},
    "della": {"density": (0.3, 0.5), "epsilon": (0.1,), "lambda": (0.5, 1.0, 1.5)},
    "della_linear": {"density": (0.3, 0.5), "epsilon": (0.1,), "lambda": _SCALES},
    "sce": {"select_topk": (0.1, 0.5, 1.0)},
    "ram": {"epsilon": (1e-5, 1e-3)},
    "ramplus_tl": {"r": (0.1, 0.3), "epsilon": (1e-5, 1e-3)},
    "multislerp": {},
    "karcher": {},
    "model_stock": {"filter_wise": (False, True)},
    "slerp": {"t": (0.3, 0.5, 0.7)},
    "nuslerp": {"nuslerp_flatten": (True, False)},
    "lerp": {"t": (0.3, 0.5, 0.7)},
    "nearswap": {"t": (1e-4, 1e-3, 1e-2)},
    "arcee_fusion": {},
    "fisher": {"floor": (1e-6, 1e-2)},
    "regmean": {"alpha": (0.5, 0.9)},
    "adamerging": {"start": (0.3,), "steps": (100,)},
    "greedy_soup": {},
    "emr": {},
}
"""Method -> parameter -> values tried, every combination of them: the values of the papers and of their usual comparisons. The uniform soup
and task arithmetic are candidates of every evaluation; passthrough merges nothing."""
BY_DATA = ("fisher", "regmean", "adamerging")
"""Methods that read texts of each domain."""
SOUP, EMR = "greedy_soup", "emr"
Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Merged:
    """A candidate: the library's specialists merged into one model, or, by EMR, into one model a specialist."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    """Mean loss on the probes that chose the parameters; None where there was nothing to choose."""
    texts: Texts = field(default_factory=dict, repr=False)
    """Domain -> texts, for a method that reads some."""

    @property
    def told(self) -> dict[str, Any]:
        """What an evaluation was made from."""
        parts = {"method": self.method, "parameters": dict(self.parameters), "validation_loss": self.validation_loss}
        return parts | ({"texts": digest_of({name: list(own) for name, own in self.texts.items()})} if self.texts else {})

    @property
    def name(self) -> str:
        """In the tables: the method's."""
        return self.method

    @property
    def about(self) -> str:
        """One line."""
        if self.method == EMR:
            return "EMR-Merging: one delta for all, a mask and a factor a specialist; a probe takes the one of its largest coefficient"
        if self.method == SOUP:
            return f"one model: the mean of {', '.join(self.parameters['names'])}, who together predict validation probes best"
        title = METHODS[self.method].title if self.method in METHODS else TITLES[self.method]
        told = ", ".join(f"{name} {value:g}" for name, value in self.parameters.items()) or "no parameters"
        return f"one model: {title} of all specialists, all parameters ({told}, chosen on validation probes)"

    def build(self, library: Library) -> PreTrainedModel:
        """The merged model."""
        if self.method in BY_DATA:
            return learned_merge(library, self.method, self.texts or None, **self.parameters)  # pyright: ignore[reportArgumentType]
        if self.method == SOUP:
            chosen = self.parameters["names"]
            return merge(library, "linear", weight={name: float(name in chosen) for name in library.names})
        return merge(library, self.method, **self.parameters)

    def score(self, library: Library, picks: Mapping[Protocol, Tensor], batches: Sequence[Batch], n: int) -> dict[str, Tensor]:
        """Protocol -> [n] losses. picks: protocol -> [n] index of the specialist that a probe is routed to, which EMR needs."""
        if self.method != EMR:
            return {**score_static(library, self, batches, n).loss}
        emr = Emr.build(library)
        each = [score_static(library, _Ready(self.method, emr.model(name)), batches, n).loss for name in library.names]
        return {protocol: torch.stack([own[protocol] for own in each]).gather(0, pick[None])[0] for protocol, pick in picks.items()}


TITLES = {"fisher": "Fisher-weighted average", "regmean": "RegMean", "adamerging": "AdaMerging"}


@dataclass(frozen=True, eq=False)
class _Ready:
    """A model as a candidate."""

    name: str
    model: PreTrainedModel

    def build(self, library: Library) -> PreTrainedModel:
        return self.model


def possible(library: Library, methods: Iterable[str] = ("all",)) -> list[str]:
    """The methods asked for that can merge all specialists of a library; `all`: every one that can.

    Raises UnknownName for a method without a grid, MismatchError for one that takes another number of models.
    """
    asked = list(dict.fromkeys(methods))
    if asked == ["all"]:
        return [name for name in GRIDS if _fits(name, library)]
    for name in asked:
        if name not in GRIDS:
            raise UnknownName("merge method with a grid", name, GRIDS)
        if name in METHODS:
            METHODS[name].check_count(_stacked(name, library))
    return asked


def tuned(
    library: Library,
    methods: Iterable[str],
    probes: Sequence[Probe],
    settings: EvaluationSettings | None = None,
    *,
    texts: Texts | None = None,
    state: str | Path | None = None,
) -> list[Merged]:
    """Each method with the parameters of its grid whose mean loss on `probes` (over protocols and tasks) is lowest; the first of equals.

    `texts`: domain -> training texts, for the methods that read some. `state` is a folder where finished merges' losses are kept; it is
    removed at the end. Raises DataError for no probes or one too short to score, UnknownName for one of a domain without a specialist, and
    what `possible` raises.
    """
    settings, methods = settings or EvaluationSettings(), possible(library, methods)
    if not probes:
        raise DataError("Merges are tuned on validation probes.", met="none", mend="give held-out texts that no test scores")
    check_domains(probes, library.names)
    tokens = tokenise(library.tokenizer, [probe.text for probe in probes], settings.max_length)
    check_lengths(probes, tokens)
    batched = batches(tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
    origin = digest_of(library.digests(), [[probe.text, list(probe.domains)] for probe in probes], settings.digest())
    parts = Parts(Path(state), origin) if state else None

    def loss(candidate: Merged) -> float:
        def scored():
            return {**score_static(library, candidate, batched, len(probes)).loss}

        found = parts.tensors(f"{candidate.name}-{digest_of(candidate.told)[:16]}", scored) if parts else scored()
        return mean_loss({protocol: found[protocol] for protocol in settings.protocols}, probes)

    tried = [candidate for name in methods if name not in (SOUP, EMR) for candidate in grid(name, texts)]
    losses = [(loss(candidate), place) for place, candidate in enumerate(track(tried, "merges"))]
    best = []
    for name in methods:
        if name == EMR:
            best.append(Merged(EMR))
        elif name == SOUP:
            soup = greedy_soup(library, _by_group(probes), max_length=settings.max_length)
            best.append(Merged(SOUP, {"names": list(soup.names)}, soup.loss))
        else:
            least, place = min(each for each in losses if tried[each[1]].method == name)
            best.append(replace(tried[place], validation_loss=least))
    if parts:
        parts.remove()
    return best


def grid(method: str, texts: Texts | None = None) -> Iterator[Merged]:
    """Every setting tried of a method."""
    values = GRIDS[method]
    for chosen in product(*values.values()):
        yield Merged(method, dict(zip(values, chosen, strict=True)), texts=texts or {} if method in BY_DATA else {})


def _by_group(probes: Sequence[Probe]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for probe in probes:
        groups.setdefault(probe.group, []).append(probe.text)
    return groups


def _fits(name: str, library: Library) -> bool:
    if name not in METHODS:
        return True
    method, count = METHODS[name], _stacked(name, library)
    return method.least <= count and (method.most is None or count <= method.most)


def _stacked(name: str, library: Library) -> int:
    """How many tensors the method stacks: the specialists, and the generalist where it is a model among them."""
    method = METHODS[name]
    return len(library.names) + (method.stack == "models" and method.base != "none")
