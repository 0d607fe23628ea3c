"""How evidence and prior are weighed against each other: a few numbers, fitted on validation probes and kept with the index."""

from __future__ import annotations

from pydantic import Field

from asterism.core.settings import Settings


class Calibration(Settings):
    """Numbers of the modes `evidence` and `fast`. The defaults were chosen on validation probes of the experiments' ladder."""

    temperature: float = Field(default=0.2, gt=0)
    """Mode `evidence`: nats a token by which a candidate must predict the query better to weigh e times as much."""
    prior: float = Field(default=0.0, ge=0)
    """Mode `evidence`: log prior a standard unit of a candidate's coefficient, general text's being the generalist's."""
    generalist: float = 0.5
    """Mode `evidence`: log prior of the generalist beside a specialist's."""
    scale: float = Field(default=1.3, ge=0)
    """Mode `evidence`: factor on the mixed deltas."""
    fast_prior: float = Field(default=2.0, ge=0)
    """Mode `fast`: log prior a standard unit of a candidate's coefficient, general text's being the generalist's."""
    fast_generalist: float = 0.0
    """Mode `fast`: log prior of the generalist beside a specialist's."""
    fast_scale: float = Field(default=1.0, ge=0)
    """Mode `fast`: factor on the mixed deltas."""
    losses: dict[str, float] = Field(default_factory=dict)
    """Measured on the validation probes: mean loss in nats a token of each way to answer, after the fit."""
    probes: tuple[str, ...] = ()
    """Digests of the validation probes' texts: an evaluation refuses them."""
    specialists: dict[str, str] = Field(default_factory=dict)
    """Digests of the specialists that read them."""

    @property
    def fitted(self) -> bool:
        """Whether this comes from validation probes of its own library."""
        return bool(self.probes)
