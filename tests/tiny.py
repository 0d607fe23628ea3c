"""Random-weight models of every family asterism knows, a byte-level tokenizer and a few dozen sentences: no network, no files."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from asterism.core.corpus import Probe
from asterism.models.tokenizers import train_tokenizer

if TYPE_CHECKING:
    from asterism.models.library import Library

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
TIED = ("gpt2", "gemma2", "gemma3_text")
"""Families whose tiny model ties head and embedding."""
DOMAINS = ("medical", "legal", "code", "science")
HIDDEN = 16
LENGTH = 128
"""Positions of every tiny model."""

PROBES: dict[str, tuple[str, ...]] = {
    "general": (
        "The old house stood quietly near the river.",
        "We walked to the market and bought fresh bread.",
        "Her brother plays the piano every evening.",
        "It rained all night, so the picnic was moved indoors.",
        "A small dog followed the children home.",
        "They painted the kitchen yellow last summer.",
    ),
    "medical": (
        "The patient was given antibiotics for acute pneumonia.",
        "Hypertension raises the risk of stroke and renal failure.",
        "The surgeon closed the incision after the appendectomy.",
        "Insulin lowers blood glucose in diabetic patients.",
        "An MRI scan showed a lesion in the left kidney.",
        "Fever and a persistent cough suggest an infection.",
        "The nurse recorded the pulse and the dosage of morphine.",
    ),
    "legal": (
        "The court dismissed the appeal for lack of standing.",
        "The defendant breached the contract and owes damages.",
        "A plaintiff must file the complaint within two years.",
        "The statute grants the tenant a right of redress.",
        "Counsel moved to exclude the testimony as hearsay.",
        "The jury found the corporation liable for negligence.",
    ),
    "code": (
        "def add(a, b):\n    return a + b",
        "for i in range(len(items)):\n    print(items[i])",
        "import json\nwith open(path) as f:\n    rows = json.load(f)",
        "class Node:\n    def __init__(self, value):\n        self.value = value",
        "while queue:\n    node = queue.pop(0)\n    visit(node)",
        "try:\n    x = int(text)\nexcept ValueError:\n    x = None",
    ),
    "science": (
        "Photons carry energy proportional to their frequency.",
        "The enzyme catalyses the hydrolysis of the protein.",
        "Plate tectonics explains the drift of the continents.",
        "Electrons occupy discrete orbitals around the nucleus.",
        "Natural selection acts on heritable variation.",
        "The telescope measured the redshift of a distant galaxy.",
        "Catalysts lower the activation energy of a reaction.",
    ),
}

CROSS: tuple[tuple[str, tuple[str, str]], ...] = (
    ("Is a surgeon liable for negligence when the patient develops an infection?", ("medical", "legal")),
    ("The hospital breached its contract by giving the wrong dosage of insulin.", ("medical", "legal")),
    ("def dose(weight):\n    return 0.5 * weight  # insulin for the patient", ("medical", "code")),
    ("for patient in ward:\n    print(patient.pulse, patient.fever)", ("medical", "code")),
    ("The enzyme is blocked by antibiotics, which lowers fever in patients.", ("medical", "science")),
    ("An MRI scan measures how nuclei in the kidney absorb energy.", ("medical", "science")),
    ("class Contract:\n    def breach(self):\n        return self.damages", ("legal", "code")),
    ("The court held that import json was not a breach of the licence.", ("legal", "code")),
    ("Counsel called a physicist whose testimony explained the redshift.", ("legal", "science")),
    ("The statute limits the energy that a reaction may release.", ("legal", "science")),
    ("def energy(frequency):\n    return h * frequency  # photons", ("code", "science")),
    ("while reaction:\n    energy = catalyst.lower(energy)", ("code", "science")),
)

_SHAPE = dict(hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, intermediate_size=2 * HIDDEN, max_position_embeddings=LENGTH)
_GQA = dict(_SHAPE, num_key_value_heads=2)
_OWN: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_embd=HIDDEN, n_layer=5, n_head=2, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neox": _SHAPE,
    "llama": dict(_GQA, intermediate_size=40, attention_bias=True, mlp_bias=True),  # 40 is no multiple of 16
    "mistral": dict(_GQA, head_dim=4, sliding_window=9),
    "qwen2": _GQA,
    "qwen3": dict(_GQA, head_dim=6),  # attention wider than the hidden dimension
    "gemma2": dict(_GQA, head_dim=4, query_pre_attn_scalar=4, sliding_window=9),
    "gemma3_text": dict(
        _GQA, head_dim=4, query_pre_attn_scalar=4, sliding_window=9, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    ),
    "phi3": dict(_GQA, original_max_position_embeddings=LENGTH),
    "olmo2": _GQA,
}


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens; one special token (id 0) starts, ends and pads."""
    texts = [text for part in PROBES.values() for text in part] + [text for text, _ in CROSS]
    tokenizer = train_tokenizer(texts, 320)
    tokenizer.model_max_length = LENGTH
    return tokenizer


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A config of `family` with hidden size 16, 5 blocks (gpt2) or 3; `changes` override."""
    tokenizer = tiny_tokenizer()
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return AutoConfig.for_model(family, **{"vocab_size": len(tokenizer), **ends, **_OWN[family], **changes})


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A model of `family` in eval mode, every parameter drawn from `seed` (norm weights and biases too); `changes` go to its config."""
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name or "ln_" in name else 0.0
                noise = 0.2 * noise + (
                    centre if name.endswith("weight") and "gemma" not in family else 0.0
                )  # Gemma's norms multiply by 1 + w
            elif "wpe" in name:
                noise = 0.3 * noise
            else:
                noise = noise * (0.5 if parameter.shape[0] == model.config.vocab_size else HIDDEN**-0.5)
            parameter.copy_(noise)
    return model.to(dtype).eval()


def perturbed(model: PreTrainedModel, seed: int, scale: float, which: Literal["all", "mlp"] = "all") -> PreTrainedModel:
    """A copy of `model` with Gaussian noise of `scale` times each parameter's own root mean square added (`mlp`: to the MLPs alone)."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if which == "all" or ".mlp." in name:
                parameter.add_((scale * parameter.double().pow(2).mean().sqrt() * noise).to(parameter.dtype))
    return changed


def save(model: PreTrainedModel, folder: str | Path) -> Path:
    """Save a model with the tiny tokenizer as a checkpoint folder."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


def save_lora(model: PreTrainedModel, folder: str | Path, seed: int, *, rank: int = 2, base: str = "generalist", **config: Any) -> Path:
    """Save a PEFT LoRA adapter of `model` (left as it was) with random A and B in all linear modules; `config` goes to LoraConfig."""
    from peft import LoraConfig, get_peft_model

    plain = model.config.model_type == "gpt2"
    given = LoraConfig(
        **{"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "fan_in_fan_out": plain, "task_type": "CAUSAL_LM", **config}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        adapted = get_peft_model(copy.deepcopy(model), given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(noise * (0.1 if "lora_B" in name else HIDDEN**-0.5))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return Path(folder)


def tiny_library(
    folder: str | Path,
    family: str = "gpt2",
    names: Sequence[str] = DOMAINS,
    kind: Literal["full", "lora", "mlp"] = "full",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Library:
    """A library on disk: `generalist` and a folder a specialist, wholly perturbed, LoRA (ranks 2, 3, 2, ...) or with perturbed MLPs."""
    from asterism.models.library import Library

    folder = Path(folder)
    generalist = tiny_model(family, seed, dtype)
    save(generalist, folder / "generalist")
    for number, name in enumerate(names):
        own = 1000 * (seed + 1) + number
        if kind == "lora":
            save_lora(generalist, folder / name, own, rank=2 + number % 2, base=str(folder / "generalist"))
        else:
            save(perturbed(generalist, own, 0.15, "mlp" if kind == "mlp" else "all"), folder / name)
    return Library.create(folder, str(folder / "generalist"), {name: folder / name for name in names})


def tiny_probes() -> dict[str, list[str]]:
    """Texts by domain, `general` included."""
    return {domain: list(texts) for domain, texts in PROBES.items()}


def tiny_singles() -> list[Probe]:
    """The texts of the four domains as single-domain probes."""
    return [Probe(f"{domain}-{n}", text, (domain,)) for domain in DOMAINS for n, text in enumerate(PROBES[domain])]


def tiny_cross() -> list[Probe]:
    """Two cross-domain probes for each of the six pairs."""
    return [Probe(f"cross-{n}", text, pair) for n, (text, pair) in enumerate(CROSS)]


class wide(TorchFunctionMode):  # noqa: N801
    """Inside, a float64 model stays float64: transformers' own casts to float32 (RMS norms, eager softmax) are left out.

    Some families round to float32 inside whatever the model's dtype is; tests of exactness to 1e-10 run under `with tiny.wide():`.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.get("input")
        if isinstance(first, torch.Tensor) and first.dtype == torch.float64:
            if func is torch.Tensor.float:
                return first
            if func is torch.Tensor.to:
                args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
