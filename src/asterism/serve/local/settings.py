"""Settings of the local engine; importing them loads no model library."""

from __future__ import annotations

from pydantic import Field

from asterism.serve.local.policy import ExecutionSettings


class LocalSettings(ExecutionSettings):
    """How the local engine schedules and runs answers."""

    slots: int = Field(default=32, ge=1)
    """Answers that run at one time; the others wait for a place."""
    chunk: int = Field(default=256, ge=1)
    """Tokens of prompts that are read between two steps of the running answers, so that a long prompt does not hold them up."""
    trunks_gb: float = Field(default=0.5, ge=0)
    """Memory for the states of prompts that were read to choose their mixture, in GB: what a composition leaves as it is in the
    generalist is not computed again for the answer."""
