"""From a request's model and extras to what its answer runs under: nothing, a fixed composition, or one chosen for the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asterism.compose.plan import composed_parameters
from asterism.compose.settings import RENEW, CompositionSettings, mixture_settings
from asterism.constellation.mixture import GENERALIST, Mixture
from asterism.core.errors import SettingsError, UnknownName
from asterism.serve.errors import Refused
from asterism.serve.jobs import Choice, Composition, Wish
from asterism.serve.schema import Extras
from asterism.serve.served import Served

BASE, OF, SAVED = "-base", ":", "@"
"""NAME-base, NAME:specialist, NAME@label."""
OF_CHOOSING = ("top_k", "mode", "mixture", "exclude", "renew")
OF_ACTING = ("layers", "node_map")
Recall = Callable[[str], tuple[Mixture, CompositionSettings]]


@dataclass(frozen=True, eq=False)
class Way:
    """What an answer runs under, as far as the request alone decides it."""

    mode: str
    """`base`, `specialist`, `saved`, `fixed`, or how a mixture is chosen: `evidence`, `fast`, `nodes`."""
    settings: CompositionSettings
    composition: Composition | None = None
    """None: the generalist, or what `wish` will choose."""
    wish: Wish | None = None
    """How the prompt's mixture is to be chosen, where it is."""
    renew: int = 0

    def chosen(self, choice: Choice) -> Way:
        """The same with the mixture that was chosen."""
        return replace(self, composition=Composition(choice.mixture, self.settings))


def way(model: str, extras: Extras, served: Served, specialists: Sequence[str], recall: Recall, *, renews: bool) -> Way:
    """What `model` and `extras` ask for. Raises UnknownName (with the nearest) and SettingsError, and Refused for extras without a use."""
    settings = _acting(extras, served)
    if model == served.name:
        return _fixed(extras, settings, served, specialists) if extras.mixture else _per_query(extras, settings, specialists, renews)
    if model == served.name + BASE:
        _unused(extras, model, (*OF_CHOOSING, *OF_ACTING))
        return Way("base", settings)
    if (name := model.removeprefix(served.name + OF)) != model and name in specialists:
        _unused(extras, model, OF_CHOOSING)
        return Way("specialist", settings, Composition(Mixture.fixed({name: 1.0}, served.nodes), settings))
    if (label := model.removeprefix(served.name + SAVED)) != model:
        _unused(extras, model, (*OF_CHOOSING, *OF_ACTING))
        mixture, own = recall(label)
        return Way("saved", own, Composition(mixture, own))
    raise Refused.of(UnknownName("model", model, model_ids(served.name, specialists)), 404, code="model_not_found", param="model")


def model_ids(name: str, specialists: Sequence[str], labels: Sequence[str] = ()) -> list[str]:
    """The names of all models."""
    return [name, name + BASE, *(f"{name}{OF}{one}" for one in specialists), *(f"{name}{SAVED}{label}" for label in labels)]


def told(asked: Way, composition: Composition | None, choice: Choice | None = None) -> dict[str, Any]:
    """What an answer tells of the mixture that wrote it; JSON-able."""
    if composition is None:
        return {"mode": asked.mode, "specialists": [], "shares": {}, GENERALIST: 1.0, "scale": 1.0, "entropy": 0.0}
    mixture, settings = composition.mixture, composition.settings
    found: dict[str, Any] = {"mode": asked.mode, "specialists": list(mixture.specialists), "shares": mixture.shares}
    found |= {GENERALIST: mixture.generalist, "scale": mixture.scale, "entropy": mixture.entropy}
    found |= {"layers": settings.layers, "node_map": settings.node_map, "renew": asked.renew, "key": composition.key}
    if choice is not None:
        found |= {"losses": choice.mixture.evidence, "read_tokens": choice.tokens, "choosing_s": choice.seconds}
    return found


def mixture_asked(extras: Extras, domains: int, settings: CompositionSettings):
    """The mixture's settings: what was asked for over the defaults, which fit the number of domains."""
    own = mixture_settings(domains, settings)
    given = {name: value for name in ("top_k", "mode") if (value := getattr(extras, name)) is not None}
    return own.changed(**given) if given else own


def _acting(extras: Extras, served: Served) -> CompositionSettings:
    given = {name: value for name in OF_ACTING if (value := getattr(extras, name)) is not None}
    settings = CompositionSettings(**given)
    composed_parameters(served.library.anatomy, settings)
    return settings


def _per_query(extras: Extras, settings: CompositionSettings, specialists: Sequence[str], renews: bool) -> Way:
    excluded = tuple(dict.fromkeys(extras.exclude or ()))
    for name in excluded:
        if name not in specialists:
            raise Refused.of(UnknownName("specialist", name, specialists), 400, param="asterism.exclude")
    left = len(specialists) - len(excluded)
    if not left:
        raise SettingsError("No specialist is left.", met=f"all of {len(specialists)} excluded", mend="the generalist alone is NAME-base")
    wanted = mixture_asked(extras, left, settings)
    if wanted.top_k > left:
        raise SettingsError("top_k is more than there are specialists.", met=wanted.top_k, mend=f"1 to {left}")
    if extras.renew and not renews:
        raise SettingsError("This engine does not renew mixtures.", met=f"renew {extras.renew}", mend="leave it out, or renew: 0")
    renew = (RENEW if renews else 0) if extras.renew is None else extras.renew
    return Way(wanted.mode, settings, wish=Wish(wanted, excluded), renew=renew)


def _fixed(extras: Extras, settings: CompositionSettings, served: Served, specialists: Sequence[str]) -> Way:
    _unused(extras, "a fixed mixture", [name for name in OF_CHOOSING if name != "mixture"])
    assert extras.mixture
    if extras.mixture == {GENERALIST: 1}:
        return Way("fixed", settings)
    try:
        mixture = Mixture.given(extras.mixture, specialists, served.nodes)
    except UnknownName as error:
        raise Refused.of(error, 400, param="asterism.mixture") from None
    return Way("fixed", settings, Composition(mixture, settings))


def _unused(extras: Extras, what: str, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(extras, name)
        if value is not None and (name, value) != ("renew", 0):
            mend = "leave it out: the mixture stands already"
            raise Refused(400, f"{name} has no use with {what}.", met=f"{name}: {value!r}"[:80], mend=mend, param=f"asterism.{name}")
