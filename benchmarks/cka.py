"""Similarity of 12 x 12 layers of two models over 10,000 samples of 768 features, streamed, beside the bare matrix products.

    python benchmarks/cka.py [--quick]

Random features come in batches of 256 rows, drawn outside the clock. Memory is the largest resident memory of the whole process, torch
included. The limit is what the products X_l^T Y_m alone would take in float64. Agreement is with the Gram form, n x n matrices, on fewer
samples.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from common import options, report
from torch import Tensor

from asterism.core.cka import LinearCka
from asterism.core.hsic import Estimator

BATCH = 256


def main() -> None:
    """Measure, compare, print."""
    given = options(__doc__).parse_args()
    layers, n, width, few = (3, 1000, 64, 300) if given.quick else (12, 10_000, 768, 1500)
    seconds, asking = streamed(layers, n, width)
    peak = peak_gb()
    products = bare(width) * layers**2 * n / BATCH
    differences = [difference(few, width, estimator) for estimator in ("debiased", "biased")]
    rows = [
        [f"all batches, then the map ({asking:.2f} s of it)", seconds, peak],
        [f"bare products: {layers**2} of {width} x {width}, {n} rows", products, ""],
        [f"Gram form, 1 x 1, {few} samples: largest difference", f"{max(differences):.1e}", ""],
    ]
    metrics = {
        "seconds_12x12": seconds,
        "peak_gb": peak,
        "products_ratio": seconds / products,
        "largest_difference": max(differences),
    }
    report("cka", f"CKA of {layers} x {layers} layers, {n} samples, {width} features", ["way", "seconds", "GB"], rows, metrics)


def features(generator: torch.Generator, layers: int, width: int, rows: int = BATCH) -> list[Tensor]:
    """[rows, width] a layer, float32, with a mean as real activations have."""
    return [3 + torch.randn(rows, width, generator=generator) for _ in range(layers)]


def streamed(layers: int, n: int, width: int) -> tuple[float, float]:
    """Seconds of adding and asking, and of asking alone."""
    cka, generator = LinearCka([width] * layers, [width] * layers), torch.Generator().manual_seed(0)
    seconds = 0.0
    for top in range(0, n, BATCH):
        batch = features(generator, 2 * layers, width, min(BATCH, n - top))
        seconds += timed(lambda batch=batch: cka.add(batch[:layers], batch[layers:]))
        del batch  # before the next one is made
    asking = timed(lambda: (cka.similarity(), cka.null()))
    return seconds + asking, asking


def bare(width: int) -> float:
    """Seconds of one product [width, BATCH] x [BATCH, width] in float64, added in place (median)."""
    x, y = torch.randn(2, BATCH, width, dtype=torch.float64)
    total = torch.zeros(width, width, dtype=torch.float64)
    return sorted(timed(lambda: total.addmm_(x.T, y)) for _ in range(51))[25]


def difference(n: int, width: int, estimator: Estimator) -> float:
    """Streamed against n x n Gram matrices, one pair of layers that share some features."""
    x, y = features(torch.Generator().manual_seed(1), 2, width, n)
    y[:, : width // 4] += x[:, : width // 4]
    cka = LinearCka([width], [width])
    cka.add([x], [y])
    return abs(float(cka.similarity(estimator)) - in_gram_form(x.double(), y.double(), estimator))


def in_gram_form(x: Tensor, y: Tensor, estimator: Estimator) -> float:
    """CKA from whole Gram matrices: of Song et al. 2012 (debiased) or Gretton et al. 2005 (biased)."""
    n = len(x)
    k, m = ((rows - rows.mean(dim=0)) @ (rows - rows.mean(dim=0)).T for rows in (x, y))
    if estimator == "debiased":
        k, m = k - k.diag().diag(), m - m.diag().diag()

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        if estimator == "biased":
            return (a * b).sum()  # the rows are centred already
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * a.sum(dim=0) @ b.sum(dim=0)
        return (a * b).sum() + sums

    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
