"""The usual grid of every static merge, and the choice from it: the setting that is best on validation probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from asterism.core.corpus import Probe
from asterism.core.errors import DataError, UnknownName
from asterism.core.parts import Parts
from asterism.core.progress import track
from asterism.core.storage import digest_of
from asterism.evaluate.calibrate import mean_loss
from asterism.evaluate.merges import BY_DATA, EMR, SOUP, ByData, ByRecipe, Merged, PerTask, Soup, losses
from asterism.evaluate.probes import by_group, tokens_of
from asterism.evaluate.settings import EvaluationSettings
from asterism.merge.learned import Texts
from asterism.merge.methods import METHODS
from asterism.merge.soup import greedy_soup
from asterism.models.batching import batches, pad_id
from asterism.models.library import Library

_SCALES = (0.1, 0.2, 0.3, 0.5, 1.0)
_FACTORS = (0.2, 0.3, 0.5, 1.0, 1.5)
GRIDS: dict[str, dict[str, tuple[float | bool, ...]]] = {
    "ties": {"density": (0.1, 0.2, 0.5), "lambda": _FACTORS},
    "dare_linear": {"density": (0.1, 0.5, 0.9), "lambda": _SCALES},
    "dare_ties": {"density": (0.1, 0.5, 0.9), "lambda": _SCALES},
    "breadcrumbs": {"density": (0.7, 0.85), "gamma": (0.01,), "lambda": _SCALES},
    "breadcrumbs_ties": {"density": (0.7, 0.85), "gamma": (0.01,), "lambda": _SCALES},
    "della": {"density": (0.5, 0.85), "epsilon": (0.1,), "lambda": _FACTORS},
    "della_linear": {"density": (0.5, 0.85), "epsilon": (0.1,), "lambda": _SCALES},
    "sce": {"select_topk": (0.05, 0.1, 0.5, 1.0)},
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
    "fisher": {"floor": (1e-6, 1e-2, 1e-1)},
    "regmean": {"alpha": (0.5, 0.9, 0.99)},
    "adamerging": {"start": (0.3,), "steps": (100,)},
    SOUP: {},
    EMR: {},
}
"""Method -> parameter -> values tried, every combination of them, each one pass over the validation probes: the values of the papers and of
their usual comparisons, and further where a first grid, over four specialists, had its optimum at its end: smaller factors, fewer random
drops. Of the methods that drop at random only the highest density won there, so few lower ones are tried. The uniform soup and task
arithmetic are candidates of every evaluation; passthrough merges nothing."""


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
    tokens = tokens_of(library, probes, settings.max_length)
    batched = batches(tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
    origin = digest_of(library.digests(), [[probe.text, list(probe.domains)] for probe in probes], settings.digest())
    parts = Parts(Path(state), origin) if state else None

    def loss(candidate: ByRecipe | ByData) -> float:
        def make():
            return losses(library, candidate, batched, len(probes))

        found = parts.tensors(f"{candidate.name}-{digest_of(candidate.told)[:16]}", make) if parts else make()
        return mean_loss({protocol: found[protocol] for protocol in settings.protocols}, probes)

    tried = [candidate for name in methods for candidate in grid(name, texts)]
    scored = [(loss(candidate), place) for place, candidate in enumerate(track(tried, "merges"))]

    def best(name: str) -> Merged:
        if name == EMR:
            return PerTask()
        if name == SOUP:
            soup = greedy_soup(library, by_group(probes), max_length=settings.max_length)
            return Soup(soup.names, soup.loss)
        least, place = min(each for each in scored if tried[each[1]].name == name)
        return replace(tried[place], validation_loss=least)

    found = [best(name) for name in methods]
    if parts:
        parts.remove()
    return found


def grid(method: str, texts: Texts | None = None) -> Iterator[ByRecipe | ByData]:
    """Every setting tried of a method: none of the greedy soup and of EMR, which have no parameters."""
    if method in (SOUP, EMR):
        return
    values = GRIDS[method]
    for chosen in product(*values.values()):
        parameters = dict(zip(values, chosen, strict=True))
        yield ByData(method, parameters, texts=texts) if method in BY_DATA else ByRecipe(method, parameters)


def _fits(name: str, library: Library) -> bool:
    if name not in METHODS:
        return True
    method, count = METHODS[name], _stacked(name, library)
    return method.least <= count and (method.most is None or count <= method.most)


def _stacked(name: str, library: Library) -> int:
    """How many tensors the method stacks: the specialists, and the generalist where it is a model among them."""
    method = METHODS[name]
    return len(library.names) + (method.stack == "models" and method.base != "none")
