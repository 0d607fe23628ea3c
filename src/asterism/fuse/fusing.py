"""The target model under training: its adapter's B's are the predictor's, and only the predictor learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from asterism.core.errors import MismatchError
from asterism.fuse.prediction import Predictor
from asterism.models.types import PreTrainedModel


@dataclass(frozen=True, eq=False)
class _Step:
    """One prediction that the micro-batches of an optimiser step share."""

    predicted: dict[str, Tensor]
    """PEFT's name of a factor -> what the nets gave, with the way back to them."""
    leaves: dict[str, Tensor]
    """The same values, cut off: they gather the model's gradients."""
    penalty: Tensor
    """The weighted regulariser, with the way back."""


class FusedForTraining(nn.Module):
    """The language-model loss of the target with the predicted B's in place, as a module that a trainer steps.

    Wherever the weights come in, the model is the frozen one that was given; nothing of it is written to. In training the nets run once an
    optimiser step: the micro-batches of a step share one prediction, whose B's are leaves that gather their gradients, and `carry_back`
    takes the sum through the nets, and the regulariser's gradient with it. That is the gradient that a prediction for every micro-batch
    would give, at the price of one. Whoever trains calls `carry_back` after a step's last backward, before clipping. One process: gradients
    that another process reduces while it goes back through the model would miss the nets. No gradient checkpointing of the model.
    """

    def __init__(self, model: PreTrainedModel | nn.Module, predictor: Predictor, *, adapter: str = "default", once: bool = True) -> None:
        """model: the target with its adapter as PEFT makes it (`models.adapters.with_adapter`); adapter: its name there.

        once: one prediction an optimiser step; without it every forward predicts anew and its loss includes the weighted regulariser.
        Raises MismatchError where the model has another adapter than the predictor's target.
        """
        super().__init__()
        self.model, self.predictor, self.once = model.requires_grad_(False), predictor, once
        self._ups, self._dtypes = _places(self.model, predictor, adapter)
        self._step: _Step | None = None
        self._still: tuple[tuple[tuple[int, int], ...], dict[str, Tensor]] | None = (
            None  # outside training: the nets' state, its prediction
        )

    @property
    def config(self) -> Any:
        """The target model's."""
        return self.model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """input_ids, attention_mask, labels [B, T], and whatever else the model takes -> `loss`, the model's own, in nats a token.

        In training `penalty` too, weighted; it is part of `loss` only without `once` (`carry_back` brings its gradient else).
        """
        tensors = self._tensors()
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **kwargs}
        with_place = {name: tensor.to(self._dtypes[name]) for name, tensor in tensors.items()}
        loss = functional_call(self.model, with_place, (), given).loss
        if not self.training:
            return {"loss": loss}
        penalty = self._step.penalty if self._step else self._weighted()
        return {"loss": loss if self._step else loss + penalty, "penalty": penalty.detach()}

    def carry_back(self) -> None:
        """Take the gradients that the B's gathered since the last call through the nets, and the regulariser's; then the step is over.

        Without `once` there is nothing to do.
        """
        if self._step is None:
            return
        step, self._step = self._step, None
        reached = [name for name, leaf in step.leaves.items() if leaf.grad is not None]
        ends, gradients = [step.predicted[name] for name in reached], [step.leaves[name].grad for name in reached]
        if step.penalty.requires_grad:
            ends, gradients = [*ends, step.penalty], [*gradients, torch.ones_like(step.penalty)]
        if ends:
            torch.autograd.backward(ends, gradients)

    def _tensors(self) -> dict[str, Tensor]:
        """PEFT's name of every changed factor -> what stands in its place now."""
        if not (self.training and torch.is_grad_enabled()):
            state = tuple((parameter._version, parameter.data_ptr()) for parameter in self.predictor.parameters())
            if self._still is None or self._still[0] != state:
                with torch.no_grad():
                    self._still = (state, self._predicted())
            return self._still[1]
        self._still = None
        if not self.once:
            return self._predicted()
        if self._step is None:
            predicted = self._predicted()
            leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in predicted.items()}
            self._step = _Step(predicted, leaves, self._weighted())
        return self._step.leaves

    def _predicted(self) -> dict[str, Tensor]:
        ups = self.predictor()
        named = {self._ups[parameter]: tensor for parameter, tensor in ups.items()}
        return named | {_down(self._ups[parameter]): tensor for parameter, tensor in self.predictor.downs.items()}

    def _weighted(self) -> Tensor:
        penalty = self.predictor.penalty
        return torch.zeros(()) if penalty is None else self.predictor.settings.regulariser * penalty


def _places(model: nn.Module, predictor: Predictor, adapter: str) -> tuple[dict[str, str], dict[str, torch.dtype]]:
    """Parameter -> its B's name in the model, and each factor's dtype there; refuses other factors than the predictor starts from."""
    found = dict(model.named_parameters())
    ups: dict[str, str] = {}
    dtypes: dict[str, torch.dtype] = {}
    for parameter in predictor.changed:
        plain = f"{parameter.removesuffix('weight')}lora_B.{adapter}.weight"
        up = plain if plain in found else f"base_model.model.{plain}"
        for own, start in zip((up, _down(up)), predictor.start(parameter), strict=True):
            there = found.get(own)
            if there is None or there.shape != start.shape or not torch.equal(there.detach().cpu(), start.to(there.dtype).cpu()):
                met = f"{own}: " + ("absent" if there is None else "another shape" if there.shape != start.shape else "other values")
                mend = "put the very adapter on the model that the target was opened from"
                raise MismatchError("The model does not carry the target's adapter.", met=met, mend=mend)
            dtypes[own] = there.dtype
        ups[parameter] = up
    return ups, dtypes


def _down(name: str) -> str:
    return name.replace(".lora_B.", ".lora_A.")
