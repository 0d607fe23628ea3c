"""Every merge method written out in NumPy float64, entry by entry or vector by vector: no Gram matrix, no code of asterism's."""

import numpy as np


def flat(stack):
    return np.asarray(stack, dtype=np.float64).reshape(len(stack), -1)


def linear(stack, weight, normalize=True):
    total = np.zeros(np.shape(stack)[1:])
    for w, x in zip(weight, stack, strict=True):
        total = total + w * np.asarray(x, dtype=np.float64)
    return total / sum(weight) if normalize else total


def task_arithmetic(deltas, weight, normalize=False, lambda_=1.0):
    return lambda_ * linear(deltas, weight, normalize=normalize and abs(sum(weight)) >= 1e-8)


def slerp(a, b, t, near=0.9995):
    """In the plane of the two vectors: coordinates of a point t of the way, by two equations solved for the coefficients."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    length_a, length_b = np.sqrt((a * a).sum()), np.sqrt((b * b).sum())
    cosine = (a * b).sum() / (length_a * length_b) if length_a and length_b else 0.0
    if abs(cosine) > near:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    # unit vectors u = (1, 0), v = (cos, sin); the point (cos t angle, sin t angle) = p u + q v
    p, q = np.linalg.solve([[1, np.cos(angle)], [0, np.sin(angle)]], [np.cos(t * angle), np.sin(t * angle)])
    return p * a + q * b


def nuslerp(stack, weight, axis=None):
    """axis: None for the whole tensor as a vector, -1 for vectors along the last axis, 0 for those along the first."""
    total = weight[0] + weight[1]
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    a, b = (np.asarray(x, dtype=np.float64) for x in stack)
    near = np.sqrt(1 - 1e-12)
    if axis is None or a.ndim < 2:
        return slerp(a, b, t, near)
    a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    out = np.empty_like(a)
    for place in np.ndindex(a.shape[:-1]):
        out[place] = slerp(a[place], b[place], t, near)
    return np.moveaxis(out, -1, axis)


def multislerp(stack, weight, normalize_weights=True, eps=1e-8):
    """With the step in the tangent space that the method describes, and that comes to nothing."""
    vectors = flat(stack)
    if len(vectors) == 1:
        return np.asarray(stack[0], dtype=np.float64)
    w = np.asarray(weight, dtype=np.float64)
    w = w / w.sum() if normalize_weights else w
    lengths = np.sqrt((vectors**2).sum(1))
    units = vectors / (lengths + eps)[:, None]
    mean = (w[:, None] * units).sum(0)
    size = np.sqrt((mean**2).sum())
    if size < 1e-7:
        return (w[:, None] * vectors).sum(0).reshape(np.shape(stack)[1:])
    mean = mean / size
    tangent = sum(w_i * (u - (u @ mean) * mean) for w_i, u in zip(w, units, strict=True))
    angle = np.sqrt((tangent**2).sum()) + eps
    point = np.cos(angle) * mean + np.sin(angle) / angle * tangent
    return ((w * lengths).sum() * point).reshape(np.shape(stack)[1:])


def karcher(stack, steps=200):
    """By small steps until it stands still, with vectors as they are."""
    vectors = flat(stack)
    lengths = np.sqrt((vectors**2).sum(1))
    units = [v / n for v, n in zip(vectors, lengths, strict=True) if n > 0]
    mean = sum(units) / len(units)
    mean = mean / np.sqrt(mean @ mean)
    for _ in range(steps):
        step = np.zeros_like(mean)
        for u in units:
            angle = np.arccos(np.clip(u @ mean, -1, 1))
            across = u - (u @ mean) * mean
            size = np.sqrt(across @ across)
            if size > 1e-12:
                step += angle * across / size / len(units)
        mean = mean + 0.5 * step
        mean = mean / np.sqrt(mean @ mean)
    return (lengths.mean() * mean).reshape(np.shape(stack)[1:])


def model_stock(deltas):
    vectors = flat(deltas)
    k = len(vectors)
    cosines = []
    for i in range(k):
        for j in range(i):
            sizes = np.sqrt((vectors[i] ** 2).sum() * (vectors[j] ** 2).sum())
            cosines.append(vectors[i] @ vectors[j] / sizes if sizes else 0.0)
    cosine = sum(cosines) / len(cosines)
    if abs(1 + (k - 1) * cosine) < 1e-6:
        return np.zeros(np.shape(deltas)[1:])
    return k * cosine / (1 + (k - 1) * cosine) * np.mean(np.asarray(deltas, dtype=np.float64), axis=0)


# What is kept of a delta, as a list of its flat places.


def by_size(delta):
    """Places by magnitude, largest first; of equal ones the first first."""
    sizes = np.abs(np.asarray(delta).ravel())
    return sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))


def magnitude(delta, density):
    n = np.size(delta)
    if density >= 1:
        return list(range(n))
    return by_size(delta)[: max(1, int(density * n))] if density > 0 else []


def outliers(delta, density, gamma):
    n = np.size(delta)
    if density >= 1:
        return list(range(n))
    target, top = int(density * n), int(gamma * n)
    while top + target > n:
        top -= 1
    return by_size(delta)[top : top + target]


def random(delta, density, drawn):
    return [place for place in range(np.size(delta)) if density >= 1 or drawn[place] < density]


def ranked(delta, density, epsilon, drawn):
    array = np.asarray(delta)
    if density >= 1 or density <= 0:
        return list(range(array.size)) if density >= 1 else []
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    m, kept = rows.shape[1], []
    for i, row in enumerate(rows):
        for rank, place in enumerate(reversed(by_size(row))):
            chance = density if m == 1 else density - epsilon + 2 * epsilon * rank / (m - 1)
            if drawn[i * m + place] < chance:
                kept.append(i * m + place)
    return kept


def sparse_sum(deltas, kept, weight, *, elect=False, normalize=False, rescale=False, lambda_=1.0):
    """kept: a list of places a model."""
    terms = []
    for x, places, w in zip(flat(deltas), kept, weight, strict=True):
        part = np.zeros_like(x)
        part[places] = x[places]
        before, after = np.abs(x).sum(), np.abs(part).sum()
        factor = before / after if rescale and len(places) < len(x) and before >= 1e-7 and after >= 1e-7 else 1.0
        terms.append(w * factor * part)
    out = np.zeros(len(terms[0]))
    for place in range(len(out)):
        entries = [term[place] for term in terms]
        taking = list(range(len(entries)))
        if elect:
            sign = 1 if sum(entries) >= 0 else -1
            taking = [i for i in taking if np.sign(entries[i]) == sign]
        divisor = sum(weight[i] for i in taking)
        if divisor == 0 or (not elect and abs(divisor) < 1e-8):
            divisor = 1
        out[place] = sum(entries[i] for i in taking) / (divisor if normalize else 1) * lambda_
    return out.reshape(np.shape(deltas)[1:])


# Entry by entry.


def nearswap(delta, t):
    out = np.array(delta, dtype=np.float64)
    for place in np.ndindex(out.shape):
        out[place] *= min(1.0, t / max(abs(out[place]), 1e-6))
    return out


def arcee_fusion(base, other):
    base, other = np.asarray(base, dtype=np.float64), np.asarray(other, dtype=np.float64)
    rows = base.shape[-1]
    importance = []
    for b, o in zip(base.reshape(-1, rows), other.reshape(-1, rows), strict=True):
        p = np.exp(o - o.max()) / np.exp(o - o.max()).sum() + 1e-8
        q = np.exp(b - b.max()) / np.exp(b - b.max()).sum() + 1e-8
        importance.append(np.abs(o - b) * (p * np.log(p / q)).sum())
    importance = np.concatenate(importance)
    ordered = np.sort(importance)
    low, middle, high = (ordered[int(np.floor(q * (len(ordered) - 1)))] for q in (0.25, 0.5, 0.75))
    mark = importance >= middle + 1.5 * (high - low)
    return np.where(mark.reshape(base.shape), other, base)


def sce(deltas, select_topk=1.0):
    vectors = flat(deltas).copy()
    if select_topk < 1:
        variance = vectors.var(axis=0)
        vectors[:, by_size(variance)[int(select_topk * np.count_nonzero(variance)) :]] = 0
    energy = [(v**2).mean() for v in vectors]
    share = [e / sum(energy) if sum(energy) > 0 else 1 / len(energy) for e in energy]
    out = np.zeros(vectors.shape[1])
    for place in range(len(out)):
        column = vectors[:, place]
        sign = 1 if column.sum() >= 0 else -1
        taking = [i for i in range(len(column)) if np.sign(column[i]) == sign]
        if sum(share[i] for i in taking) > 0:
            out[place] = sum(share[i] * column[i] for i in taking) / sum(share[i] for i in taking)
    return out.reshape(np.shape(deltas)[1:])


def ram(deltas, epsilon=1e-5, r=0.0, alpha=0.0):
    """r = 0: RAM; else RAM+."""
    vectors = flat(deltas)
    changed = np.abs(vectors) > epsilon
    number = changed.sum(axis=0)
    factors = []
    for mine in changed:
        own, shared = (mine & (number == 1)).sum(), (mine & (number > 1)).sum()
        factors.append(1 + r * min(shared / own if own else np.inf, alpha) if r else 1.0)
    out = np.zeros(vectors.shape[1])
    for place in range(len(out)):
        who = np.flatnonzero(changed[:, place])
        if len(who) == 1:
            out[place] = factors[who[0]] * vectors[who[0], place]
        elif len(who) > 1:
            out[place] = vectors[who, place].mean()
    return out.reshape(np.shape(deltas)[1:])
