"""The paper's earlier index, kept for the contrast: centroids of the specialists' own activations (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from asterism.constellation.fingerprints import fingerprints
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError
from asterism.core.progress import track
from asterism.models.library import Library


def specialist_space(library: Library, probes: Mapping[str, Sequence[str]], settings: IndexSettings | None = None) -> Tensor:
    """[N, d] float32: row i is the mean fingerprint, in specialist i, of its own domain's probes. Rows follow `library.names`.

    Settings give layer and max_length. Raises DataError for a specialist without probes.
    """
    settings = settings or IndexSettings()
    rows = []
    for name in track(library.names, "specialists"):
        if not probes.get(name):
            raise DataError("A specialist has no probes.", met=name, mend=f"give texts of the domain {name!r}")
        own = fingerprints(library.model(name), library.tokenizer, probes[name], layer=settings.layer, max_length=settings.max_length)
        rows.append(own.double().mean(dim=0).float())
    return torch.stack(rows)


def cosine_coefficients(queries: Tensor, centroids: Tensor) -> Tensor:
    """Cosine of generalist fingerprints [..., d] with specialist-space centroids [N, d] -> [..., N]: that index's correlation scores."""
    return normalize(queries, dim=-1) @ normalize(centroids, dim=-1).mT
