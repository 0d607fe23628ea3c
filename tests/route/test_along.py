"""Along training: at every step that both have kept, the figures of a library of those checkpoints."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.similarity import similarity
from asterism.core.errors import DataError
from asterism.models.library import Library
from asterism.route.along import along, kept_steps
from asterism.route.interpolation import sweep
from tests import tiny

PAIR = ("medical", "legal")
TEXTS = list(tiny.PROBES["medical"][:3])
GENERAL = list(tiny.PROBES["general"][:3])


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Two specialists with checkpoints of steps 2, 4 and 10, and 4, 10 and 12; a third without."""
    found = tiny.tiny_library(tmp_path_factory.mktemp("library"), "qwen2", (*PAIR, "code"), "mlp")
    base = tiny.tiny_model("qwen2")
    for number, (name, steps) in enumerate({"medical": (10, 2, 4), "legal": (4, 10, 12)}.items()):
        for step in steps:
            kept = found.folder(name) / "checkpoints" / f"checkpoint-{step}"
            tiny.perturbed(base, 10 * number + step, 0.02 * step, "mlp").save_pretrained(kept)
    (found.folder("medical") / "checkpoints" / "checkpoint-best").mkdir()
    return found


def test_every_step_is_a_library_of_its_checkpoints(library, tmp_path):
    rows = along(library, *PAIR, TEXTS, general=GENERAL, max_length=32)
    assert [row["step"] for row in rows] == [4, 10]
    for row in rows:
        folders = {name: library.folder(name) / "checkpoints" / f"checkpoint-{row['step']}" for name in PAIR}
        then = Library.create(tmp_path / str(row["step"]), library.folder(), folders)
        for name, texts in (("target", TEXTS), ("general", GENERAL)):
            want = similarity(then.model("medical"), then.model("legal"), then.tokenizer, texts).map.diagonal().mean()
            assert row["similar"][name] == pytest.approx(float(want))
        losses = sweep(then, *PAIR, TEXTS, shares=(0.0, 0.5, 1.0), max_length=32)["lerp"].losses.whole.mean(dim=1)
        torch.testing.assert_close(
            torch.tensor([own["loss"] for own in (row["losses"]["legal"], row["mean"], row["losses"]["medical"])]), losses.float()
        )
        assert row["mean"]["low"] <= row["mean"]["loss"] <= row["mean"]["high"]
    assert rows[0]["similar"]["target"] > rows[1]["similar"]["target"]


def test_steps_that_only_one_has_kept_are_no_steps(library):
    assert list(kept_steps(library, PAIR)) == [4, 10]
    for pair, told in (
        (("medical", "code"), "medical: 2, 4, 10; code: none"),
        (("generalist", "legal"), "generalist: none; legal: 4, 10, 12"),
    ):
        with pytest.raises(DataError, match=rf"no checkpoints of the same step.\n  met:  {told}\n  mend: .*--keep-every"):
            along(library, *pair, TEXTS)
