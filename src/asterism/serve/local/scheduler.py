"""What the engine's thread does next: a bounded piece of reading, then a step of the running rows, again and again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.core.errors import AsterismError, DataError
from asterism.serve.jobs import Choice, Composition, Event, Failed, Job, Renewed, Tokens
from asterism.serve.local.cache import Places
from asterism.serve.local.choosing import Choosing, told
from asterism.serve.local.execution import Executor
from asterism.serve.local.forward import Forward
from asterism.serve.local.prefill import Prefill, Prompt, gathered
from asterism.serve.local.rows import Row, Running
from asterism.serve.local.sampling import drawn
from asterism.serve.local.settings import LocalSettings
from asterism.serve.local.trunks import Trunk

IDLE = 4
"""Times `chunk` tokens that are read in one pass while no answer is running."""
log = logging.getLogger("asterism.serve")


class Scheduler:
    """For one thread. `turn` does one bounded piece of work; between two turns jobs and asks come, and are cancelled."""

    def __init__(self, executor: Executor, constellation: Constellation, settings: LocalSettings) -> None:
        self.executor, self.settings = executor, settings
        self.forward = Forward(executor)
        self.choosing = Choosing(self.forward, constellation, int(settings.trunks_gb * 1e9))
        self.running = Running(self.forward, settings.slots)
        self.waiting: deque[Row] = deque()
        self.prefills: deque[Prefill] = deque()
        self.rows: dict[str, Row] = {}
        """Every answer that has not ended, by its job's id."""
        self.prompt_tokens = self.generation_tokens = 0
        self._turns = 0

    # ---- what comes

    def submit(self, job: Job, tell: Callable[[Event], None]) -> None:
        """Queue an answer; a composition that cannot run is told as Failed."""
        try:
            composition = None if job.composition is None else self.executor.admit(job.composition)
        except Exception as error:
            tell(Failed(told(error)))
            return
        row = Row.of(job, tell, composition, self.choosing.era, self.forward.device)
        if job.sampling.max_tokens < 1:
            tell(row.finished("length"))
            return
        self.rows[job.id] = row
        self.waiting.append(row)

    @torch.inference_mode()
    def cancel(self, job: str) -> None:
        """End an answer by its job's id; its place is free at once."""
        if (row := self.rows.get(job)) is not None:
            self._end(row, row.finished("cancelled"))

    def add(self, name: str, constellation: Constellation) -> None:
        """The library has one specialist more."""
        self.executor.add(name)
        self.choosing.changed((name,), constellation)

    def remove(self, name: str, constellation: Constellation) -> None:
        """The library has one specialist less; rows that run with it go on."""
        self.executor.remove(name)
        self.choosing.changed((name,), constellation)

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
        self.choosing.changed((*gone, *new), constellation.without_domain(*left) if left else constellation)
        for error in failed.values():
            raise error

    @property
    def busy(self) -> bool:
        """Whether `turn` has anything to do."""
        return bool(self.running.active or self.waiting or self.prefills or self.choosing.busy)

    # ---- what is done

    @torch.inference_mode()
    def turn(self) -> None:
        """One bounded piece of reading, where any is to be done, and one step of the running rows."""
        made = self.choosing
        kinds = (self._start_prefill, self._go_on_prefill, made.start, made.go_on, made.go_on_aside)
        for _ in kinds:
            self._turns += 1
            if kinds[self._turns % len(kinds)](self._budget()):
                break
        if self.running.active:
            self._step()

    def stop(self, error: AsterismError) -> None:
        """Fail all that there is: nothing goes on."""
        for row in list(self.rows.values()):
            row.over = True
            row.tell(Failed(error))
        self.choosing.stop(error)
        self.rows.clear()
        self.waiting.clear()
        self.prefills.clear()

    def _budget(self) -> int:
        return self.settings.chunk * (1 if self.running.active else IDLE)

    # ---- prompts of answers

    def _start_prefill(self, budget: int) -> bool:
        room = self.settings.slots - len(self.running.rows) - sum(len(prefill.rows) for prefill in self.prefills)
        if not self.waiting or room < 1:
            return False
        prompts = gathered(self.waiting, budget, room, self._known)
        for prompt in prompts:
            for row in prompt.rows:
                self.waiting.remove(row)
                row.begin()
        self._read(Prefill(self.forward, prompts), budget)
        return True

    def _go_on_prefill(self, budget: int) -> bool:
        while self.prefills:
            prefill = self.prefills.popleft()
            if not prefill.done:
                self._read(prefill, budget)
                return True
        return False

    def _read(self, prefill: Prefill, budget: int) -> None:
        """One pass; where it raises, its prompts are tried one by one."""
        try:
            prefill.run(budget, self._begin)
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
        trunk = self.choosing.trunks.get(row.job.tokens[: self.choosing.window])
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

    def _renew_if_due(self, row: Row) -> None:
        """Pause a row whose mixture is to be made again, until it is."""
        every = row.job.renew
        if every and row.job.composition is not None and len(row.tokens) % every == 0:
            self.running.pause(row)
            self._renew(row, row.job.composition.settings)

    def _renew(self, row: Row, where: CompositionSettings) -> None:
        made = self.choosing
        era = made.era

        def renewed(found: Choice | Exception) -> None:
            if row.over:
                return
            try:
                if isinstance(found, Exception):
                    raise found
                composition = self.executor.admit(Composition(found.mixture, where))
            except Exception as error:
                if era != made.era:  # the library has changed under it
                    self._renew(row, where)
                else:
                    self._end(row, Failed(told(error)))
                return
            made.chose(found)
            row.composition = composition
            row.tell(Renewed(composition))
            self.running.resume(row)

        again = made.again([*row.job.tokens, *row.tokens]) or row.job.tokens
        made.ask(again, made.still(row.job.wish), renewed, keep=False, gone=lambda: row.over)


def not_finite() -> AsterismError:
    """Of a row whose numbers overflowed."""
    mend = "serve the library in a wider dtype (float32, bfloat16), or check the weights"
    return DataError("The model's scores are not finite.", met="NaN or infinity", mend=mend)
