"""HeteroFusion's parts written out in NumPy float64 with loops, sharing no code with what they check."""

import math

import numpy as np


def gelu(x):
    return np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(x)


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def encoded(p, block, values, mu_gate, gated=True):
    """One block [height, rank] and its singular values [rank] -> [width]."""
    normed = layer_norm(block.reshape(-1), p["norm.weight"], p["norm.bias"])
    square = normed.reshape(block.shape)
    by_columns = np.concatenate([square[:, column] for column in range(block.shape[1])])
    seen = gelu(linear(p, "by_rows", normed)) + gelu(linear(p, "by_columns", by_columns))
    if gated:
        seen = seen * np.clip(np.maximum(linear(p, "gate.2", gelu(linear(p, "gate.0", values))) + mu_gate, 0), 0, 1)
    return layer_norm(seen, p["after.weight"], p["after.bias"])


def transferred(p, targets, sources, places, heads, first, mu_gate, gated=True):
    """targets, sources: (block, values) of one layer; places: where each token stands -> changes of the blocks from `first` on."""
    tokens = [encoded(p, *each, mu_gate, gated) + p["places"][place] for each, place in zip([*targets, *sources], places, strict=True)]
    asking, answers = tokens[first : len(targets)], tokens[len(targets) :]
    width = len(asking[0])
    weight, bias = p["attention.in_proj_weight"], p["attention.in_proj_bias"]
    q, k, v = ([weight[part * width : (part + 1) * width] @ each + bias[part * width : (part + 1) * width] for each in some]
               for part, some in enumerate((asking, answers, answers)))  # fmt: skip
    per, found = width // heads, []
    for query in q:
        heard = np.zeros(width)
        for head in range(heads):
            at = slice(head * per, (head + 1) * per)
            scores = np.exp([query[at] @ key[at] / np.sqrt(per) for key in k])
            for score, value in zip(scores / scores.sum(), v, strict=True):
                heard[at] += score * value[at]
        heard = linear(p, "attention.out_proj", heard)
        change = p["alpha"] * linear(p, "decoder.2", gelu(linear(p, "decoder.0", heard)))
        found.append(change.reshape(targets[0][0].shape))
    return np.array(found)


def sliced_wasserstein(one, other, directions):
    total = 0.0
    for direction in directions.T:
        a, b = sorted(float(row @ direction) for row in one), sorted(float(row @ direction) for row in other)
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    return total / directions.shape[1]
