"""Factors of any width and rank as blocks of one size, and a form of a low-rank change that does not depend on how it was factored."""

from __future__ import annotations

import torch
from torch import Tensor

from asterism.core.lowrank import Factors, shortened


def to_blocks(factor: Tensor, height: int, rank: int) -> Tensor:
    """factor [rows, r], r <= rank -> [n, height, rank], n = ceil(rows / height): rows in order, zeros below and on the right."""
    rows, own = factor.shape
    assert own <= rank, f"a factor of rank {own} in blocks of rank {rank}"
    count = -(-rows // height)
    blocks = factor.new_zeros(count * height, rank)
    blocks[:rows, :own] = factor
    return blocks.view(count, height, rank)


def from_blocks(blocks: Tensor, rows: int, rank: int) -> Tensor:
    """[n, height, R] -> [rows, rank]: undoes `to_blocks`, exactly; what lies beyond is cut."""
    return blocks.flatten(0, 1)[:rows, :rank]


def balanced(up: Tensor, down: Tensor) -> Factors:
    """The form in which a source's change up @ down travels: up [out, r], down [r, in] -> up [out, n], down [n, in] in
    float64, n = min(r, out, in), of the same product.

    Thin SVD, its values shared evenly between the factors and descending; of every component the largest entry of `up` (the first of equal
    ones) is positive. So any two factorings of one change, whatever their basis, give one form where its singular values differ, and
    columns can be matched between adapters of unequal rank: a lower one is padded with zeros, nothing is ever cut. O((out + in) r^2).
    A target is not brought into this form: its A is to stay, so the columns of its B must stay its own.
    """
    up, down, _ = shortened(up.double(), down.double(), up.shape[1])
    largest = up.abs().argmax(dim=0, keepdim=True)  # [1, r]
    signs = torch.where(up.gather(0, largest) < 0, -1.0, 1.0).to(up)
    return up * signs, down * signs.mT
