"""The papers' equations written out in NumPy float64 with loops: slow, plain, and sharing no code with what they check."""

import numpy as np


def fingerprint(hidden):
    """Eq. 1 and 4: hidden [T, d], the text's own positions -> [d]."""
    total = np.zeros(hidden.shape[1])
    for position in np.asarray(hidden, dtype=np.float64):
        total += position
    return total / len(hidden)


def gram_schmidt(centroids):
    """Eq. 3: [n, d] -> [n, d], in the order given."""
    axes = []
    for centroid in np.asarray(centroids, dtype=np.float64):
        rest = centroid.copy()
        for axis in axes:
            rest -= np.dot(centroid, axis) * axis
        axes.append(rest / np.sqrt(np.dot(rest, rest)))
    return np.array(axes)


def lowdin(centroids):
    """Loewdin: G^(-1/2) x_hat through the eigenvectors of the Gram matrix G of the normalised rows, [n, d] -> [n, d]."""
    unit = np.array([row / np.sqrt(np.dot(row, row)) for row in np.asarray(centroids, dtype=np.float64)])
    values, vectors = np.linalg.eigh(unit @ unit.T)
    root = np.zeros((len(unit), len(unit)))
    for value, vector in zip(values, vectors.T, strict=True):
        root += np.outer(vector, vector) / np.sqrt(value)
    return root @ unit


def coefficients(fingerprint, basis):
    """Eq. 5: [d], [N, d] -> [N]."""
    return np.array([sum(float(g) * float(e) for g, e in zip(fingerprint, axis, strict=True)) for axis in basis])


def signature(hidden):
    """Eq. 6: hidden [T, d] of the specialist -> [d]."""
    return fingerprint(np.abs(np.asarray(hidden, dtype=np.float64)))


def raw(coefficients, signatures):
    """Eq. 7: [K], [K, d] -> [K, d]."""
    weights = np.zeros(np.shape(signatures))
    for i, j in np.ndindex(weights.shape):
        weights[i, j] = max(float(coefficients[i]), 0.0) * float(signatures[i][j])
    return weights


def two_stage(raw):
    """Eq. 8: [K, d] -> [K, d], columns summing to 1; a column of zeros becomes 1/K."""
    weights = np.zeros(np.shape(raw))
    for i, j in np.ndindex(weights.shape):
        column = sum(float(raw[other][j]) for other in range(len(raw)))
        weights[i, j] = float(raw[i][j]) / column if column > 0 else 1 / len(raw)
    return weights


def compose(weights, parameters, axis=0):
    """Eq. 9: weights [K, out], K parameters of one shape with `out` along `axis` -> that shape."""
    total = np.zeros(np.shape(parameters[0]))
    for row, parameter in zip(weights, parameters, strict=True):
        for place in np.ndindex(total.shape):
            total[place] += float(row[place[axis]]) * float(parameter[place])
    return total


def joint(raw):
    """Eq. 10: [K, d] -> [K, d], summing to 1 in all; all zero becomes 1/(K d)."""
    weights = np.asarray(raw, dtype=np.float64)
    total = sum(float(value) for value in weights.flat)
    return weights / total if total > 0 else np.full(weights.shape, 1 / weights.size)


def entropy(weights):
    """Eq. 11, in bits: [K, d] -> [d]."""
    bits = np.zeros(np.shape(weights)[1])
    for i, j in np.ndindex(np.shape(weights)):
        if weights[i][j] > 0:
            bits[j] -= float(weights[i][j]) * np.log2(float(weights[i][j]))
    return bits


def task_arithmetic(generalist, specialists, scales):
    """Eq. 12: one parameter of the generalist and of every specialist -> its merge."""
    merged = np.array(generalist, dtype=np.float64)
    for specialist, scale in zip(specialists, scales, strict=True):
        merged += scale * (np.asarray(specialist, dtype=np.float64) - np.asarray(generalist, dtype=np.float64))
    return merged


def gini(values):
    """Mean difference of all pairs of sizes over twice their mean: [n] -> a number."""
    sizes = [abs(float(value)) for value in values]
    mean = sum(sizes) / len(sizes)
    difference = sum(abs(a - b) for a in sizes for b in sizes) / len(sizes) ** 2
    return difference / (2 * mean) if mean > 0 else 0.0


def wilson(wins, n):
    """The rates p at which wins / n lies 1.96 standard errors of p away, found by bisection: (low, high)."""
    z, rate = 1.959963984540054, wins / n

    def crossing(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            near = abs(rate - middle) <= z * np.sqrt(middle * (1 - middle) / n)
            inside, outside = (middle, outside) if near else (inside, middle)
        return inside

    return crossing(rate, 0.0) if rate > 0 else 0.0, crossing(rate, 1.0) if rate < 1 else 1.0


def linear_gram(x):
    """[n, d] -> [n, n] inner products of rows, taken about their mean (both estimators of HSIC are blind to it)."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=0)
    return x @ x.T


def rbf_gram(x, bandwidth=1.0):
    """[n, d] -> [n, n] exp(-|a - b|^2 / (2 s^2)) - 1, s = bandwidth times the median distance of two different rows.

    HSIC is blind to the constant, which would cost digits where the bandwidth is large.
    """
    x = np.asarray(x, dtype=np.float64)
    distances = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    scale = bandwidth * np.median(distances[np.triu_indices(len(x), 1)])
    return np.expm1(-(distances**2) / (2 * scale**2))


def hsic(k, m, estimator):
    """Of two Gram matrices: tr(KHMH) / (n - 1)^2 (`biased`, Gretton et al. 2005), or Eq. 5 of Song et al. 2012 (`debiased`)."""
    n, ones = len(k), np.ones(len(k))
    if estimator == "biased":
        k = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()  # HKH
        return (k * m).sum() / (n - 1) ** 2
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    totals = (ones @ k @ ones) * (ones @ m @ ones)
    sums = (k * m).sum() + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * ((ones @ k) @ (m @ ones))
    return sums / (n * (n - 3))


def cka(k, m, estimator):
    """Centred kernel alignment of two Gram matrices."""
    return hsic(k, m, estimator) / np.sqrt(hsic(k, k, estimator) * hsic(m, m, estimator))
