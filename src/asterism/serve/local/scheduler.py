"""What the engine's thread does next: a bounded piece of reading, then a step of the running rows, again and again."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from asterism.compose.settings import CompositionSettings, mixture_settings
from asterism.constellation.explanation import explain
from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError, DataError, SettingsError, UnknownName
from asterism.core.weights import top_k
from asterism.models.batching import tokenise
from asterism.serve.errors import internal
from asterism.serve.jobs import Choice, Composition, Event, Failed, Job, Renewed, Tokens, Wish
from asterism.serve.local.aside import Aside
from asterism.serve.local.cache import Places
from asterism.serve.local.execution import Executor
from asterism.serve.local.forward import Forward
from asterism.serve.local.own import OwnWeights
from asterism.serve.local.prefill import Prefill, Prompt, gathered
from asterism.serve.local.reading import Ask, Reader
from asterism.serve.local.rows import Row, Running
from asterism.serve.local.sampling import drawn
from asterism.serve.local.settings import LocalSettings
from asterism.serve.local.trunks import Trunk, Trunks

IDLE = 4
"""Times `chunk` tokens that are read in one pass while no answer is running."""
log = logging.getLogger("asterism.serve")


class Scheduler:
    """For one thread. `turn` does one bounded piece of work; between two turns jobs and asks come, and are cancelled."""

    def __init__(self, executor: Executor, constellation: Constellation, settings: LocalSettings) -> None:
        self.executor, self.constellation, self.settings = executor, constellation, settings
        self.forward = Forward(executor)
        self.trunks = Trunks(int(settings.trunks_gb * 1e9))
        self.reader = Reader(self.forward, self.trunks)
        self.running = Running(self.forward, settings.slots)
        self.waiting: deque[Row] = deque()
        self.asks: deque[Ask] = deque()
        self.prefills: deque[Prefill] = deque()
        self.readings: deque[tuple[Iterator[None], list[Ask]]] = deque()
        self.asides: deque[Aside] = deque()
        self.rows: dict[str, Row] = {}
        """Every answer that has not ended, by its job's id."""
        self.prompt_tokens = self.generation_tokens = self.era = 0
        self.compose_seconds: list[float] = []
        self.selected: Counter[str] = Counter()
        self._turns = 0
        self._excluded: dict[tuple[str, ...], Constellation] = {}

    # ---- what comes

    def submit(self, job: Job, tell: Callable[[Event], None]) -> None:
        """Queue an answer; a composition that cannot run is told as Failed."""
        try:
            composition = None if job.composition is None else self.executor.admit(job.composition)
        except Exception as error:
            tell(Failed(told(error)))
            return
        row = Row.of(job, tell, composition, self.era)
        if job.sampling.max_tokens < 1:
            tell(row.finished("length"))
            return
        self.rows[job.id] = row
        self.waiting.append(row)

    def cancel(self, job: str) -> None:
        """End an answer by its job's id; its place is free at once."""
        if (row := self.rows.get(job)) is not None:
            self._end(row, row.finished("cancelled"))

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
        made, executor = self.constellation, self.executor
        whole = lambda pause: explain(executor.library, OwnWeights.over(made, executor, pause), text, settings)  # noqa: E731
        self.asides.append(Aside(whole, tell))

    def add(self, name: str, constellation: Constellation) -> None:
        """The library has one specialist more."""
        self.executor.add(name)
        self._changed(name, constellation=constellation)

    def remove(self, name: str, constellation: Constellation) -> None:
        """The library has one specialist less; rows that run with it go on."""
        self.executor.remove(name)
        self._changed(name, constellation=constellation)

    def follow(self, gone: Sequence[str], new: Sequence[str], constellation: Constellation) -> None:
        """The library is another one by now. What cannot be loaded is left out, and its error raised once the rest is done."""
        failed: dict[str, Exception] = {}
        for name in gone:
            if name in self.executor.names:
                self.executor.remove(name)
        for name in new:
            try:
                self.executor.add(name)
            except Exception as error:
                failed[name] = error
        left = [name for name in failed if name in constellation.domains]
        self._changed(*gone, *new, constellation=constellation.without_domain(*left) if left else constellation)
        for error in failed.values():
            raise error

    def _changed(self, *names: str, constellation: Constellation) -> None:
        self.constellation, self._excluded = constellation, {}
        self.era += 1
        for name in names:
            self.trunks.forget(name)

    @property
    def window(self) -> int:
        """Tokens of a prompt that are read to choose its mixture."""
        most = self.constellation.settings.max_length
        return most if self.forward.room is None else min(most, self.forward.room)

    @property
    def busy(self) -> bool:
        """Whether `turn` has anything to do."""
        return bool(self.running.active or self.waiting or self.asks or self.prefills or self.readings or self.asides)

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
            self._excluded[gone] = self.constellation.without_domain(*gone)
        return self._excluded[gone]

    # ---- what is done

    @torch.inference_mode()
    def turn(self) -> None:
        """One bounded piece of reading, where any is to be done, and one step of the running rows."""
        kinds = (self._start_prefill, self._go_on_prefill, self._start_reading, self._go_on_reading, self._go_on_aside)
        for _ in kinds:
            self._turns += 1
            if kinds[self._turns % len(kinds)]():
                break
        if self.running.active:
            self._step()

    def stop(self, error: AsterismError) -> None:
        """Fail all that there is: nothing goes on."""
        for row in list(self.rows.values()):
            row.over = True
            row.tell(Failed(error))
        for ask in (*self.asks, *(ask for _, asks in self.readings for ask in asks)):
            self._refuse(ask, error)
        for aside in self.asides:
            aside.abandon(error)
        self.asides.clear()
        self.rows.clear()
        self.waiting.clear()
        self.asks.clear()
        self.prefills.clear()
        self.readings.clear()

    def _budget(self) -> int:
        return self.settings.chunk * (1 if self.running.active else IDLE)

    # ---- prompts of answers

    def _start_prefill(self) -> bool:
        room = self.settings.slots - len(self.running.rows) - sum(len(prefill.rows) for prefill in self.prefills)
        if not self.waiting or room < 1:
            return False
        prompts = gathered(self.waiting, self._budget(), room, self._known)
        for prompt in prompts:
            for row in prompt.rows:
                self.waiting.remove(row)
                row.begin()
        self._read(Prefill(self.forward, prompts))
        return True

    def _go_on_prefill(self) -> bool:
        while self.prefills:
            prefill = self.prefills.popleft()
            if not prefill.done:
                self._read(prefill)
                return True
        return False

    def _read(self, prefill: Prefill) -> None:
        """One pass; where it raises, its prompts are tried one by one."""
        try:
            prefill.run(self._budget(), self._begin)
        except Exception as error:
            left = [prompt for prompt in prefill.prompts if any(not row.over and row not in self.running.rows for row in prompt.rows)]
            alone = len(prefill.prompts) == 1
            if alone or any(prompt.begun for prompt in left):
                log.exception("A prompt could not be read.")
            for prompt in left:
                if alone or prompt.begun:
                    for row in prompt.rows:
                        if row not in self.running.rows:
                            self._end(row, Failed(told(error)))
                else:
                    self.prefills.append(Prefill(self.forward, [prompt]))
            return
        if not prefill.done:
            self.prefills.append(prefill)

    def _known(self, row: Row) -> tuple[Trunk | None, int]:
        trunk = self.trunks.get(row.job.tokens[: self.window])
        depth = 0 if trunk is None else min(trunk.depth, self.executor.floor(row.composition))
        return (trunk, depth) if depth else (None, 0)

    def _begin(self, prompt: Prompt, logits: Tensor, places: Places, index: int) -> None:
        """A prompt is read: its answers begin."""
        prompt.begun = True
        rows = [row for row in prompt.rows if not row.over]
        _, tokens = drawn(logits.expand(len(rows), -1), [row.draw for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            row.length = len(prompt.tokens)
            row.cached = prompt.cached
            self.prompt_tokens += row.length
            if token is None:
                self._end(row, Failed(not_finite()))
                continue
            if not self._tell(row, token):
                self.running.join(row, token.id, places, index)
                self._renew_if_due(row)

    # ---- steps

    def _step(self) -> None:
        rows = self.running.rows[: self.running.active]
        try:
            logits = self.running.step()
        except Exception as error:
            logits = self._one_by_one(rows, error)
            rows = self.running.rows[: self.running.active]
            if logits is None:
                return
        ids, tokens = drawn(logits, [row.draw for row in rows])
        self.running.advance(ids)
        for row, token in zip(rows, tokens, strict=True):
            if token is None:
                self._end(row, Failed(not_finite()))
            elif not self._tell(row, token):
                self._renew_if_due(row)

    def _one_by_one(self, rows: Sequence[Row], error: Exception) -> Tensor | None:
        """Logits of the rows whose step does not raise; the others fail."""
        found: dict[Row, Tensor] = {}
        log.error("A step failed; its rows are tried one by one.", exc_info=error)
        for row in rows:
            try:
                found[row] = self.running.alone(row)
            except Exception as own:
                self._end(row, Failed(told(own)))
        return torch.cat([found[row] for row in self.running.rows[: self.running.active]]) if found else None

    def _tell(self, row: Row, token: Any) -> bool:
        """Tell a token; whether it was the last."""
        row.add(token.id)
        self.generation_tokens += 1
        row.tell(Tokens((token,)))
        sampling = row.job.sampling
        reason: Literal["stop", "length"] | None = None
        if token.id in sampling.ends:
            reason = "stop"
        elif len(row.tokens) >= sampling.max_tokens:
            reason = "length"
        if reason is not None:
            self._end(row, row.finished(reason))
        return reason is not None

    def _end(self, row: Row, event: Event) -> None:
        if row.over:
            return
        row.over = True
        self.rows.pop(row.job.id, None)
        if row in self.running.rows:
            self.running.leave(row)
        elif row in self.waiting:
            self.waiting.remove(row)
        row.tell(event)

    # ---- readings

    def _start_reading(self) -> bool:
        if not self.asks:
            return False
        asks = [ask for ask in self.asks if ask.wanted]
        self.asks.clear()
        self._go_on(self.reader.choosing(asks, self._budget), asks)
        return True

    def _go_on_reading(self) -> bool:
        if self.readings:
            self._go_on(*self.readings.popleft())
            return True
        return False

    def _go_on(self, reading: Iterator[None], asks: list[Ask]) -> None:
        try:
            next(reading)
        except StopIteration:
            return
        except Exception as error:
            left = [ask for ask in asks if not ask.over]
            if len(asks) > 1:
                self.readings.extend((self.reader.choosing([ask], self._budget), [ask]) for ask in left)
            elif left and left[0].era != self.era:  # the library has changed under it
                ask = left[0]
                self.ask(ask.whole, ask.wish, ask.tell, keep=ask.keep, gone=ask.gone)
            else:
                if not isinstance(error, AsterismError):
                    log.exception("A prompt could not be read.")
                for ask in left:
                    self._refuse(ask, told(error))
            return
        self.readings.append((reading, asks))

    def _go_on_aside(self) -> bool:
        if not self.asides:
            return False
        aside = self.asides.popleft()
        if not aside.step():
            self.asides.append(aside)
        return True

    def _refuse(self, ask: Ask, error: Exception) -> None:
        if not ask.over:
            ask.over = True
            ask.tell(error)

    def chose(self, choice: Choice) -> None:
        """Count a choice."""
        self.compose_seconds.append(choice.seconds)
        self.selected.update(name for name, share in choice.mixture.shares.items() if share > 0)

    def _renew_if_due(self, row: Row) -> None:
        """Pause a row whose mixture is to be made again, until it is."""
        every = row.job.renew
        if every and row.job.composition is not None and len(row.tokens) % every == 0:
            self.running.pause(row)
            self._renew(row, row.job.composition.settings)

    def _renew(self, row: Row, where: CompositionSettings) -> None:
        whole, era = [*row.job.tokens, *row.tokens][-self.constellation.settings.max_length :], self.era

        def renewed(found: Choice | Exception) -> None:
            if row.over:
                return
            try:
                if isinstance(found, Exception):
                    raise found
                composition = self.executor.admit(Composition(found.mixture, where))
            except Exception as error:
                if era != self.era:  # the library has changed under it
                    self._renew(row, where)
                else:
                    self._end(row, Failed(told(error)))
                return
            self.chose(found)
            row.composition = composition
            row.tell(Renewed(composition))
            self.running.resume(row)

        self.ask(self._again(whole) or row.job.tokens, self._still(row.job.wish), renewed, keep=False, gone=lambda: row.over)

    def _still(self, wish: Wish) -> Wish:
        """A wish from before the library changed, as far as it can be met now."""
        domains = self.constellation.domains
        exclude = tuple(name for name in wish.exclude if name in domains)
        exclude = exclude if len(set(exclude)) < len(domains) else ()
        left = len(domains) - len(set(exclude))
        settings = wish.settings and wish.settings.changed(top_k=min(wish.settings.top_k, left))
        return Wish(settings, exclude)

    def _again(self, tokens: Sequence[int]) -> list[int]:
        """The text of some tokens as the constellation reads it: what `asterism generate` renews from."""
        tokenizer = self.executor.library.tokenizer
        text = tokenizer.decode(list(tokens), skip_special_tokens=True)
        return tokenise(tokenizer, [text], self.window)[0] if text else []


def told(error: Exception) -> AsterismError:
    """An error as a caller may see it."""
    return error if isinstance(error, AsterismError) else internal()


def not_finite() -> AsterismError:
    """Of a row whose numbers overflowed."""
    mend = "serve the library in a wider dtype (float32, bfloat16), or check the weights"
    return DataError("The model's scores are not finite.", met="NaN or infinity", mend=mend)
