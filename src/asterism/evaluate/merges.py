"""Static merges as candidates: each method over its usual grid, the best setting on validation probes, scored on the test probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from asterism.core.corpus import Probe, check_domains
from asterism.core.errors import DataError, UnknownName
from asterism.core.progress import track
from asterism.core.storage import digest_of
from asterism.evaluate.calibrate import mean_loss
from asterism.evaluate.parts import Parts
from asterism.evaluate.passes import score_static
from asterism.evaluate.probes import check_lengths
from asterism.evaluate.settings import EvaluationSettings
from asterism.merge.library import merge
from asterism.merge.methods import METHODS
from asterism.models.batching import batches, pad_id, tokenise
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
}
"""Method -> parameter -> values tried, every combination of them: the values of the papers and of their usual comparisons. The uniform soup
and task arithmetic are candidates of every evaluation; passthrough merges nothing."""


@dataclass(frozen=True)
class Merged:
    """A candidate: the library's specialists merged into one model."""

    method: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    validation_loss: float | None = None
    """Mean loss on the probes that chose the parameters."""

    @property
    def name(self) -> str:
        """In the tables: the method's."""
        return self.method

    @property
    def about(self) -> str:
        """One line."""
        told = ", ".join(f"{name} {value:g}" for name, value in self.parameters.items()) or "no parameters"
        return f"one model: {METHODS[self.method].title} of all specialists, all parameters ({told}, chosen on validation probes)"

    def build(self, library: Library) -> PreTrainedModel:
        """The merged model."""
        return merge(library, self.method, **self.parameters)


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
        METHODS[name].check_count(_stacked(name, library))
    return asked


def tuned(
    library: Library,
    methods: Iterable[str],
    probes: Sequence[Probe],
    settings: EvaluationSettings | None = None,
    *,
    state: str | Path | None = None,
) -> list[Merged]:
    """Each method with the parameters of its grid whose mean loss on `probes` (over protocols and tasks) is lowest; the first of equals.

    `state` is a folder where finished merges' losses are kept; it is removed at the end. Raises DataError for no probes or one
    too short to score, UnknownName for one of a domain without a specialist, and what `possible` raises.
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

        found = parts.tensors(f"{candidate.name}-{digest_of(dict(candidate.parameters))[:16]}", scored) if parts else scored()
        return mean_loss({protocol: found[protocol] for protocol in settings.protocols}, probes)

    tried = [candidate for name in methods for candidate in grid(name)]
    losses = [(loss(candidate), place) for place, candidate in enumerate(track(tried, "merges"))]
    best = []
    for name in methods:
        least, place = min(each for each in losses if tried[each[1]].method == name)
        best.append(Merged(name, tried[place].parameters, least))
    if parts:
        parts.remove()
    return best


def grid(method: str) -> Iterator[Merged]:
    """Every setting tried of a method."""
    values = GRIDS[method]
    for chosen in product(*values.values()):
        yield Merged(method, dict(zip(values, chosen, strict=True)))


def _fits(name: str, library: Library) -> bool:
    method, count = METHODS[name], _stacked(name, library)
    return method.least <= count and (method.most is None or count <= method.most)


def _stacked(name: str, library: Library) -> int:
    """How many tensors the method stacks: the specialists, and the generalist where it is a model among them."""
    method = METHODS[name]
    return len(library.names) + (method.stack == "models" and method.base != "none")
