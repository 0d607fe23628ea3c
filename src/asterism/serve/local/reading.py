"""Choosing mixtures with the engine's own weights: prompts read by the generalist, then by every specialist they shortlist."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.constellation.evidence import Evidence
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError
from asterism.core.weights import top_k
from asterism.serve.jobs import Choice, Composition, Wish
from asterism.serve.local.aside import Aside
from asterism.serve.local.forward import Forward
from asterism.serve.local.own import OwnWeights
from asterism.serve.local.trunks import Tokens, Trunk, Trunks


@dataclass(eq=False)
class Ask:
    """A prompt whose mixture is wanted."""

    whole: Tokens
    tokens: Tokens
    """As many of them as are read."""
    wish: Wish
    constellation: Constellation
    """What is excluded is not in it."""
    settings: MixtureSettings
    era: int
    """Changes of the library that came before it."""
    tell: Callable[[Choice | Exception], None]
    keep: bool = True
    """Whether its states may serve an answer."""
    gone: Callable[[], bool] = lambda: False
    """Whether nobody waits for it any more."""
    over: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def wanted(self) -> bool:
        """Whether it is still to be told."""
        return not self.over and not self.gone()

    @property
    def evidence(self) -> bool:
        """Whether specialists read it."""
        return self.settings.mode == "evidence"


@dataclass(eq=False)
class Part:
    """One row of a reading pass."""

    tokens: Tokens
    composition: Composition | None = None
    trunk: Trunk | None = None
    depth: int = 0


@dataclass(eq=False)
class Found:
    """What came of one row."""

    fingerprint: Tensor
    """[d] float32 on the CPU."""
    loss: float
    """NaN where there is none."""
    trunk: Trunk


class Reader:
    """Reads prompts in passes of bounded size."""

    def __init__(self, forward: Forward, trunks: Trunks) -> None:
        self.forward, self.trunks = forward, trunks
        self._executor = forward.executor

    def choosing(self, asks: Sequence[Ask], budget: Callable[[], int]) -> Iterator[None]:
        """Tell every ask its choice; one bounded piece of work between two yields. An error is everybody's: then ask one by one."""
        whole = [ask for ask in asks if ask.settings.mode != "nodes" and ask.wanted]
        known = {ask: trunk for ask in whole if (trunk := self.trunks.get(ask.tokens)) is not None and _enough(trunk, ask)}
        yield from self._generalist([ask for ask in whole if ask not in known], known, budget)
        shortlists = {ask: _shortlist(ask, known[ask]) for ask in whole if ask.wanted}
        yield from self._specialists(shortlists, known, budget)
        for ask in shortlists:
            _told(ask, lambda ask=ask: _mixture(ask, known[ask], self._text(ask)))
        for ask in asks:
            if ask.settings.mode == "nodes" and ask.wanted:
                found: list[Any] = []
                aside = Aside(lambda pause, ask=ask: self._by_nodes(ask, pause), found.append)
                try:
                    while not aside.step():
                        yield
                except GeneratorExit:
                    aside.abandon(RuntimeError("nobody waits"))
                    raise
                if isinstance(found[0], Exception):
                    raise found[0]
                _told(ask, lambda found=found: found[0])

    def _by_nodes(self, ask: Ask, pause: Callable[[], None]) -> Mixture:
        return OwnWeights.over(ask.constellation, self._executor, pause).mixture(self._text(ask), ask.settings)

    def _text(self, ask: Ask) -> str:
        return self._executor.library.tokenizer.decode(list(ask.whole), skip_special_tokens=True)

    def _generalist(self, asks: Sequence[Ask], known: dict[Ask, Trunk], budget: Callable[[], int]) -> Iterator[None]:
        layers = {ask.constellation.settings.layer for ask in asks}
        for layer in layers:
            for evidence in (True, False):
                own = [ask for ask in asks if ask.constellation.settings.layer == layer and ask.evidence == evidence]
                for group in _groups(own, lambda ask: len(ask.tokens), budget):
                    found = yield from self._read([Part(ask.tokens) for ask in group], budget, layer, losses=evidence, keep=True)
                    for ask, one in zip(group, found, strict=True):
                        known[ask] = one.trunk
                        if ask.keep:
                            self.trunks.put(ask.tokens, one.trunk)

    def _specialists(self, shortlists: dict[Ask, list[str]], known: dict[Ask, Trunk], budget: Callable[[], int]) -> Iterator[None]:
        wanted = [(ask, name) for ask, names in shortlists.items() for name in names if name not in known[ask].losses]
        parts: dict[tuple[Ask, str], Part] = {}
        for ask, name in wanted:
            alone, trunk = self._executor.composition_of(name), known[ask]
            parts[ask, name] = Part(ask.tokens, alone, trunk, min(self._executor.floor(alone), trunk.depth))
        for depth in sorted({part.depth for part in parts.values()}):
            own = [pair for pair, part in parts.items() if part.depth == depth]
            for group in _groups(own, lambda pair: len(pair[0].tokens), budget):
                found = yield from self._read([parts[pair] for pair in group], budget, "final", losses=True, keep=False)
                for (ask, name), one in zip(group, found, strict=True):
                    known[ask].losses[name] = one.loss

    def _read(self, parts: Sequence[Part], budget: Callable[[], int], layer: int | str, *, losses: bool, keep: bool):
        """Found of every part; all of one depth. Stops at `layer` where neither losses nor anything above it is wanted."""
        depth, longest = parts[0].depth, max(len(part.tokens) for part in parts)
        places = self.forward.places(len(parts), longest)
        stop = None if losses or layer == "final" else int(layer) + 1
        known = _padded([part.trunk.states[depth - 1] for part in parts if part.trunk is not None]) if depth else None
        for index, part in enumerate(parts):
            if depth and part.trunk is not None:
                part.trunk.fill(places, index, depth)
        pooled, lost, states = 0, 0, []
        lengths = torch.tensor([len(part.tokens) for part in parts], device=self.forward.device)
        start = 0
        while start < longest:
            end = min(start + max(1, budget() // len(parts)), longest)
            ids = self.forward.ids([part.tokens[start : end + 1] for part in parts], end + 1 - start)
            given = None if known is None else known[:, start:end]
            deeper = keep or layer != "final"
            compositions = [part.composition for part in parts]
            chunk = self.forward.chunk(
                places, compositions, ids[:, :-1], start, first=depth, given=given, stop=stop, logits=losses, keep=deeper
            )
            left = lengths - start
            pooled = pooled + _summed(chunk.final if layer == "final" else chunk.states[int(layer) - depth], left)
            if chunk.logits is not None:
                lost = lost + _summed(_losses(chunk.logits, ids[:, 1:])[..., None], left - 1)[:, 0]
            if keep:
                states.append(chunk.states)
            start = end
            yield
        means = (pooled / lengths[:, None]).float().cpu()
        shares = (lost / (lengths - 1)).tolist() if losses else [float("nan")] * len(parts)  # of one token: 0 / 0, NaN
        found = []
        for index, part in enumerate(parts):
            if not bool(means[index].isfinite().all()):
                mend = "use a wider dtype (float32, bfloat16), or check the weights"
                raise DataError("A model's hidden states are not finite.", met=f"{len(part.tokens)} tokens", mend=mend)
            size = len(part.tokens)
            layers = range(len(states[0]) if keep else 0)
            own = [torch.cat([chunk[layer][index] for chunk in states])[:size].clone() for layer in layers]
            keys = [tuple(each.clone() for each in places.taken(layer, index, size)) for layer in layers]
            trunk = Trunk(means[index], shares[index] if losses else None, {}, own, keys)  # pyright: ignore[reportArgumentType]
            found.append(Found(means[index], shares[index], trunk))
        return found


def _enough(trunk: Trunk, ask: Ask) -> bool:
    return trunk.loss is not None or not ask.evidence


def _shortlist(ask: Ask, trunk: Trunk) -> list[str]:
    if not ask.evidence:
        return []
    made = ask.constellation
    coefficients = made.basis.coefficients(trunk.fingerprint[None])
    chosen = top_k(coefficients, ask.settings.top_k, signed=made.settings.ranking == "signed")
    return [made.domains[place] for place in chosen[0].tolist()]


def _mixture(ask: Ask, trunk: Trunk, text: str) -> Mixture:
    evidence = None
    if ask.evidence:
        losses = {name: torch.tensor([loss]) for name, loss in trunk.losses.items()}
        evidence = Evidence(torch.tensor([trunk.loss]), losses)
    return ask.constellation.mixture_from(trunk.fingerprint[None], None, ask.settings, evidence=evidence, texts=[text])[0]


def _told(ask: Ask, made: Callable[[], Mixture]) -> None:
    if not ask.over:
        mixture = made()
        ask.over = True
        ask.tell(Choice(mixture, time.perf_counter() - ask.started, len(ask.tokens)))


def _groups(items: Sequence, length: Callable, budget: Callable[[], int]) -> Iterator[list]:
    """Items of like length, longest first, of about `budget` tokens together."""
    rest = sorted(items, key=length, reverse=True)
    while rest:
        count = max(1, budget() // length(rest[0]))
        yield rest[:count]
        rest = rest[count:]


def _summed(values: Tensor, left: Tensor) -> Tensor:
    """[B, d] sum of each row's own positions of values [B, T, d]: its first `left` [B]; in float32, or float64 for float64."""
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    own = torch.arange(values.shape[1], device=values.device) < left[:, None]
    return values.masked_fill(~own[..., None], 0).sum(dim=1, dtype=wide)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, T] in nats: logits [B, T, V], the tokens that came next [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def _padded(states: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
