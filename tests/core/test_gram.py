"""Gram matrices against NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, MismatchError, UnsupportedError
from asterism.core.gram import gram

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(), (1,), (7,), (1, 1), (5, 33), (3, 4, 70), (2, 66_000), (130_001,)]


def oracle(arrays: list[np.ndarray], base: np.ndarray | None, by_row: bool, wide: type) -> np.ndarray:
    deltas = [a if base is None else (a.astype(wide) - base.astype(wide)).astype(np.float64) for a in arrays]
    rows = arrays[0].shape[0] if by_row and arrays[0].ndim > 1 else 1
    flat = [d.reshape(rows, -1) for d in deltas]
    out = np.empty((rows, len(flat), len(flat)))
    for row in range(rows):
        for i, one in enumerate(flat):
            for j, other in enumerate(flat):
                out[row, i, j] = np.dot(one[row], other[row])
    return out if by_row else out[0]


def seeded(shape, k: int, dtype: torch.dtype, *, like: bool = True) -> tuple[list[torch.Tensor], torch.Tensor]:
    """K models near a base."""
    generator = torch.Generator().manual_seed(k)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    models = [base + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(k)]
    return [model.to(dtype) for model in models], base.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_agrees_with_numpy(shape, dtype):
    wide = np.float64 if dtype == torch.float64 else np.float32
    for k in (1, 2, 3, 5):
        models, base = seeded(shape, k, dtype)
        for origin in (None, base):
            for by_row in (False, True):
                got = gram(models, origin, by_row=by_row)
                want = oracle([m.double().numpy() for m in models], None if origin is None else base.double().numpy(), by_row, wide)
                assert got.dtype == torch.float64
                assert got.shape == want.shape
                np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


def test_rows_are_those_of_the_first_axis():
    models, base = seeded((6, 5, 40), 3, torch.float32)
    got = gram(models, base, by_row=True)
    assert got.shape == (6, 3, 3)
    for row in range(6):
        assert torch.equal(got[row], gram([m[row] for m in models], base[row]))
    assert torch.equal(gram([m[0, 0] for m in models], by_row=True)[0], gram([m[0, 0] for m in models]))


def test_layout_and_mixed_dtypes_are_no_matter():
    models, base = seeded((40, 60), 3, torch.float32)
    turned = [model.t().contiguous().t() for model in models]
    assert not turned[0].is_contiguous()
    for by_row in (False, True):
        assert torch.equal(gram(turned, base, by_row=by_row), gram(models, base, by_row=by_row))
    mixed = [models[0].to(torch.bfloat16), models[1], models[2].double()]
    got = gram(mixed, base.half())
    want = gram([m.double() for m in mixed], base.half().double())
    assert torch.equal(got, want)


def test_differences_are_float32():
    one, base = torch.tensor([1.0 + 2**-20]), torch.tensor([2.0**20])
    assert gram([one], base).item() == float(np.float32(np.float32(1 + 2**-20) - np.float32(2**20))) ** 2
    assert gram([one.double()], base.double()).item() == (1 + 2**-20 - 2**20) ** 2


def test_no_thread_count_changes_a_bit():
    models, base = seeded((500, 700), 3, torch.bfloat16)
    threads, got = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            got.append((gram(models, base), gram(models, base, by_row=True)))
    finally:
        torch.set_num_threads(threads)
    for whole, rows in got[1:]:
        assert torch.equal(whole, got[0][0])
        assert torch.equal(rows, got[0][1])


def test_the_same_model_twice_is_exactly_parallel():
    models, base = seeded((300, 300), 1, torch.bfloat16)
    got = gram([models[0], models[0].clone()], base)
    assert got[0, 0] == got[0, 1] == got[1, 0] == got[1, 1]
    assert not gram([base, base], base).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["base", 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_are_refused_by_name(bad, place, dtype):
    models, base = seeded((30, 40), 2, dtype)
    (base if place == "base" else models[place])[29, 3] = bad
    for by_row in (False, True):
        with pytest.raises(DataError, match="not finite") as caught:
            gram(models, base, by_row=by_row, name="lm_head.weight")
        assert "lm_head.weight" in str(caught.value)


def test_what_does_not_fit_is_refused():
    one = torch.ones(3, 4)
    for error, told, call in [
        (MismatchError, "0 tensors", lambda: gram([])),
        (MismatchError, "tensor 1 is [4, 3]", lambda: gram([one, one.t()])),
        (MismatchError, "tensor base is [4]", lambda: gram([one], one[0])),
        (UnsupportedError, "int64", lambda: gram([one.long()])),
        (DataError, "too large", lambda: gram([torch.full((2,), 1e200, dtype=torch.float64)])),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert told in str(caught.value)


def test_nothing_has_no_length():
    assert torch.equal(gram([torch.empty(0, 4)] * 2), torch.zeros(2, 2, dtype=torch.float64))
    assert gram([torch.empty(0, 4)] * 2, by_row=True).shape == (0, 2, 2)
    assert gram([torch.empty(3, 0)] * 2, by_row=True).shape == (3, 2, 2)
