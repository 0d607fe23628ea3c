"""Prompts whose mixture is wanted, texts that are to be explained: queued, read in bounded pieces, told."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from asterism.compose.settings import CompositionSettings, mixture_settings
from asterism.constellation.explanation import explain
from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError, SettingsError, UnknownName
from asterism.core.weights import top_k
from asterism.models.batching import tokenise
from asterism.serve.errors import internal
from asterism.serve.jobs import Choice, Wish
from asterism.serve.local.aside import Aside
from asterism.serve.local.forward import Forward
from asterism.serve.local.own import OwnWeights
from asterism.serve.local.reading import Ask, Reader
from asterism.serve.local.trunks import Trunks

EXCLUSIONS = 64
"""Constellations without some specialists that are kept."""
log = logging.getLogger("asterism.serve")


class Choosing:
    """For one thread. `start`, `go_on` and `go_on_aside` do one bounded piece of work each, where there is any."""

    def __init__(self, forward: Forward, constellation: Constellation, trunk_bytes: int) -> None:
        self.forward, self.constellation = forward, constellation
        self.trunks = Trunks(trunk_bytes)
        self.reader = Reader(forward, self.trunks)
        self.asks: deque[Ask] = deque()
        self.readings: deque[tuple[Iterator[None], list[Ask]]] = deque()
        self.asides: deque[Aside] = deque()
        self.era = 0
        """Changes of the library so far."""
        self.seconds: list[float] = []
        self.selected: Counter[str] = Counter()
        self._budget = 1
        self._excluded: dict[tuple[str, ...], Constellation] = {}

    # ---- what comes

    def ask(
        self,
        tokens: Sequence[int],
        wish: Wish,
        tell: Callable[[Choice | Exception], None],
        *,
        keep: bool = True,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Queue a reading; `tell` gets the choice, or why there is none. `keep`, `gone`: as in Ask."""
        try:
            made = self.without(wish.exclude)
            settings = wish.settings or mixture_settings(len(made.domains), CompositionSettings())
            top_k(torch.zeros(len(made.domains)), settings.top_k)
            own = tuple(tokens)
            self.asks.append(Ask(own, own[: self.window], wish, made, settings, self.era, tell, keep, gone))
        except Exception as error:
            tell(error)

    def explain(self, text: str, settings: MixtureSettings | None, tell: Callable[[dict[str, Any] | Exception], None]) -> None:
        """Queue what a text asks of the library."""
        made, executor = self.constellation, self.forward.executor
        whole = lambda pause: explain(executor.library, OwnWeights.over(made, executor, pause), text, settings)  # noqa: E731
        self.asides.append(Aside(whole, tell))

    def changed(self, names: Sequence[str], constellation: Constellation) -> None:
        """Specialists have come or gone; prompts that are read meanwhile are read again where they meet one that is gone."""
        self.constellation, self._excluded = constellation, {}
        self.era += 1
        for name in names:
            self.trunks.forget(name)

    def chose(self, choice: Choice) -> None:
        """Count a choice."""
        self.seconds.append(choice.seconds)
        self.selected.update(name for name, share in choice.mixture.shares.items() if share > 0)

    # ---- what is read

    @property
    def window(self) -> int:
        """Tokens of a prompt that are read to choose its mixture."""
        most = self.constellation.settings.max_length
        return most if self.forward.room is None else min(most, self.forward.room)

    def without(self, exclude: Sequence[str]) -> Constellation:
        """The constellation as though some specialists were not there."""
        gone = tuple(sorted(set(exclude)))
        if not gone:
            return self.constellation
        if gone not in self._excluded:
            for name in gone:
                if name not in self.constellation.domains:
                    raise UnknownName("specialist", name, self.constellation.domains)
            if len(gone) == len(self.constellation.domains):
                raise SettingsError("Every specialist is excluded.", met=", ".join(gone), mend="leave one, or ask the generalist itself")
            while len(self._excluded) >= EXCLUSIONS:
                del self._excluded[next(iter(self._excluded))]
            self._excluded[gone] = self.constellation.without_domain(*gone)
        return self._excluded[gone]

    def still(self, wish: Wish) -> Wish:
        """A wish from before the library changed, as far as it can be met now."""
        domains = self.constellation.domains
        exclude = tuple(name for name in dict.fromkeys(wish.exclude) if name in domains)
        exclude = exclude if len(exclude) < len(domains) else ()
        settings = wish.settings and wish.settings.changed(top_k=min(wish.settings.top_k, len(domains) - len(exclude)))
        return Wish(settings, exclude)

    def again(self, tokens: Sequence[int]) -> list[int]:
        """The end of an answer so far, as a text that the constellation reads: what `asterism generate` renews a mixture from."""
        tokenizer = self.forward.executor.library.tokenizer
        text = tokenizer.decode(list(tokens)[-self.constellation.settings.max_length :], skip_special_tokens=True)
        return tokenise(tokenizer, [text], self.window)[0] if text else []

    # ---- what is done

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.asks or self.readings or self.asides)

    def start(self, budget: int) -> bool:
        """Begin to read all prompts that wait, together, in passes of about `budget` tokens."""
        asks = [ask for ask in self.asks if ask.wanted]
        self.asks.clear()
        if asks:
            self._go_on(self._reading(asks), asks, budget)
        return bool(asks)

    def go_on(self, budget: int) -> bool:
        """One more pass of a reading."""
        if self.readings:
            self._go_on(*self.readings.popleft(), budget)
            return True
        return False

    def go_on_aside(self, budget: int) -> bool:
        """One more use of the model for an explanation."""
        if not self.asides:
            return False
        aside = self.asides.popleft()
        if not aside.step():
            self.asides.append(aside)
        return True

    def stop(self, error: AsterismError) -> None:
        """Fail all that there is."""
        for ask in (*self.asks, *(ask for _, asks in self.readings for ask in asks)):
            _refuse(ask, error)
        for aside in self.asides:
            aside.abandon(error)
        self.asks.clear()
        self.readings.clear()
        self.asides.clear()

    def _reading(self, asks: list[Ask]) -> Iterator[None]:
        return self.reader.choosing(asks, lambda: self._budget)

    def _go_on(self, reading: Iterator[None], asks: list[Ask], budget: int) -> None:
        """One pass; where it raises, the prompts are read one by one."""
        self._budget = budget
        try:
            next(reading)
        except StopIteration:
            return
        except Exception as error:
            left = [ask for ask in asks if ask.wanted]
            if len(asks) > 1:
                self.readings.extend((self._reading([ask]), [ask]) for ask in left)
                return
            for ask in left:
                if ask.era != self.era:  # the library has changed under it
                    self.ask(ask.whole, self.still(ask.wish), ask.tell, keep=ask.keep, gone=ask.gone)
                    continue
                if not isinstance(error, AsterismError):
                    log.exception("A prompt could not be read.")
                _refuse(ask, told(error))
            return
        self.readings.append((reading, asks))


def told(error: Exception) -> AsterismError:
    """An error as a caller may see it."""
    return error if isinstance(error, AsterismError) else internal()


def _refuse(ask: Ask, error: Exception) -> None:
    if not ask.over:
        ask.over = True
        ask.tell(error)
