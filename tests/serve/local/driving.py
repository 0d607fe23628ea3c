"""A scheduler driven by hand: jobs come at chosen turns, and what they are told is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from asterism.compose.composer import Composer
from asterism.constellation.index import Constellation
from asterism.models.library import Library
from asterism.serve.jobs import Choice, Composition, Event, Failed, Finished, Job, Renewed, Sampling, Tokens, Wish
from asterism.serve.local.execution import Executor
from asterism.serve.local.scheduler import Scheduler
from asterism.serve.local.settings import LocalSettings


@dataclass
class Driver:
    """A scheduler, and the events of every job by its id."""

    scheduler: Scheduler
    told: dict[str, list[Event]] = field(default_factory=dict)
    choices: list[Any] = field(default_factory=list)

    @classmethod
    def over(cls, library: Library, constellation: Constellation | None = None, **settings: Any) -> Driver:
        given = LocalSettings(**settings)
        return cls(Scheduler(Executor(library, given), constellation or some_index(library), given))

    def submit(self, job: Job) -> None:
        self.scheduler.submit(job, self.told.setdefault(job.id, []).append)

    def run(self, turns: int | None = None) -> None:
        """So many turns, or until nothing is left to do."""
        done = 0
        while self.scheduler.busy and (turns is None or done < turns):
            self.scheduler.turn()
            done += 1
            assert done < 5000

    def choose(self, tokens: Sequence[int], wish: Wish | None = None) -> Choice:
        found: list[Any] = []
        self.scheduler.choosing.ask(tokens, wish or Wish(), found.append)
        self.run()
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def answer(self, job: str) -> list[int]:
        return [token.id for event in self.told[job] if isinstance(event, Tokens) for token in event.tokens]

    def last(self, job: str) -> Finished | Failed:
        last = self.told[job][-1]
        assert isinstance(last, Finished | Failed)
        return last

    def renewals(self, job: str) -> list[Renewed]:
        return [event for event in self.told[job] if isinstance(event, Renewed)]


def some_index(library: Library) -> Constellation:
    """A constellation of no meaning, for tests that choose no mixture by it."""
    draw = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(3, library.anatomy.hidden_size, generator=draw) for name in library.names}
    return Constellation.from_fingerprints(library, rows, digests=dict.fromkeys(rows, ""))


def alone(library: Library, job: Job, **settings: Any) -> list[int]:
    """A job's answer with nobody beside it."""
    driver = Driver.over(library, **settings)
    driver.submit(job)
    driver.run()
    return driver.answer(job.id)


@torch.no_grad()
def generated(library: Library, job: Job) -> list[int]:
    """What transformers' own `generate` writes on a materialised model, greedily, and up to an end."""
    composition = job.composition
    if composition is None:
        model: Any = library.fresh_model()
    else:
        model = Composer(library, composition.settings).materialise(composition.mixture)
    ids = torch.tensor([job.tokens])
    asked = dict(do_sample=False, max_new_tokens=job.sampling.max_tokens, eos_token_id=sorted(job.sampling.ends) or None, pad_token_id=0)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0, len(job.tokens) :].tolist()


def drawn_tokens(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def job(id: str, tokens: Sequence[int], composition: Composition | None, most: int = 6, **sampling: Any) -> Job:
    return Job(id, tuple(tokens), Sampling(most, **sampling), composition)
