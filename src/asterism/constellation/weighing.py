"""From coefficients to mixtures: whom a query asks, and at which nodes (Eq. 6-8). Pure: activations come from the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.storage import digest_of
from asterism.core.weights import joint, node_weights, top_k, two_stage


class Signature(NamedTuple):
    """One specialist's activation magnitudes on m texts (Eq. 6)."""

    nodes: Tensor
    """[m, d] at the final hidden state."""
    modules: Mapping[str, Tensor]
    """Module path -> [m, out] at that module's own output; empty unless weights per module are asked for."""


Source = Callable[[str, Sequence[int]], Signature]
"""(specialist, rows of the texts that chose it) -> its signature on those texts."""


def tabled(table: Mapping[str, Tensor]) -> Source:
    """A source that reads signatures already known for all texts: {specialist: [n, d]}."""

    def source(name: str, rows: Sequence[int]) -> Signature:
        if name not in table:
            raise UnknownName("specialist among the signatures", name, table)
        return Signature(table[name][list(rows)], {})

    return source


def mixtures_of(
    names: Sequence[str],
    coefficients: Tensor,
    source: Source,
    settings: MixtureSettings,
    index: IndexSettings | None = None,
    texts: Sequence[str] | None = None,
) -> list[Mixture]:
    """One mixture a row of `coefficients` [n, N], whose columns are `names` (section 3.3, 3.4).

    Each specialist is asked once, for all rows that chose it. When every kept coefficient of a row is zero or negative, Eq. 7
    leaves nothing and the row's weights are uniform. `index` brings the ranking and noise on the weights, which is drawn from its seed and
    the row's text, so that it needs `texts` and does not depend on which texts come together.
    Raises SettingsError when top_k exceeds N, or when the settings ask for what the source or the caller does not give.
    """
    chosen = top_k(coefficients, settings.top_k, signed=index is not None and index.ranking == "signed")  # [n, K]
    kept = coefficients.gather(-1, chosen)  # [n, K]
    nodes, modules = _asked(names, chosen, source, settings.per_module)
    weights = node_weights(kept, nodes, settings.normalisation)  # [n, K, d]
    by_module = {path: node_weights(kept, signature, settings.normalisation) for path, signature in modules.items()}
    made = []
    for row, places in enumerate(chosen.tolist()):
        own, own_modules = weights[row], {path: value[row] for path, value in by_module.items()}
        if index is not None and index.noise_site == "weights" and index.noise:
            draw = seeded(index, texts, row)
            own = noisy_weights(own, index.noise, draw, settings)
            own_modules = {path: noisy_weights(own_modules[path], index.noise, draw, settings) for path in sorted(own_modules)}
        made.append(Mixture(tuple(names[int(place)] for place in places), own, kept[row], own_modules))
    return made


def noisy_weights(weights: Tensor, fraction: float, draw: torch.Generator, settings: MixtureSettings) -> Tensor:
    """Weights [K, d] plus N(0, s^2), s = fraction x mean weight, clamped at zero and normalised again (the paper's summary page)."""
    drawn = torch.randn(weights.shape, generator=draw, dtype=weights.dtype)
    raw = (weights + fraction * weights.mean() * drawn).clamp_min(0)
    return two_stage(raw) if settings.normalisation == "two_stage" else joint(raw)


def _asked(names: Sequence[str], chosen: Tensor, source: Source, per_module: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Signatures of the chosen [n, K]: at the nodes [n, K, d], and module path -> [n, K, out]."""
    n, k = chosen.shape
    nodes: Tensor | None = None
    modules: dict[str, Tensor] = {}
    for place in map(int, chosen.unique()):
        rows, slots = (chosen == place).nonzero(as_tuple=True)
        answer = source(names[place], rows.tolist())
        if nodes is None:
            nodes = answer.nodes.new_empty(n, k, answer.nodes.shape[-1])
        nodes[rows, slots] = answer.nodes
        if per_module and not answer.modules:
            met = "signatures of the final hidden state alone"
            raise SettingsError("Weights per module need a signature at every module.", met=met, mend="per_module: false")
        for path, values in answer.modules.items() if per_module else ():
            modules.setdefault(path, values.new_empty(n, k, values.shape[-1]))[rows, slots] = values
    if nodes is None:
        raise DataError("A mixture needs a text.", met="no fingerprints", mend="give at least one")
    return nodes, modules


def seeded(index: IndexSettings, texts: Sequence[str] | None, row: int) -> torch.Generator:
    """The generator of one text's noise: drawn from the index's seed and the text itself, whatever it comes together with."""
    if texts is None:
        raise SettingsError("Noise on the weights is drawn from each text.", met="no texts", mend="give texts=..., or noise_site: none")
    return torch.Generator().manual_seed(int(digest_of(index.seed, texts[row])[:15], 16))
