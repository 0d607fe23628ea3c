"""What an adapter on a Qwen2 knows, carried into an adapter on a Llama of another depth, width and rank.

python examples/fuse_two_families.py
"""

from pathlib import Path
from tempfile import mkdtemp

from small import texts

from asterism import FusionSettings, TrainingSettings, fuse, train
from asterism.core.storage import read_json
from asterism.fuse.control import control
from asterism.models.examples import Example
from asterism.models.starts import from_nothing, pretrained
from asterism.models.training import tune

root, corpus = Path(mkdtemp(prefix="asterism-fusion-")), texts()
everything = [text for own in corpus.train.values() for text in own]
few = dict(steps=60, batch_size=8, max_length=64, learning_rate=5e-3)


def halves(domain: str) -> list[Example]:
    """The beginnings of a domain's texts as questions: how do they go on?"""
    return [Example(text[:40], text[40:80]) for text in corpus.train[domain]]


def expert(shape: str, domain: str, hidden: int, blocks: int, rank: int) -> tuple[Path, Path]:
    """A small backbone and a LoRA adapter on it that has learnt one domain."""
    backbone, adapter = root / shape, root / f"{shape}-{domain}"
    model, tokenizer = from_nothing(everything, shape, hidden=hidden, blocks=blocks, vocabulary=512, positions=256)
    train(model, tokenizer, everything, backbone, TrainingSettings(**few), device="cpu")
    model, tokenizer = pretrained(str(backbone))
    lora = TrainingSettings(method="lora", lora_rank=rank, **few)
    tune(model, tokenizer, halves(domain)[:16], adapter, lora, base=str(backbone), device="cpu")
    return backbone, adapter


target = expert("llama", "medical", hidden=32, blocks=3, rank=2)
source, learnt = expert("qwen2", "legal", hidden=64, blocks=4, rank=4)
replay = halves("medical")[16:] + halves("legal")[16:]
training = TrainingSettings(method="lora", epochs=4, batch_size=1, accumulation=4, max_length=64, learning_rate=2e-3)

# of the source's backbone the config is enough
sources = {"qwen2-legal": (source / "config.json", learnt)}
fused = fuse(target, sources, replay, root / "fused", FusionSettings(width=32, heads=4, projections=64), training, device="cpu")
told = read_json(fused.folder / "fusion.json")
print(f"fused: {told['start_loss']:.3f} nats a token before, {told['held_out_loss']:.3f} after, {len(told['slots'])} modules changed")
print(f"gates let in {told['openness']['qwen2-legal']['open']:.0%} of what the source offers")

alone = control(target, replay, root / "control", training, device="cpu")  # the same data and steps, no sources
print(f"control: {read_json(alone.folder / 'training.json')['held_out_loss']:.3f}")
