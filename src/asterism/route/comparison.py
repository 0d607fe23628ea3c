"""A routed model beside the models that it is made of, text by text, and how its gates spread the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from asterism.core.progress import track
from asterism.core.statistics import mean_interval, win_rate
from asterism.models.library import Library
from asterism.models.routed import RoutedForCausalLM
from asterism.models.types import PreTrainedModel
from asterism.route.experts import GENERALIST
from asterism.route.interpolation import live
from asterism.route.load import BlockLoad, load
from asterism.route.scoring import text_losses


@dataclass(frozen=True, eq=False)
class Comparison:
    """Mean losses of n texts in nats a token, [n] each."""

    router: Tensor
    rivals: Mapping[str, Tensor]
    """The generalist, then every specialist of the library."""
    blocks: tuple[BlockLoad, ...]
    models: tuple[str, ...]
    """Whose MLPs the router weighs."""
    seed: int = 42
    """Of the bootstrap intervals."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; every figure with its 95 % interval over texts (none of one), gains paired with each rival's loss on the same text."""
        return {
            "texts": len(self.router),
            "router_loss": self._mean(self.router),
            "rivals": [{"name": name, **self._mean(own), **self._gain(own)} for name, own in self.rivals.items()],
            "models": list(self.models),
            "blocks": [own.to_dict() for own in self.blocks],
        }

    def _mean(self, losses: Tensor) -> dict[str, float | None]:
        loss, low, high = mean_interval(losses.numpy(), self.seed)
        return {"loss": loss, "low": low, "high": high}

    def _gain(self, losses: Tensor) -> dict[str, float | None]:
        gain, low, high = mean_interval((losses - self.router).numpy(), self.seed)
        rate, rate_low, rate_high, _ = win_rate(self.router.numpy(), losses.numpy())
        return {"gain": gain, "gain_low": low, "gain_high": high, "rate": rate, "rate_low": rate_low, "rate_high": rate_high}


def compare(model: RoutedForCausalLM, library: Library, texts: Sequence[str], *, max_length: int = 256, seed: int = 42) -> Comparison:
    """Read the texts with a routed model, the generalist and every specialist of its library, cut at `max_length` tokens.

    Raises DataError for no list of texts, an empty one, one of fewer than three tokens, or a loss that is not finite.
    """

    def losses(model: PreTrainedModel) -> Tensor:
        return text_losses(model, library.tokenizer, texts, max_length=max_length).whole

    router = losses(model)
    rivals = {name: losses(live(library, name)) for name in track((GENERALIST, *library.names), "rivals")}
    blocks = load(model, library.tokenizer, texts, max_length=max_length)
    return Comparison(router, rivals, tuple(blocks), tuple(model.config.experts), seed)
