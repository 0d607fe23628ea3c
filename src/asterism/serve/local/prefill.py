"""Reading the prompts of answers, several together, in chunks, so that running answers never wait for longer than one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from asterism.serve.jobs import Composition
from asterism.serve.local.cache import Places
from asterism.serve.local.forward import Forward
from asterism.serve.local.rows import Row
from asterism.serve.local.trunks import Trunk


@dataclass(eq=False)
class Prompt:
    """One prompt under one composition, and all answers that begin with it."""

    rows: list[Row]
    trunk: Trunk | None
    depth: int
    """Blocks that need not run for what the trunk knows."""
    begun: bool = False
    """Whether it is read, and its answers have begun."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt's."""
        return self.rows[0].job.tokens

    @property
    def composition(self) -> Composition | None:
        """All rows'."""
        return self.rows[0].composition

    @property
    def cached(self) -> int:
        """Its tokens whose states were known."""
        return len(self.trunk.states[0]) if self.trunk is not None and self.depth else 0

    def like(self, row: Row) -> bool:
        """Whether a row begins as these do."""
        own = self.rows[0]
        return own.era == row.era and own.key == row.key and own.job.tokens == row.job.tokens


def gathered(waiting: Iterable[Row], budget: int, room: int, known: Callable[[Row], tuple[Trunk | None, int]]) -> list[Prompt]:
    """Prompts from the front that are read together: of one depth, `budget` tokens in all (or a single prompt), `room` answers at most.

    `known` tells of a row what is known of its prompt, and how deep.
    """
    group: list[Prompt] = []
    longest = 0
    for row in islice(waiting, room):
        same = next((prompt for prompt in group if prompt.like(row)), None)
        if same is not None:
            same.rows.append(row)
            continue
        prompt, width = Prompt([row], *known(row)), max(longest, len(row.job.tokens))
        if group and (prompt.depth != group[0].depth or (len(group) + 1) * width > budget):
            break
        group.append(prompt)
        longest = width
    return group


class Prefill:
    """A group of prompts on their way through the model."""

    def __init__(self, forward: Forward, prompts: Sequence[Prompt]) -> None:
        self.forward, self.prompts = forward, list(prompts)
        self.longest = max(len(prompt.tokens) for prompt in self.prompts)
        self.depth = self.prompts[0].depth
        self._known = self._given()
        self._start = 0
        self.places: Places = forward.places(len(self.prompts), self.longest)

    @property
    def rows(self) -> list[Row]:
        """Answers that still wait for it."""
        return [row for prompt in self.prompts for row in prompt.rows if not row.over]

    @property
    def done(self) -> bool:
        """Whether all of it is read, or nobody waits any more."""
        return self._start >= self.longest or not self.rows

    def run(self, budget: int, begin: Callable[[Prompt, Tensor, Places, int], None]) -> None:
        """One pass of about `budget` tokens; `begin` is told of every prompt that ends in it: logits [V], and where its keys lie."""
        start, stop = self._start, min(self._start + max(1, budget // len(self.prompts)), self.longest)
        given = None
        if self._known is not None and start < self._known.shape[1]:
            stop = min(stop, self._known.shape[1])
            given = self._known[:, start:stop]
        if start == 0 and self.depth:
            for index, prompt in enumerate(self.prompts):
                assert prompt.trunk is not None
                prompt.trunk.fill(self.places, index, self.depth)
        ids = self.forward.ids([prompt.tokens[start:stop] for prompt in self.prompts], stop - start)
        ends = [index for index, prompt in enumerate(self.prompts) if start < len(prompt.tokens) <= stop]
        last = torch.zeros(len(self.prompts), dtype=torch.long)
        for index in ends:
            last[index] = len(self.prompts[index].tokens) - 1 - start
        chunk = self.forward.chunk(
            self.places,
            [prompt.composition for prompt in self.prompts],
            ids,
            start,
            first=self.depth if given is not None else 0,
            given=given,
            last=last.to(ids.device) if ends else None,
        )
        self._start = stop
        for index in ends:
            assert chunk.logits is not None
            begin(self.prompts[index], chunk.logits[index, 0], self.places, index)

    def _given(self) -> Tensor | None:
        """[B, T, d] what the lowest blocks gave, or None where they run."""
        if not self.depth:
            return None
        known = [prompt.trunk.states[self.depth - 1] for prompt in self.prompts if prompt.trunk is not None]
        return torch.nn.utils.rnn.pad_sequence(known, batch_first=True)
