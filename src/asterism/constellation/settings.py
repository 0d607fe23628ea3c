"""Settings of the constellation layer; importing them loads no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from asterism.core.settings import Settings


class IndexSettings(Settings):
    """How fingerprints are taken and turned into a basis. The defaults are the best measured choice; `paper()` is the paper's."""

    orthogonalisation: Literal["gram_schmidt", "lowdin", "none"] = "lowdin"
    """How centroids become a basis: Eq. 3 in the order given, symmetrically (order-free), or only normalised."""
    centring: Literal["none", "general", "mean"] = "mean"
    """What is subtracted first: nothing, the general probes' mean fingerprint, or the mean of the centroids (nothing where there is
    one domain)."""
    ranking: Literal["signed", "absolute"] = "signed"
    """Whether the top K have the largest coefficients, or the largest absolute ones (section 3.3; negative ones get no weight)."""
    layer: int | Literal["final"] = "final"
    """Fingerprint layer: the final hidden state (after the last norm), or the output of a block counted from 0."""
    max_length: int = Field(default=256, ge=2)
    """Tokens read of each text; longer texts are cut there."""
    noise_site: Literal["none", "centroids", "direction", "weights"] = "none"
    """Where Gaussian noise is added: nowhere, on the centroids before orthogonalisation (section 7.4), there but along one random
    direction that all centroids share (a control of equal norm), or on the composition weights."""
    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise, as a fraction of the mean centroid norm (or of the mean weight)."""
    seed: int = Field(default=42, ge=0)
    """Seed of the noise."""
    domain_signatures: bool = False
    """Also keep each specialist's mean activation signature on its own probes, so that a query needs no specialist forward pass."""

    @classmethod
    def paper(cls, **values) -> IndexSettings:
        """The paper's settings: Gram-Schmidt in the order given, no centring, top K by absolute coefficient, final hidden state."""
        return cls(**{"orthogonalisation": "gram_schmidt", "centring": "none", "ranking": "absolute", **values})


class MixtureSettings(Settings):
    """How a query's coefficients become weights. The defaults are the best measured choice; `paper()` is the paper's."""

    top_k: int = Field(default=3, ge=1)
    """Specialists kept, by size of coefficient."""
    mode: Literal["evidence", "fast", "nodes"] = "evidence"
    """What weighs the specialists kept. `evidence`: how well each, and the generalist, predicts the query (one forward pass each),
    times the constellation's prior; `fast`: that prior alone, no specialist reads the query; `nodes`: a weight per node from
    coefficient and activation magnitude (Eq. 7)."""
    normalisation: Literal["two_stage", "joint"] = "two_stage"
    """Of mode `nodes`: per node over specialists (Eq. 8), or over all specialists and nodes at once (Eq. 10, the failing contrast)."""
    signature: Literal["query", "domain"] = "query"
    """Of mode `nodes`: whose activation magnitudes: the query's own in each chosen specialist (the paper), or the index's domain
    signatures."""
    per_module: bool = False
    """Of mode `nodes`: take a signature at every module's own output as well (needed by the node map `per_module`)."""

    @model_validator(mode="after")
    def _nodes_have_the_rest(self) -> MixtureSettings:
        if self.mode != "nodes" and (self.normalisation, self.signature, self.per_module) != ("two_stage", "query", False):
            raise ValueError("normalisation, signature and per_module are of mode: nodes")
        return self

    @classmethod
    def paper(cls, **values) -> MixtureSettings:
        """The paper's settings: weights per node from coefficient and activation magnitude."""
        return cls(**{"mode": "nodes", **values})


class SimilaritySettings(Settings):
    """How the layers of two models are compared (centred kernel alignment); `paper()` is compatible specialization's way."""

    site: Literal["mlp", "block"] = "mlp"
    """Whose output is compared: every block's MLP, or the block itself (the residual stream after it)."""
    layers: tuple[int, ...] | None = None
    """Blocks compared, counted from 0; all by default."""
    unit: Literal["token", "text"] = "token"
    """What one sample is: a position of a text, or the mean over a text's positions."""
    samples: int | None = Field(default=10_000, ge=4)
    """Samples drawn at random when the texts hold more; null in a settings file takes all."""
    estimator: Literal["debiased", "biased"] = "debiased"
    """Debiased is about 0 for unrelated features; biased (the paper's) is far above 0 unless samples outnumber features many times."""
    kernel: Literal["linear", "rbf"] = "linear"
    """Similarity of two samples: inner product, or a Gaussian of their distance."""
    bandwidth: float = Field(default=1.0, gt=0)
    """Of kernel `rbf`: its standard deviation, as a multiple of the median distance."""
    max_length: int = Field(default=256, ge=2)
    """Tokens read of each text; longer texts are cut there."""
    seed: int = Field(default=42, ge=0)
    """Seed of the draw of samples."""

    @classmethod
    def paper(cls, **values) -> SimilaritySettings:
        """The paper's settings (section 2.4): means over windows of 1024 tokens, biased, linear. Give it windows as texts."""
        return cls(**{"unit": "text", "samples": None, "estimator": "biased", "max_length": 1024, **values})
