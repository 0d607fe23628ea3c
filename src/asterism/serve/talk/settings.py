"""Settings of a conversation; importing them loads no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asterism.compose.settings import RENEW
from asterism.core.settings import Settings


class TalkSettings(Settings):
    """How a conversation is answered."""

    top_k: int | None = Field(default=None, ge=1)
    """Specialists kept; 3 by default, or as many as there are."""
    mode: Literal["evidence", "fast", "nodes"] = "evidence"
    """What weighs them: how well each predicts the conversation, the fingerprint alone, or activations node by node."""
    layers: int | Literal["all"] = "all"
    """The last so many blocks are composed, or all."""
    renew: int = Field(default=RENEW, ge=0)
    """New tokens after which the mixture is made again; 0: never."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest token every time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    system: str | None = None
    """What stands before the conversation."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's: a file, or the name of a known format such as chatml."""
