"""A causal language model whose every MLP is a weighted sum of frozen experts: the MLPs of several models, weighed token by token.

    y = sum_e p_e(x) E_e(x),  p = softmax(W x)           (arXiv:2411.02207, section 2.1)

This file stands alone: torch and transformers, nothing of asterism. `save_pretrained` copies it beside the weights, so that a
machine without asterism loads the model with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import can_return_tuple

SCOPES = ("single", "layer")
GATES = ("linear", "mlp", "fixed")
MODES = ("softmax", "absolute", "cosine")


class RoutedConfig(PreTrainedConfig):
    """What a routed model is made of. Fields that it has not (hidden_size, vocab_size, ...) are those of `text_config`."""

    model_type = "asterism-routed"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    has_no_defaults_at_init = True

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        experts: Sequence[str] = (),
        depth: int = 1,
        scope: str = "layer",
        gate: str = "linear",
        mode: str = "softmax",
        scale: float = 1.0,
        num_experts_per_tok: int | None = None,
        normalise: bool = False,
        balance: float = 0.0,
        origin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """text_config: the generalist's. experts: names of the models that gave their MLPs, in order.

        depth: block i weighs the MLPs of blocks i .. i + depth - 1 of every model (see `reached`). scope: a gate for every `layer`, or
        the `single` one of block 0, whose probabilities every block takes. gate: `linear`, `mlp` (Linear, GELU, Linear) or `fixed`
        weights. mode: what a linear gate makes probabilities of, times `scale`: W x (`softmax`), |W x| (`absolute`) or the cosines of
        x and W's rows (`cosine`). num_experts_per_tok: how many of the experts run for a token (None: all), their probabilities
        summing to 1 again if `normalise`. balance: factor of the load-balancing loss. origin: what the model was made from.
        """
        super().__init__(**kwargs)
        if isinstance(text_config, dict):
            given = {key: value for key, value in text_config.items() if key != "model_type"}
            text_config = AutoConfig.for_model(text_config["model_type"], **given)
        self.text_config: Any = copy.deepcopy(text_config)  # transformers writes dtypes into a model's configs
        if self._attn_implementation is not None:  # set before there was a text_config to hand it on to
            self._attn_implementation = self._attn_implementation
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))
        self.experts, self.depth, self.scope, self.gate, self.mode, self.scale = list(experts), depth, scope, gate, mode, scale
        self.num_experts_per_tok, self.normalise, self.balance, self.origin = num_experts_per_tok, normalise, balance, origin or {}
        if text_config is None:  # transformers makes an empty one now and then
            return
        for field, value, known in (("scope", scope, SCOPES), ("gate", gate, GATES), ("mode", mode, MODES)):
            if value not in known:
                raise ValueError(f"RoutedConfig.{field} is {value!r}, not one of {', '.join(known)}")
        if not experts:
            raise ValueError("RoutedConfig.experts names no model")
        if num_experts_per_tok is not None and not 1 <= num_experts_per_tok <= self.weighed:
            raise ValueError(f"RoutedConfig.num_experts_per_tok is {num_experts_per_tok}; a gate weighs {self.weighed} experts")
        if not 1 <= depth <= text_config.num_hidden_layers:
            raise ValueError(f"RoutedConfig.depth is {depth}; the model has {text_config.num_hidden_layers} blocks")

    @property
    def weighed(self) -> int:
        """How many experts a gate weighs: depth times the models."""
        return self.depth * len(self.experts)

    @property
    def routing(self) -> dict[str, Any]:
        """How the model routes, apart from its weights: two models of equal weights may differ in this."""
        fields = ("experts", "depth", "scope", "gate", "mode", "scale", "num_experts_per_tok", "normalise", "balance")
        return {field: getattr(self, field) for field in fields}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "text_config":
            raise AttributeError(name)
        return getattr(self.text_config, name)


def reached(block: int, depth: int, blocks: int) -> tuple[int, ...]:
    """The blocks whose MLPs block `block` weighs: itself, those above, and where the stack ends those below: (i, i+1, ..., i-1, ...)."""
    return (*range(block, min(block + depth, blocks)), *range(block - 1, -1, -1))[:depth]


class LinearGate(nn.Linear):
    """x [..., d] -> probabilities [..., E] in float32 or wider; weight [E, d]."""

    def __init__(self, width: int, weighed: int, mode: str = "softmax", scale: float = 1.0) -> None:
        super().__init__(width, weighed, bias=False)
        self.mode, self.scale = mode, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "cosine":
            return _softmax(self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)))
        scores = super().forward(x)
        return _softmax(self.scale * (scores.abs() if self.mode == "absolute" else scores))


class MlpGate(nn.Module):
    """x [..., d] -> probabilities [..., E] in float32 or wider, through a hidden layer of d units; no biases."""

    def __init__(self, width: int, weighed: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, weighed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _softmax(self.output(F.gelu(self.hidden(x))))


class FixedGate(nn.Module):
    """The same weights [E] for every token."""

    def __init__(self, weighed: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", torch.full((weighed,), 1 / weighed))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.expand(*x.shape[:-1], -1)


_FIRST: ContextVar[Tensor] = ContextVar("probabilities of block 0, in this thread")


class ReusedGate(nn.Module):
    """The probabilities that block 0 gave in this same forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return _FIRST.get()


class RoutedMLP(nn.Module):
    """Stands where a block's MLP stood. It holds that block's experts, one a model, and weighs those that it reaches."""

    def __init__(self, experts: Sequence[nn.Module], gate: nn.Module, config: RoutedConfig, *, leads: bool) -> None:
        super().__init__()
        self.experts, self.gate = nn.ModuleList(experts), gate
        self.reach: tuple[nn.Module, ...] = ()
        """The experts that the gate weighs, in its order; held by the blocks that they come from, so each is stored once."""
        self.top_k, self.normalise, self.leads = config.num_experts_per_tok, config.normalise, leads

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        probabilities = self.gate(x)  # [B, T, E]
        if self.leads:
            _FIRST.set(probabilities)
        if self.top_k is None or self.top_k == len(self.reach):
            return self._dense(x, probabilities)
        return self._sparse(x.flatten(0, -2), probabilities.flatten(0, -2)).view_as(x)

    def _dense(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """Every expert on every token; the sum grows in place, which no gradient minds."""
        total = None
        for expert, share in zip(self.reach, probabilities.split(1, dim=-1), strict=True):
            output = expert(x)
            share = share.to(output.dtype)
            total = output * share if total is None else total.addcmul_(output, share)
        assert total is not None
        return total

    def _sparse(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """x [N, d], probabilities [N, E]: each expert on the tokens that chose it, gathered and added back."""
        shares, chosen = strongest(probabilities, self.top_k or len(self.reach), self.normalise)  # [N, k] both
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.reach)).tolist()
        total = torch.zeros_like(x)
        for expert, places in zip(self.reach, order.split(counts), strict=True):
            if len(places):
                tokens = places // chosen.shape[1]
                total.index_add_(0, tokens, (expert(x[tokens]) * shares.flatten()[places, None]).to(x.dtype))
        return total


def strongest(probabilities: Tensor, k: int, normalise: bool = False) -> tuple[Tensor, Tensor]:
    """The k largest of [..., E] and their places, [..., k] both; made to sum to 1 where `normalise`."""
    shares, places = probabilities.topk(k, dim=-1)
    return (shares / shares.sum(dim=-1, keepdim=True) if normalise else shares), places


class RoutedForCausalLM(PreTrainedModel, GenerationMixin):
    """The family's model with a RoutedMLP in every block; its modules and parameters keep the family's names."""

    config: RoutedConfig
    config_class = RoutedConfig
    _whole: Any
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: RoutedConfig) -> None:
        super().__init__(config)
        whole: Any = AutoModelForCausalLM.from_config(config.text_config)
        self.__dict__["_whole"] = whole  # runs the forward pass; no submodule, but the two
        self._modules = whole._modules  # share one table of submodules
        self.base_model_prefix, self._tied_weights_keys = whole.base_model_prefix, whole._tied_weights_keys
        blocks = blocks_of(whole)
        for index, block in enumerate(blocks):
            copies = [copy.deepcopy(block.mlp) for _ in config.experts[1:]]
            block.mlp = RoutedMLP([block.mlp, *copies], _gate(config, index), config, leads=config.scope == "single" and index == 0)
        for index, block in enumerate(blocks):
            sources = reached(index, config.depth, len(blocks))
            block.mlp.reach = tuple(expert for source in sources for expert in blocks[source].mlp.experts)
        self.post_init()

    @property
    def routed(self) -> list[RoutedMLP]:
        """What stands for the MLP of each block, from the first."""
        return [block.mlp for block in blocks_of(self)]

    @property
    def gates(self) -> list[nn.Module]:
        """The gates that hold weights: one a block, or with scope `single` that of block 0 alone."""
        return [mlp.gate for mlp in self.routed if not isinstance(mlp.gate, ReusedGate)]

    def reach_of(self, block: int) -> list[tuple[str, int]]:
        """(model, block) of each expert that the gate of a block weighs, in the gate's order."""
        sources = reached(block, self.config.depth, self.config.num_hidden_layers)
        return [(name, source) for source in sources for name in self.config.experts]

    def gate_state(self) -> dict[str, Tensor]:
        """The tensors of all gates by their names in the model: what a router is."""
        return {name: tensor for name, tensor in self.state_dict().items() if ".mlp.gate." in name}

    @torch.no_grad()
    def set_gates(self, weights: Tensor) -> None:
        """Fill linear gates, [gates, E, d], or fixed ones, [gates, E]; without the first axis every gate gets the same."""
        for index, gate in enumerate(self.gates):
            own: Tensor = gate.weights if isinstance(gate, FixedGate) else gate.weight  # pyright: ignore[reportAssignmentType]
            own.copy_(weights[index] if weights.ndim > own.ndim else weights)

    @torch.no_grad()
    def reset_gates(self, seed: int = 42) -> None:
        """Draw the weights of linear and two-layer gates anew: Kaiming-uniform as nn.Linear does, between +-1/sqrt(inputs)."""
        generator = torch.Generator().manual_seed(seed)
        for gate in self.gates:
            for weight in gate.parameters():
                bound = weight.shape[1] ** -0.5
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """The family's own output. In training, with labels, its loss holds the load-balancing loss times config.balance."""
        given = dict(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, labels=labels, use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=True,
        )  # fmt: skip
        if labels is None or not self.training or not self.config.balance:
            return self._whole(**given, **kwargs)
        with recording(self) as seen:
            output = self._whole(**given, **kwargs)
        told = [seen[0]] if self.config.scope == "single" else seen
        k = self.config.num_experts_per_tok or 1
        output.loss = output.loss + self.config.balance * sum(balance_loss(each, k, attention_mask) for each in told) / len(told)
        return output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the family does."""
        return self._whole.prepare_inputs_for_generation(*args, **kwargs)


@contextmanager
def recording(model: RoutedForCausalLM) -> Iterator[list[Tensor]]:
    """Inside, the list holds the gates' probabilities of the latest forward pass, [B, T, E] for each block, before any top-k."""
    mlps = model.routed
    seen: list[Any] = [None] * len(mlps)

    def keep(block: int) -> Any:
        return lambda gate, inputs, probabilities: seen.__setitem__(block, probabilities)

    handles = [mlp.gate.register_forward_hook(keep(block)) for block, mlp in enumerate(mlps)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(probabilities: Tensor, k: int = 1, attention_mask: Tensor | None = None) -> Tensor:
    """E sum_e f_e P_e of [B, T, E]: f_e the share of tokens with e among their k strongest, P_e its mean probability; k when balanced.

    Padded tokens, 0 in a mask [B, T], are left out. Source: Switch Transformers, arXiv:2101.03961, Eq. 4-6; k > 1 as in Mixtral.
    """
    flat = probabilities.flatten(0, -2)
    if attention_mask is not None and attention_mask.shape == probabilities.shape[:-1]:
        flat = flat[attention_mask.flatten().bool()]
    _, places = strongest(flat, k)
    chosen = torch.zeros_like(flat).scatter_(1, places, 1.0)
    return flat.shape[1] * (chosen.mean(dim=0) * flat.mean(dim=0)).sum()


def blocks_of(model: nn.Module) -> Sequence[Any]:
    """The list of a model's blocks: the modules in a row that each have an `mlp`. ValueError where there is none."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(hasattr(block, "mlp") for block in module):
            return module  # pyright: ignore[reportReturnType]
    raise ValueError(f"{type(model).__name__} has no list of blocks with an `mlp` each")


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _gate(config: RoutedConfig, block: int) -> nn.Module:
    if config.scope == "single" and block:
        return ReusedGate()
    if config.gate == "fixed":
        return FixedGate(config.weighed)
    if config.gate == "mlp":
        return MlpGate(config.hidden_size, config.weighed)
    return LinearGate(config.hidden_size, config.weighed, config.mode, config.scale)


if __name__.startswith("asterism."):  # not in the copy that lies beside a checkpoint
    AutoConfig.register(RoutedConfig.model_type, RoutedConfig)
    AutoModelForCausalLM.register(RoutedConfig, RoutedForCausalLM)
    RoutedConfig.register_for_auto_class()
    RoutedForCausalLM.register_for_auto_class("AutoModelForCausalLM")
