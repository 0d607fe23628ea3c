"""Who holds the most nodes."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.explanation import held


def test_held_counts_nodes_of_all_modules_alike():
    wide = torch.tensor([[0.9, 0.8, 0.1, 0.7], [0.1, 0.2, 0.9, 0.3]])  # a, a, b, a
    narrow = torch.tensor([[0.2], [0.8]])  # b
    assert held(("a", "b"), [wide, narrow]) == pytest.approx({"a": 3 / 5, "b": 2 / 5})
    assert held(("a", "b"), [narrow]) == {"a": 0.0, "b": 1.0}
