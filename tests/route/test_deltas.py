"""Deltas of two specialists, by part, against the live models' own parameters."""

from __future__ import annotations

import numpy as np
import pytest

from asterism.core.errors import UnknownName
from asterism.route.deltas import conflicts
from tests import tiny

NAMES = ("medical", "code")


def part_of(name: str) -> str:
    if ".mlp." in name:
        return "mlp"
    return "attention" if any(mark in name for mark in (".attn.", ".self_attn.", ".attention.")) else "other"


def vectors(library, name: str) -> dict[str, np.ndarray]:
    base = dict(library.model().named_parameters())
    parts: dict[str, list[np.ndarray]] = {"attention": [], "mlp": [], "other": []}
    for key, own in library.model(name).named_parameters():
        parts[part_of(key)].append((own.detach().double() - base[key].detach().double()).numpy().ravel())
    parts["all"] = [piece for own in parts.values() for piece in own]
    return {part: np.concatenate(pieces) for part, pieces in parts.items()}


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("gpt_neox", "full"), ("llama", "lora"), ("gemma2", "full")])
def test_parts_are_compared_as_whole_vectors(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    found = conflicts(library, *NAMES)
    ours, theirs = vectors(library, "medical"), vectors(library, "code")
    assert list(found) == ["attention", "mlp", "other", "all"]
    for part, own in found.items():
        x, y = ours[part], theirs[part]
        if not np.any(x):
            assert own.entries == 0
            continue
        both = (x != 0) & (y != 0)
        assert own.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-4)
        assert own.signs == pytest.approx(((x * y < 0) & both).sum() / both.sum(), abs=2e-3)
        assert own.norms == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)), rel=1e-4)
    assert (found["other"].entries == 0) == (kind == "lora")  # a LoRA touches neither norms nor embeddings


def test_mlp_specialists_differ_in_mlps_alone(tmp_path):
    library = tiny.tiny_library(tmp_path, "qwen2", NAMES, "mlp")
    found = conflicts(library, *NAMES)
    assert found["attention"].entries == found["other"].entries == 0
    assert found["all"] == found["mlp"]
    assert found["mlp"].entries == sum(
        parameter.numel() for name, parameter in library.model().named_parameters() if ".mlp." in name and "bias" not in name
    )


def test_a_specialist_with_itself_and_with_the_generalist(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", NAMES)
    same, none = conflicts(library, "code", "code")["all"], conflicts(library, "code", "generalist")["all"]
    assert (same.cosine, same.signs) == (pytest.approx(1), 0)
    assert (none.cosine, none.signs, none.norms[1]) == (0, 0, 0)
    assert none.norms[0] == same.norms[0]
    with pytest.raises(UnknownName, match="did you mean 'code'"):
        conflicts(library, "cod", "medical")
