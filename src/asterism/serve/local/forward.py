"""Forward passes of the one model: a step of the running rows, a chunk of some prompts. Each row under its own composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import UnsupportedError
from asterism.models.batching import room_of
from asterism.serve.jobs import Composition
from asterism.serve.local.cache import Places
from asterism.serve.local.execution import Executor
from asterism.serve.local.masks import Masks
from asterism.serve.local.span import Span

UNEVEN = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Ways to turn positions that look at the longest row of the batch, and the setting up to which they do not."""
CHECKED = 6
"""Tokens of the text that the start is checked with."""


@dataclass(eq=False)
class Chunk:
    """What a pass over a chunk gives."""

    final: Tensor
    """[B, T, d] final hidden states, or, where logits of one position a row were asked for, [B, 1, d]."""
    logits: Tensor | None
    """[B, T, V], or [B, 1, V]; None where none were asked for."""
    states: list[Tensor]
    """[B, T, d] after each block that ran, where they were asked for."""


class Forward:
    """The executor's model, its blocks and its head."""

    def __init__(self, executor: Executor) -> None:
        """Checks that the model answers step by step as it does at once; UnsupportedError, naming the architecture, where it does not."""
        self.executor, self.model = executor, executor.model
        self.anatomy = executor.library.anatomy
        self.span = Span(self.model, self.anatomy)
        like = next(self.model.parameters())
        self.device, self.dtype = like.device, like.dtype
        self.masks = Masks(self.model.config, self.dtype, self.device)
        self._last: Tensor | None = None
        self._final: Tensor | None = None
        self.model.get_submodule(self.anatomy.layout.head).register_forward_pre_hook(self._before_the_head)
        self.room = _room(self.model)
        self._check()

    def step(
        self, places: Places, rows: slice, compositions: Sequence[Composition | None], ids: Tensor, lengths: Tensor, width: int
    ) -> Tensor:
        """One token for each of `rows`: ids [B, 1] at positions lengths [B] -> logits [B, V]. `width`: positions looked at, in all."""
        self.executor.under(compositions, phase="decode")
        places.step(rows, lengths, width)
        asked = dict(input_ids=ids, position_ids=lengths[:, None], attention_mask=self.masks.step(lengths, width))
        return self._run(self.model, places, asked).logits[:, 0]

    def chunk(
        self,
        places: Places,
        compositions: Sequence[Composition | None],
        ids: Tensor,
        start: int,
        *,
        first: int = 0,
        given: Tensor | None = None,
        stop: int | None = None,
        last: Tensor | None = None,
        logits: bool = False,
        keep: bool = False,
    ) -> Chunk:
        """ids [B, T] at positions start, start + 1, ... of every row; rows that are shorter hold anything behind their end.

        `first`, `given` and `stop` as in `Span.over`. `last` [B] asks for the logits of one place of each row, `logits` for all, and
        `keep` for the states after each block.
        """
        self.executor.under(compositions, phase="prefill")
        end = start + ids.shape[1]
        places.chunk(start, end)
        positions = self.masks.columns(end)[start:].expand(len(ids), -1)
        asked = dict(input_ids=ids, position_ids=positions, attention_mask=self.masks.chunk(start, end))
        seen: list[Tensor] = []
        self.span.over(first, stop=stop, given=given, seen=seen if keep else None)
        self._last = last
        try:
            if last is None and not logits:
                return Chunk(self._run(self.model.base_model, places, asked).last_hidden_state, None, seen)
            made = self._run(self.model, places, asked).logits
            assert self._final is not None
            return Chunk(self._final, made, seen)
        finally:
            self.span.whole()
            self._last = self._final = None

    def places(self, rows: int, length: int) -> Places:
        """Empty room for keys and values."""
        return Places(self.anatomy.n_blocks, rows, length)

    def ids(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Token ids, [B, width], with 0 behind the end of shorter rows."""
        return torch.tensor([[*own, *[0] * (width - len(own))] for own in rows], device=self.device)

    def _run(self, model: Any, places: Places, asked: dict[str, Any]) -> Any:
        return model(**asked, past_key_values=places, use_cache=True)

    def _before_the_head(self, module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden = given[0]
        if self._last is not None:
            hidden = hidden[self.masks.columns(len(hidden)), self._last][:, None]
            self._final = hidden
            return (hidden, *given[1:])
        self._final = hidden
        return None

    @torch.no_grad()
    def _check(self) -> None:
        ids = torch.arange(1, CHECKED + 1, device=self.device)[None] % self.anatomy.vocabulary
        self.executor.under([None])
        whole = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        places, cut = self.places(1, CHECKED), CHECKED // 2
        parts = [self.chunk(places, [None], ids[:, :cut], 0, logits=True).logits]
        for place in range(cut, CHECKED):
            at = torch.tensor([place], device=self.device)
            parts.append(self.step(places, slice(0, 1), [None], ids[:, place : place + 1], at, CHECKED)[:, None])
        found = torch.cat([part for part in parts if part is not None], dim=1)
        near = 1e-3 if self.dtype.itemsize >= 4 else 0.1
        if (found - whole).abs().max() > near * whole.abs().max().clamp_min(1):
            mend = "use another engine, and tell us of the architecture"
            raise UnsupportedError("The local engine cannot serve this architecture.", met=self.anatomy.model_type, mend=mend)


def _room(model: Any) -> int | None:
    """Positions that a row may fill: the model's, or as many as do not make one row's answer depend on another's length."""
    room = room_of(model, 2**31)
    ropes = getattr(model.config, "rope_parameters", None) or {}
    for rope in ropes.values() if ropes and all(isinstance(own, dict) for own in ropes.values()) else [ropes]:
        if rope.get("rope_type") in UNEVEN:
            name = UNEVEN[rope["rope_type"]]
            room = min(room, rope.get(name) or getattr(model.config, name))
    return None if room == 2**31 else room
