"""Divide one domain's texts into sub-domains: tf-idf, its leading directions, spherical k-means; new texts go to the nearest centre.

The data's own sources do not serve: four in medicine and science, a hundred in law, file names in code. What the words say does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from asterism.core.errors import DataError

WORD = re.compile(r"[A-Za-z_]{3,}")
VOCABULARY = 4000
"""Words kept, by the number of texts that have them."""
COMMON, RARE = 0.3, 3
"""A word that more than this share of the texts, or fewer than this many texts, have tells nothing."""
DIRECTIONS = 24
"""Leading directions of the tf-idf matrix that the centres lie in."""
RESTARTS = 8
ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Split:
    """Sub-domains of one domain, largest first, and the model that tells them apart."""

    words: dict[str, int]
    """Word -> column."""
    rarity: np.ndarray
    """[w] inverse document frequency, ln((1 + n) / (1 + df)) + 1."""
    directions: np.ndarray
    """[w, r] leading right singular vectors."""
    centres: np.ndarray
    """[k, r] unit rows."""

    def nearest(self, texts: Sequence[str], among: Sequence[int] | None = None) -> np.ndarray:
        """[n] index of each text's nearest centre by cosine (`among` these alone); a text without a known word goes to the first."""
        allowed = np.arange(len(self.centres)) if among is None else np.array(among)
        points = _unit(_weighted(texts, self.words, self.rarity) @ self.directions)
        return allowed[(points @ self.centres[allowed].T).argmax(axis=1)]

    def terms(self, texts: Sequence[str], count: int = 6) -> list[list[str]]:
        """The words whose mean tf-idf in each sub-domain of `texts` most exceeds that in all of them."""
        weights, at, names = _weighted(texts, self.words, self.rarity), self.nearest(texts), np.array(list(self.words))
        overall = np.asarray(weights.mean(axis=0)).ravel()
        told = []
        for k in range(len(self.centres)):
            own = np.asarray(weights[at == k].mean(axis=0)).ravel() if (at == k).any() else overall
            told.append(names[(own - overall).argsort()[::-1][:count]].tolist())
        return told


def split(texts: Sequence[str], parts: int, seed: int = 0) -> Split:
    """Sub-domains of `texts`: the best of several k-means runs by total cosine. DataError when a part would be empty."""
    if parts < 1 or len(texts) < 2 * parts:
        raise DataError("Too few texts to divide.", met=f"{len(texts)} texts into {parts} parts", mend="give two texts a part, at least")
    counted = Counter(word for text in texts for word in set(_words(text)))
    known = [(word, n) for word, n in counted.most_common() if RARE <= n <= COMMON * len(texts)][:VOCABULARY]
    words = {word: column for column, (word, _) in enumerate(sorted(known))}
    if len(words) <= parts:
        raise DataError("The texts share too few words to be divided.", met=f"{len(words)} words", mend="give more text, or fewer parts")
    rarity = np.array([np.log((1 + len(texts)) / (1 + counted[word])) + 1 for word in words])
    weights, generator = _weighted(texts, words, rarity), np.random.default_rng(seed)
    most = min(len(texts), len(words))
    leading: Any = svds(weights, k=min(DIRECTIONS, most - 1), v0=np.ones(most), return_singular_vectors="vh")  # pyright: ignore
    directions = leading[2].T
    points = _unit(weights @ directions)
    tried = [_k_means(points, parts, generator) for _ in range(RESTARTS)]
    centres = max(tried, key=lambda centres: (points @ centres.T).max(axis=1).sum())
    sizes = np.bincount((points @ centres.T).argmax(axis=1), minlength=parts)
    if not sizes.all():
        raise DataError("A sub-domain has no text.", met=f"{parts} parts of {len(texts)} texts", mend="ask for fewer parts")
    return Split(words, rarity, directions, centres[(-sizes).argsort(kind="stable")])


def _k_means(points: np.ndarray, parts: int, generator: np.random.Generator) -> np.ndarray:
    """[parts, r] unit centres (Dhillon & Modha 2001), started far apart (k-means++); an emptied part restarts at the worst-placed point."""
    centres = points[[generator.integers(len(points))]]
    while len(centres) < parts:
        far = np.clip(1 - (points @ centres.T).max(axis=1), 0, None) + 1e-12
        centres = np.vstack([centres, points[generator.choice(len(points), p=far / far.sum())]])
    for _ in range(ROUNDS):
        cosines = points @ centres.T
        at, worst = cosines.argmax(axis=1), cosines.max(axis=1).argsort()
        sums = np.stack([points[at == k].sum(axis=0) if (at == k).any() else points[worst[k]] for k in range(parts)])
        moved = _unit(sums)
        if np.allclose(moved, centres, atol=1e-9):
            break
        centres = moved
    return centres


def _weighted(texts: Sequence[str], words: dict[str, int], rarity: np.ndarray) -> csr_matrix:
    """[n, w] tf-idf, tf = 1 + ln(count), rows of unit length (zero where no word is known)."""
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        found = {words[word]: n for word, n in Counter(_words(text)).items() if word in words}
        own = np.array([(1 + np.log(n)) * rarity[column] for column, n in found.items()])
        rows += [row] * len(found)
        columns += found
        values += (own / np.linalg.norm(own)).tolist() if found else []
    return csr_matrix((values, (rows, columns)), shape=(len(texts), len(words)))


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
