"""Fusion from end to end: adapters of other backbones and replay data in, one PEFT adapter of the target's backbone out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import SettingsError
from asterism.core.storage import digest_of
from asterism.fuse.alignment import Alignment, align
from asterism.fuse.card import FORMAT_VERSION, write_card
from asterism.fuse.experts import Expert, open_expert
from asterism.fuse.fusing import FusedForTraining
from asterism.fuse.layer_similarity import Side, layer_similarity
from asterism.fuse.prediction import Predictor
from asterism.fuse.recipe import HELD_OUT
from asterism.fuse.replay import HeldOut, Rows, Target, backbone, check_apart, learnt_and_held_out, open_target
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import Adapter, read_adapter, rewritten, with_adapter
from asterism.models.digests import folder_digest
from asterism.models.engine import Work, settled, work_out
from asterism.models.examples import Example
from asterism.models.runs import is_finished, origin_of, state_folder
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.sources import folder_at
from asterism.models.starts import pretrained
from asterism.models.training import batched, check_examples, facts, told
from asterism.models.types import PreTrainedConfig

Config = str | Path | PreTrainedConfig
"""A backbone's config: itself, a config.json, a model's folder or a Hub id."""
Sources = Mapping[str, tuple[Config, str | Path]] | Sequence[tuple[Config, str | Path]]
"""By name, or in a list by the name of the adapter's folder: (the backbone's config, the adapter's folder)."""
SHARED_TEXTS = 200
"""Replay texts that `layers: cka` compares two backbones on."""


def fuse(
    target: tuple[str | Path, str | Path],
    sources: Sources,
    data: Rows,
    out: str | Path,
    settings: FusionSettings | None = None,
    training: TrainingSettings | None = None,
    *,
    held_out: HeldOut = HELD_OUT,
    chat: bool = True,
    device: str | None = None,
) -> Adapter:
    """Carry knowledge of LoRA adapters on other backbones into the target's; write a PEFT adapter at `out`, whole or absent, and open it.

    target: (model, adapter), folders or Hub ids; neither is written to. Of a source's backbone only the config is read. data: replay
    examples (see `asterism.models.examples`), of which a share `held_out` is set apart, or rows of their own given: their loss is measured
    before the first step and every `evaluate_every`, and the best state is written, which may be the target as it was. training: by default
    the paper's (PRESETS["fusion"]). chat: as in `tune`.
    A finished fusion of the same origin is not repeated, an interrupted one resumes. Beside the adapter lie fusion.json and a card.
    Raises what `open_expert`, `align`, `open_target` and `tune` raise: a source or target that is no plain finite LoRA of its config,
    nothing that pairs, no replay data, an adapter of another base, unequal chat templates, an `out` that holds something else.
    Source: HeteroFusion, arXiv:2604.01674.
    """
    settings, training, out = settings or FusionSettings(), training or TrainingSettings(**PRESETS["fusion"]), Path(out)
    to, named = open_expert(*target, is_target=True), _named(sources)
    experts = {name: open_expert(config, adapter, name) for name, (config, adapter) in named.items()}
    alignment = None if settings.layers == "cka" else align(to, experts, settings)
    learnt, apart = learnt_and_held_out(data, held_out, training.seed)
    check_examples(learnt, apart)
    check_apart(out, *(expert.adapter.folder for expert in experts.values()))
    compared = _models(named) if settings.layers == "cka" else {}
    opened = open_target(target, out, training)
    training = settled(training, len(learnt), bool(apart))
    more = {
        **facts(opened.tokenizer, apart, chat, opened.adapter_at),
        "fusion settings": settings.digest(),
        "sources": digest_of([[name, _digest(expert), expert.adapter.digest] for name, expert in experts.items()]),
    }
    if compared:
        more["source models"] = digest_of([[name, folder_digest(folder, state_folder(out))] for name, folder in compared.items()])
    origin = origin_of(opened.model, opened.tokenizer, told(learnt), training, more)
    if is_finished(out, origin):
        return read_adapter(out)
    alignment = alignment or align(to, experts, settings, _similarity((opened.model, opened.tokenizer), compared, learnt, device))
    rows, measured, collate = batched(opened.model, opened.tokenizer, learnt, apart, training.max_length, chat)
    fused = FusedForTraining(with_adapter(opened.model, opened.adapter_at), Predictor(to, experts, alignment, settings))

    def write(folder: Path, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        fused.load_state_dict(dict(weights), strict=False)
        with torch.no_grad():
            ups = fused.predictor()
        rewritten(to.adapter, folder, ups, fused.predictor.downs)
        opened.tokenizer.save_pretrained(folder)
        counts = {"learnt": len(learnt), "held_out": len(apart)}
        write_card(folder, out.name, _told(opened, to, experts, named, alignment, fused.predictor, record) | {"examples": counts})

    work = Work(fused, rows, write, parts_alone=True, collate=collate, held_out=measured)
    work_out(work, out, training, origin, device)
    return read_adapter(out)


def show_alignment(
    target: tuple[str | Path, str | Path],
    sources: Sources,
    settings: FusionSettings | None = None,
    data: Rows | None = None,
    training: TrainingSettings | None = None,
    *,
    held_out: HeldOut = HELD_OUT,
    device: str | None = None,
) -> Alignment:
    """Which modules a fusion would pair: adapters and configs are read, no backbone's weights but, for `layers: cka`, of all of them.

    data: replay examples, for `layers: cka` alone; SettingsError there without them. training and held_out, as in `fuse`, say which of the
    examples are learnt from: those are what the layers are compared on.
    """
    named, settings, training = _named(sources), settings or FusionSettings(), training or TrainingSettings(**PRESETS["fusion"])
    to = open_expert(*target, is_target=True)
    experts = {name: open_expert(config, adapter, name) for name, (config, adapter) in named.items()}
    if settings.layers != "cka" or data is None:
        return align(to, experts, settings)
    learnt, _ = learnt_and_held_out(data, held_out, training.seed)
    return align(to, experts, settings, _similarity(backbone(target[0], training), _models(named), learnt, device))


def _named(sources: Sources) -> dict[str, tuple[Config, str | Path]]:
    if isinstance(sources, Mapping):
        return dict(sources)
    found: dict[str, tuple[Config, str | Path]] = {}
    for config, adapter in sources:
        name = Path(adapter).name
        names = (name, *(f"{name} {number}" for number in range(2, len(found) + 2)))
        found[next(each for each in names if each not in found)] = (config, adapter)
    return found


def _models(named: Mapping[str, tuple[Config, str | Path]]) -> dict[str, Path]:
    """The folders of the sources' models, which `layers: cka` alone reads; SettingsError where one is a config alone."""
    found = {}
    for name, (config, _) in named.items():
        folder = None if isinstance(config, PreTrainedConfig) or Path(config).is_file() else folder_at(config)
        if folder is None or not any(folder.glob("*.safetensors")):
            mend = "give the source's model, its weights included, or choose layers: top or proportional"
            raise SettingsError("layers: cka reads both backbones.", met=f"{name}: a config alone", mend=mend)
        found[name] = folder
    return found


def _similarity(target: Side, models: Mapping[str, Path], learnt: Sequence[Example], device: str | None) -> dict[str, Tensor]:
    """How alike the blocks of the target and of each source are on replay texts."""
    texts = list(dict.fromkeys(f"{example.prompt}\n{example.response}".strip() for example in learnt))[:SHARED_TEXTS]
    place = device or str(torch.accelerator.current_accelerator() or "cpu")
    return {name: layer_similarity(_on(target, place), _on(pretrained(str(folder)), place), texts) for name, folder in models.items()}


def _on(side: Side, device: str) -> Side:
    model: Any = side[0]
    return model.to(device), side[1]


def _digest(expert: Expert) -> str:
    """Of the backbone's config, wherever it lies."""
    content = json.loads(expert.config.to_json_string(use_diff=False))
    return digest_of({name: value for name, value in content.items() if name not in ("_name_or_path", "transformers_version")})


def _told(
    opened: Target,
    to: Expert,
    experts: Mapping[str, Expert],
    named: Mapping[str, tuple[Config, str | Path]],
    alignment: Alignment,
    predictor: Predictor,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that made the fusion, and what it did."""
    nets: Mapping[str, Any] = dict(predictor.nets.items())
    history = list(record.get("history", []))
    measured = [entry["held_out_loss"] for entry in history if "held_out_loss" in entry]
    best = {"start_loss": measured[0], **{name: record[name] for name in ("best_step", "held_out_loss")}} if measured else {}
    return {
        "format_version": FORMAT_VERSION,
        "asterism": version("asterism"),
        "settings": predictor.settings.model_dump(mode="json"),
        "training": record["settings"],
        "target": {
            "model": str(opened.model_at),
            "start": record["start"],
            "adapter": str(opened.adapter_at),
            "digest": to.adapter.digest,
            "base": to.adapter.config.get("base_model_name_or_path"),
        },
        "sources": {
            name: {
                "model": None if isinstance(named[name][0], PreTrainedConfig) else str(named[name][0]),
                "family": expert.config.model_type,
                "config": _digest(expert),
                "adapter": str(named[name][1]),
                "digest": expert.adapter.digest,
                "rank": expert.rank,
            }
            for name, expert in experts.items()
        },
        "data": record["texts"],
        "alignment": {**alignment.to_dict(), "rows": alignment.rows()},
        "openness": predictor.openness(),
        "alpha": {function: float(net.alpha.detach()) for function, net in nets.items()},
        "slots": [slot.to_dict() for slot in predictor.report()],
        **best,
        "history": history,
    }
