"""Settings of the evaluation; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from asterism.core.settings import Settings

Protocol = Literal["whole", "continuation"]


class EvaluationSettings(Settings):
    """Which probes are scored, how, and by which protocols (paper section 4.2)."""

    protocols: tuple[Protocol, ...] = ("whole", "continuation")
    """`whole`: weights from the very text that is scored (the paper). `continuation`: weights from the first half, loss on the second."""
    single_per_domain: int = Field(default=40, ge=1)
    """Held-out probes drawn of each domain; fewer are used where fewer lie there."""
    cross_per_pair: int = Field(default=25, ge=1)
    """Cross-domain probes drawn of each pair; fewer are used where fewer lie there."""
    max_length: int = Field(default=256, ge=4)
    """Tokens read of each probe; longer probes are cut there."""
    top_k: int = Field(default=3, ge=1)
    """Specialists in a mixture; all of them where the library has fewer."""
    paper_layers: int = Field(default=4, ge=1)
    """Blocks that the `paper` candidate composes; all of them where the model has fewer."""
    task_arithmetic: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    """Scales of the task-arithmetic baseline (the paper's are 0.3, 0.5, 1.0); `task_arithmetic` in the tables is the best by mean loss."""
    ensembles: bool = True
    """Also score the two logit ensembles (N forward passes a probe, N times the logits in memory)."""
    refine: int = Field(default=0, ge=0)
    """Gradient steps of the candidate `refined`; 0 leaves it out (a step costs about three forward passes a probe)."""
    execution: Literal["auto", "mixed", "materialised"] = "auto"
    """How compositions run: many mixtures in one batch, one built model a probe, or the cheaper by the cost model."""
    max_tokens: int = Field(default=1024, ge=1)
    """Padded tokens a batch, at most: what stays in a processor's cache; an accelerator wants more."""
    scale: str = "library"
    """Label of this library's scale in the tables."""
    example: str = ""
    """A query whose mixture is kept for the report's picture; the first cross-domain probe where none is given."""
    seed: int = Field(default=42, ge=0)
    """Seed of the probe sample, of random mixtures and of bootstrap intervals."""

    @field_validator("protocols", "task_arithmetic")
    @classmethod
    def _not_empty(cls, value: tuple) -> tuple:
        if not value or len(set(value)) != len(value):
            raise ValueError("give one or more different values")
        return value


class AnswerSettings(Settings):
    """How examples are answered and marked."""

    write: bool = True
    """Whether answers are written and marked; without, the losses of the responses alone are measured."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer, at most."""
    stop: str = "\n"
    """An answer ends before this text, or at its end token; empty for the end token alone."""
    max_length: int = Field(default=1024, ge=4)
    """Tokens read of an example: a longer one loses the beginning of its prompt."""
    max_tokens: int = Field(default=2048, ge=1)
    """Padded tokens a batch, at most."""
    chat: bool = True
    """Whether the tokenizer's chat template is used, where it has one."""
    scale: str = "answers"
    """Label of these models' scale in the tables."""
    seed: int = Field(default=42, ge=0)
    """Seed that the models were made with: a label in the tables."""
