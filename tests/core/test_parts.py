"""Parts of interrupted work: made once for one origin, kept through a kill, gone at the end."""

from __future__ import annotations

import pytest
import torch

from asterism.core.parts import Parts, passing_parts


def made(parts: Parts, name: str, value: float) -> float:
    """The part's number, which is `value` if it is made now."""
    return float(parts.tensors(name, lambda: {"x": torch.tensor(value)})["x"])


def test_a_part_is_made_once_for_an_origin(tmp_path):
    folder = tmp_path / "state"
    assert made(Parts(folder, "one"), "specialist:legal@0.5", 1.0) == 1.0
    assert made(Parts(folder, "one"), "specialist:legal@0.5", 2.0) == 1.0
    assert made(Parts(folder, "one"), "specialist:code", 3.0) == 3.0
    assert made(Parts(folder, "other"), "specialist:legal@0.5", 4.0) == 4.0
    Parts(folder, "other").remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_say_where_it_comes_from_is_thrown_away(tmp_path):
    assert made(Parts(tmp_path / "state", "one"), "a", 1.0) == 1.0
    (tmp_path / "state" / "origin.json").unlink()
    assert made(Parts(tmp_path / "state", "one"), "a", 2.0) == 2.0


@pytest.mark.parametrize(("ending", "stays"), [(None, False), (ValueError, False), (KeyboardInterrupt, True)])
def test_passing_parts_outlive_a_kill_alone(tmp_path, ending, stays):
    def work():
        with passing_parts(tmp_path / "state", "one") as parts:
            made(parts, "a", 1.0)
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            work()
    else:
        work()
    assert made(Parts(tmp_path / "state", "one"), "a", 2.0) == (1.0 if stays else 2.0)
