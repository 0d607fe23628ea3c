"""Uniform numbers that depend on a key and a place alone: the same on every run, machine and device, however the work is cut.

A counter-based generator: the place goes through two rounds of a 32-bit mixer with low bias (multiply, xorshift), into which the
key's two words enter. So a tensor's stream needs no state, and no other tensor's settings can shift it.
"""

from __future__ import annotations

import hashlib
import json
from math import ceil

import torch
from torch import Tensor

from asterism.core import native

BITS = 24
"""A draw's bits: as many as a float32 holds exactly."""

_WORD = 0xFFFFFFFF
_BLOCK = 1 << 20  # draws at a time: bounds the int64 temporaries


def stream_key(seed: int, *names: str) -> int:
    """A 64-bit key from SHA-256 of the seed and the names, such as a tensor's and a model's: other names, another stream."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:8], "little")


def uniform(key: int, n: int, start: int = 0, *, device: torch.device | str = "cpu") -> Tensor:
    """[n] float32 in [0, 1), multiples of 2^-24; element i depends on key and start + i alone. 0 <= start, start + n <= 2^40."""
    return draws(key, n, start, device=device).float() * 2.0**-BITS


def draws(key: int, n: int, start: int = 0, *, device: torch.device | str = "cpu") -> Tensor:
    """[n] int32 in [0, 2^24): the whole numbers behind `uniform`."""
    if torch.device(device).type == "cpu" and native.takes():
        return native.draws(key, n, start)
    return draws_torch(key, n, start, device)


def draws_torch(key: int, n: int, start: int, device: torch.device | str) -> Tensor:
    """`draws` without the kernel: 32-bit arithmetic in int64."""
    out = torch.empty(n, dtype=torch.int32, device=device)
    for begin in range(0, n, _BLOCK):
        piece = out[begin : begin + _BLOCK]
        places = torch.arange(start + begin, start + begin + len(piece), device=device)
        piece.copy_(_mixed(key, places) >> (32 - BITS))
    return out


def below(chance: float) -> int:
    """The whole number that a draw must be less than where `uniform` must be less than `chance`; exactly, 24 bits or not."""
    return min(max(ceil(chance * 2**BITS), 0), 2**BITS)


def _mixed(key: int, place: Tensor) -> Tensor:
    """32 mixed bits a place, in int64; every step is arithmetic modulo 2^32."""
    first, second = key & _WORD, key >> 32 & _WORD
    word = _finalised((place & _WORD) + first & _WORD)
    return _finalised((word ^ second) + (place >> 32) * 0x9E3779B9 & _WORD)


def _finalised(word: Tensor) -> Tensor:
    """Bijection of 32-bit words; constants of lowbias32 (Wellons, 2018: github.com/skeeto/hash-prospector)."""
    word = (word ^ word >> 16) * 0x7FEB352D & _WORD
    word = (word ^ word >> 15) * 0x846CA68B & _WORD
    return word ^ word >> 16
