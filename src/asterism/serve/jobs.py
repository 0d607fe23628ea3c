"""What an engine is asked, and what it tells: jobs in, events out. Nothing here knows a model or a web framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError
from asterism.core.storage import digest_of


@dataclass(frozen=True, eq=False)
class Composition:
    """What one row runs under: a mixture, and the settings that say where it acts. Two are the same where their keys are."""

    mixture: Mixture
    settings: CompositionSettings = field(default_factory=CompositionSettings)

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the composed parameters: caches of tails, keys and values are kept by it."""
        made = self.mixture
        weights = made.weights.float().cpu().numpy().tobytes().hex()
        modules = [(path, rows.float().cpu().numpy().tobytes().hex()) for path, rows in sorted(made.modules.items())]
        return digest_of(made.specialists, weights, modules, made.generalist, made.scale, self.settings.model_dump(mode="json"))


@dataclass(frozen=True)
class Wish:
    """How a prompt's mixture is to be chosen."""

    settings: MixtureSettings | None = None
    """None: the library's own default, three specialists by evidence."""
    exclude: tuple[str, ...] = ()
    """Specialists that are left out, as though the library lacked them."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and when to end."""

    max_tokens: int
    temperature: float = 0.0
    """0: the likeliest token every time."""
    top_p: float = 1.0
    seed: int = 0
    """Of this row's own draws; no neighbour in the batch changes them."""
    logprobs: int | None = None
    """So many of the likeliest tokens are told beside each token drawn, with natural logarithms of their probabilities; None: nothing."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the answer; the last one told is such a token where the reason is `stop`."""


@dataclass(frozen=True, eq=False)
class Job:
    """One answer asked of an engine."""

    id: str
    tokens: tuple[int, ...]
    """The prompt."""
    sampling: Sampling
    composition: Composition | None = None
    """None: the generalist alone."""
    wish: Wish = field(default_factory=Wish)
    renew: int = 0
    """Make the mixture again by `wish` after every so many new tokens, from the end of prompt and answer; 0: never."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability, where asked for: of the model's own distribution, before temperature and top-p."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, best first."""


@dataclass(frozen=True)
class Tokens:
    """The next tokens of an answer."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, eq=False)
class Renewed:
    """From here on the answer runs under another composition."""

    composition: Composition


@dataclass(frozen=True)
class Finished:
    """The last event of an answer that went well, or was cancelled."""

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt whose states were known already."""
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Failed:
    """The last event of an answer that went wrong; other jobs go on."""

    error: AsterismError


Event = Tokens | Renewed | Finished | Failed


@dataclass(frozen=True, eq=False)
class Choice:
    """A prompt's mixture, and what choosing it took."""

    mixture: Mixture
    seconds: float
    tokens: int
    """Tokens of the prompt that were read for it."""


@dataclass(frozen=True)
class Facts:
    """What an engine is and can."""

    name: Literal["local", "vllm"] | str
    room: int | None
    """Positions for prompt and answer together; None: no limit of its own."""
    vocabulary: int
    device: str
    dtype: str
    specialists: tuple[str, ...]
    renews: bool
    """Whether a job's `renew` is heeded; another engine refuses it."""


@dataclass(frozen=True)
class Stats:
    """An engine's counters, for `/metrics`: those that end in `total` only grow."""

    running: int = 0
    """Rows that are answered now."""
    waiting: int = 0
    """Jobs and readings that wait for a place."""
    live_mixtures: int = 0
    """Different compositions among the running rows."""
    cache_share: float = 0.0
    """Part of the places for keys and values that is in use, 0 to 1."""
    composed_cache_hits_total: int = 0
    composed_cache_misses_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    compose_seconds: Sequence[float] = ()
    """What each choice or materialisation since the last call took."""
    selected: Mapping[str, int] = field(default_factory=dict)
    """Specialist -> times it had weight in a choice."""
    alive: bool = True
    """False once the engine itself has failed: every job fails, and only a new start helps."""
