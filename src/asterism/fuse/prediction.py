"""The predictor: from the target's and the sources' adapters to new B's for the target, one transfer net a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asterism.core.draws import stream_key
from asterism.core.lowrank import Factors
from asterism.fuse.alignment import Alignment
from asterism.fuse.blocks import from_blocks
from asterism.fuse.experts import Expert
from asterism.fuse.net import Transfer, TransferNet, net_for
from asterism.fuse.regulariser import from_rectified_normal, unit_directions
from asterism.fuse.settings import FusionSettings
from asterism.fuse.tokens import Tokens, shuffled, tokens_of
from asterism.models.functions import FUNCTIONS, Function, Slot

_FREE = 1e18
"""Stands for no bound on a norm; its square is still a float32."""


@dataclass(frozen=True)
class SlotReport:
    """What a fusion did to one slot of the target's adapter."""

    block: int
    function: Function
    parameter: str
    norm_ratio: float | None
    """|B_new - B| / |B|, Frobenius; None where B is zero."""
    condition_before: float | None
    """Largest over smallest singular value of B; None where the smallest is zero."""
    condition_after: float | None
    """The same of B_new."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Predictor(nn.Module):
    """B_new = B + alpha * delta for every slot of the target that takes from a source; its parameters are those of the nets.

    The target's factors are read as they are stored, LoRA's scale not taken in, so that at birth, where delta is zero, the prediction is B
    to the last bit, and so are slots without a pair at any time. The change of a slot is shortened where it would pass
    `bound` times |B|. All in float32, also inside autocast. `target` and `sources` as `open_expert` gives them, `alignment` as `align`.
    """

    def __init__(self, target: Expert, sources: Mapping[str, Expert], alignment: Alignment, settings: FusionSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or FusionSettings()
        self.sources = tuple(sources)
        self.changed = tuple(dict.fromkeys(slot.parameter for slot in alignment.pairs))
        """The parameters that the prediction holds: those with a slot that takes from a source."""
        self.penalty: Tensor | None = None
        """The distribution regulariser of the last forward, not weighted: mean over functions of target's plus sources'; None without."""
        self.downs: dict[str, Tensor] = {}
        """Of the last forward, with free_down: parameter -> A_new [r, in]; else empty."""
        self._stored, self._number = _Frozen(), {parameter: number for number, parameter in enumerate(self.changed)}
        for parameter, number in self._number.items():
            for side, factor in zip(("up", "down"), target.stored(parameter), strict=True):
                self._stored.register_buffer(f"{side}{number}", factor, persistent=False)
        block, width = settings.block_for(target.hidden_size), settings.width_for(target.hidden_size)
        given = _given(sources, settings)
        self.slots: dict[Function, list[Slot]] = {}
        """Function -> the slots that take from a source, in the order of a net's layers."""
        self.nets, self._tokens = nn.ModuleDict(), nn.ModuleDict()
        for function in FUNCTIONS:
            slots = [slot for slot in alignment.pairs if slot.function == function]
            if not slots:
                continue
            mine = [(slot.of(self._up(slot.parameter)), self._down(slot.parameter)) for slot in slots]
            theirs = [[(self.sources.index(name), given[name][other]) for name, other in alignment.pairs[slot]] for slot in slots]
            tokens = tokens_of(mine, theirs, block)
            self.slots[function] = slots
            self.nets[function] = net_for(tokens, width, settings, stream_key(settings.seed, function) % 2**63)
            self._tokens[function] = _Frozen(tokens)

    def forward(self) -> dict[str, Tensor]:
        """Parameter -> B_new [out, r], for the parameters in `changed`; sets `penalty` and `downs`."""
        device = self._up(self.changed[0]).device
        with torch.autocast(device.type, enabled=False):
            ups = {parameter: self._up(parameter) for parameter in self.changed}
            moves: dict[str, list[Tensor]] = {parameter: [] for parameter in self.changed}  # of A, with free_down
            penalties = []
            drawn = self._draws()
            for function, slots in self.slots.items():
                tokens = self._of(function)
                transfer = self._transfer(function)
                for layer, slot in enumerate(slots):
                    up, down = slot.of(self._up(slot.parameter)), self._down(slot.parameter)
                    delta = transfer.delta[layer]
                    skip = 0
                    if self.settings.free_down:
                        skip = tokens.target_downs
                        moves[slot.parameter].append(self._bounded(down, from_blocks(delta[:skip], down.shape[1], down.shape[0]).mT))
                    change = self._bounded(up, from_blocks(delta[skip:], *up.shape))
                    ups[slot.parameter] = slot.put(ups[slot.parameter], up + change)
                if drawn is not None:
                    penalties.append(self._penalty(transfer, tokens, *drawn))
            self.penalty = torch.stack(penalties).mean() if penalties else None
            free = moves if self.settings.free_down else {}
            self.downs = {parameter: self._down(parameter) + torch.stack(each).mean(dim=0) for parameter, each in free.items()}
        return ups

    def start(self, parameter: str) -> Factors:
        """B [out, r] and A [r, in] of the target as they are stored."""
        return self._up(parameter), self._down(parameter)

    @torch.no_grad()
    def openness(self) -> dict[str, dict[str, float]]:
        """How far the gates let each source in: source -> `open`, the share of gate entries above 0, and `mean` entry, over all functions.

        A source that was silenced is near 0. Empty without gates.
        """
        if not self.settings.gate:
            return {}
        entries: dict[str, list[Tensor]] = {name: [] for name in self.sources}
        for function in self.slots:
            tokens = self._of(function)
            openings = self._net(function).openings(tokens.values[:, tokens.target :])  # [L, S, width]
            for place, name in enumerate(self.sources):
                entries[name].append(openings[tokens.owners == place].flatten())
        whole = {name: torch.cat(each) for name, each in entries.items()}
        return {name: {"open": float((each > 0).float().mean()), "mean": float(each.mean())} for name, each in whole.items()}

    @torch.no_grad()
    def report(self) -> list[SlotReport]:
        """What the present prediction does to every slot that takes from a source, in model order within each function."""
        ups = self()
        found = []
        for slots in self.slots.values():
            for slot in slots:
                old, new = slot.of(self._up(slot.parameter)).double(), slot.of(ups[slot.parameter]).double()
                norm = float(old.norm())
                ratio = float((new - old).norm()) / norm if norm else None
                found.append(SlotReport(slot.block, slot.function, slot.parameter, ratio, _condition(old), _condition(new)))
        return found

    def _transfer(self, function: Function) -> Transfer:
        tokens = self._of(function)
        first = 0 if self.settings.free_down else tokens.target_downs
        return self._net(function)(tokens.blocks, tokens.values, tokens.absent, target=tokens.target, first=first)

    def _bounded(self, factor: Tensor, change: Tensor) -> Tensor:
        """The change, shortened to `bound` times the factor's norm where it is longer; as it is where the factor is zero."""
        if self.settings.bound is None:
            return change
        norm = factor.norm()
        limit = torch.where(norm > 0, self.settings.bound * norm, _FREE)
        return change * (limit / change.norm().clamp_min(limit))

    def _draws(self) -> tuple[Tensor, torch.Generator] | None:
        """Directions, and what the reference samples are drawn with; None where there is no regulariser.

        The alphas, which learn, key the draws: other ones every step, the same within a step, and a resumed run meets what it would have.
        """
        if not self.settings.regulariser:
            return None
        nets = [self._net(function) for function in self.slots]
        key = stream_key(self.settings.seed, "regulariser", *(float(net.alpha.detach()).hex() for net in nets))
        generator = torch.Generator().manual_seed(key % 2**63)
        directions = unit_directions(nets[0].places.shape[1], self.settings.projections, generator)
        return directions.to(nets[0].places.device), generator

    def _penalty(self, transfer: Transfer, tokens: Tokens, directions: Tensor, generator: torch.Generator) -> Tensor:
        present, split = ~tokens.absent, tokens.target
        mean, sigma = self.settings.mu_target, self.settings.sigma
        mine = transfer.embeddings[:, :split][present[:, :split]]
        theirs = transfer.embeddings[:, split:][present[:, split:]]
        return sum(from_rectified_normal(each, directions, mean, sigma, generator) for each in (mine, theirs))  # pyright: ignore[reportReturnType]

    def _net(self, function: Function) -> TransferNet:
        return self.nets[function]  # pyright: ignore[reportReturnType]

    def _of(self, function: Function) -> Tokens:
        return self._tokens[function].tokens  # pyright: ignore[reportReturnType]

    def _up(self, parameter: str) -> Tensor:
        return self._stored.get_buffer(f"up{self._number[parameter]}")

    def _down(self, parameter: str) -> Tensor:
        return self._stored.get_buffer(f"down{self._number[parameter]}")


class _Frozen(nn.Module):
    """Tensors that move with the module and are in no state: they are the adapters', computed once."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        super().__init__()
        self._given = tokens
        for name, value in vars(tokens).items() if tokens else ():
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)

    @property
    def tokens(self) -> Tokens:
        assert self._given is not None
        return Tokens(**{**vars(self._given), **dict(self.named_buffers())})


def _given(sources: Mapping[str, Expert], settings: FusionSettings) -> dict[str, dict[Slot, Factors]]:
    """The sources' factors, shuffled where the settings ask for it."""
    if not settings.shuffled:
        return {name: dict(source.factors) for name, source in sources.items()}
    made = {}
    for name, source in sources.items():
        generator = torch.Generator().manual_seed(stream_key(settings.seed, "shuffled", name) % 2**63)
        made[name] = {slot: shuffled(factors, generator) for slot, factors in source.factors.items()}
    return made


def _condition(factor: Tensor) -> float | None:
    values = torch.linalg.svdvals(factor)
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else None
