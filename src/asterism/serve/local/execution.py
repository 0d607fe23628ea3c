"""The executor: one model whose every row runs under its own composition, mixed or on a materialised tail."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import Tensor

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import UnknownName
from asterism.models.changes import Change
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel
from asterism.serve.jobs import Composition
from asterism.serve.local.bound import Bound
from asterism.serve.local.lowrank import truncated
from asterism.serve.local.passes import Live, State, Switch
from asterism.serve.local.policy import ROW, ExecutionSettings, Phase, Policy
from asterism.serve.local.shelf import Shelf
from asterism.serve.local.tails import Tails, TailStats

STATES = 8
"""Batches whose preparation is kept: prefill and decode take turns."""


class Executor:
    """Owns the generalist, patched once, and what each specialist changes of it. For one thread."""

    def __init__(self, library: Library, settings: ExecutionSettings | None = None) -> None:
        """Loads every specialist of the library."""
        self.library, self.settings = library, settings or ExecutionSettings()
        with torch.inference_mode(False):
            self.model: PreTrainedModel = library.fresh_model().requires_grad_(False)
        self._parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        for name, parameter in self._parameters.items():
            parameter.data = library.tensor(name)  # never written to: the library's own serves
        self._shelf = Shelf(self._parameters, self._woven)
        self._alone: dict[str, Composition] = {}
        self._bound: WeakKeyDictionary[Composition, Bound] = WeakKeyDictionary()
        self._by_key: WeakValueDictionary[str, Bound] = WeakValueDictionary()
        self._tails = Tails(library.anatomy, self._parameters, int(self.settings.tails_gb * 1e9))
        like = next(iter(self._parameters.values()))
        row = ROW if like.dtype.itemsize >= 4 and like.device.type == "cpu" else 0.0
        self._policy = Policy(self.settings, self._tails.size, self._tails.__contains__, row)
        self._decoding: WeakSet[Composition] = WeakSet()
        self._states = OrderedDict[tuple, State]()
        self._scratch: dict[torch.Size, Tensor] = {}
        self._switch = Switch()
        self._switch.patch(self.model)
        self._load(*library.names)

    def under(self, rows: Sequence[Composition | None], *, phase: Phase = "decode") -> None:
        """Row b of every batch that `model` is given from now on runs under rows[b]; None: the generalist.

        The batch must have as many rows, unless all run under one composition. Cheap where nothing changed.
        Errors as `admit`, for a composition that was not admitted.
        """
        bounds = [None if row is None else self._bind(row) for row in rows]
        if not any(bounds):
            self._switch.state = None
            return
        chosen = self._chosen(rows, bounds, phase)
        key = (phase, *map(id, bounds), *sorted(map(id, chosen)))
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._state(bounds, chosen, phase)
            while len(self._states) > STATES:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(key)
        self._switch.state = state

    def admit(self, composition: Composition) -> Composition:
        """The composition bound to the tensors that its names mean now: give this one to `under`, as long as its answer runs.

        Raises UnknownName for a specialist that is not there, MismatchError for weights of another size, SettingsError for blocks that
        the model lacks or module weights that the mixture lacks.
        """
        own = replace(composition)
        self._bind(own)
        return own

    def composition_of(self, name: str) -> Composition:
        """A specialist alone: all its parameters, with weight 1."""
        if name not in self._shelf:
            raise UnknownName("specialist", name, self._shelf.names)
        return self._alone[name]

    def floor(self, composition: Composition | None) -> int:
        """How many of the lowest blocks a composition leaves exactly the generalist's; 0 where it touches an embedding."""
        anatomy = self.library.anatomy
        if composition is None:
            return anatomy.n_blocks
        touched = self._bind(composition).terms
        if any(anatomy.role_of(name) == "embedding" for name in touched):
            return 0
        return min((block for name in touched if (block := anatomy.block_of(name)) is not None), default=anatomy.n_blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """The specialists that can be asked."""
        return self._shelf.names

    def add(self, name: str) -> None:
        """Load a specialist that the library has."""
        self._load(name)

    def remove(self, name: str) -> None:
        """Forget a specialist; admitted compositions that name it keep its tensors until they are let go."""
        if name not in self._shelf:
            raise UnknownName("specialist", name, self._shelf.names)
        self._shelf.take_out(name)
        del self._alone[name]
        for key, bound in list(self._by_key.items()):
            if name in bound.specialists:
                del self._by_key[key]
        self._tails.drop(name)
        self._states.clear()
        self._policy.forget()

    @property
    def stats(self) -> TailStats:
        """Hits and misses of the tails kept, and the seconds that composing took."""
        return self._tails.stats

    def bytes(self) -> Mapping[str, int]:
        """Memory held: of the `generalist`, of the `specialists` beside it, of the `tails` kept."""
        generalist = sum(tensor.nbytes for tensor in self._parameters.values())
        return {"generalist": generalist, "specialists": self._shelf.nbytes, "tails": self._tails.nbytes}

    def _load(self, *names: str) -> None:
        self._shelf.put(names, self._change)
        for name in names:
            self._alone[name] = Composition(Mixture.fixed({name: 1.0}, self.library.anatomy.hidden_size), CompositionSettings())

    def _change(self, name: str, parameter: str) -> Change | None:
        found, rank = self.library.change(name, parameter), self.settings.rank
        own = self.library.tensor(parameter)
        return found if rank is None else truncated(found, parameter, own, self.library.anatomy, rank)

    def _woven(self, parameter: str) -> bool:
        """Whether a parameter's matrices lie woven: where few rows meet half-precision matrices on a CPU."""
        own = self._parameters[parameter]
        linear = self.library.anatomy.is_linear(parameter) and self.library.anatomy.output_axes[parameter] == 0
        return linear and own.device.type == "cpu" and own.dtype.itemsize < 4

    def _bind(self, composition: Composition) -> Bound:
        bound = self._bound.get(composition)
        if bound is None:
            bound = self._by_key.get(composition.key)
            if bound is None:
                for name in composition.mixture.specialists:
                    if name not in self._shelf:
                        raise UnknownName("specialist", name, self._shelf.names)
                like = next(iter(self._parameters.values()))
                bound = Bound(composition, self.library.anatomy, like, self._shelf.change)
                self._by_key[composition.key] = bound
            self._bound[composition] = bound
        return bound

    def _chosen(self, rows: Sequence[Composition | None], bounds: Sequence[Bound | None], phase: Phase) -> set[Bound]:
        live = Counter(bound for bound in bounds if bound is not None)
        if phase == "prefill":
            return self._policy.prefill(live, Counter(self._bound[row] for row in self._decoding))
        self._decoding = WeakSet(row for row in rows if row is not None)
        return self._policy.decode(live)

    def _state(self, bounds: Sequence[Bound | None], chosen: set[Bound], phase: Phase) -> State:
        rows: dict[Bound | None, list[int]] = {}
        for place, bound in enumerate(bounds):
            rows.setdefault(bound, []).append(place)
        live = [Live(bound, tuple(own), self._tails.take(bound) if bound in chosen else None) for bound, own in rows.items()]
        stale = [key for key, state in self._states.items() if not all(one.tail is None or one.bound in self._tails for one in state.live)]
        for key in stale:  # a tail that had to go is not to stay by way of a batch
            del self._states[key]
        return State(len(bounds), tuple(live), phase, next(iter(self._parameters.values())), self._scratch)
