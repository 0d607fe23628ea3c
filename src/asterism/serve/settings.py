"""Settings of the server; importing them loads neither the web stack nor a model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asterism.core.settings import Settings


class ServeSettings(Settings):
    """How the server listens, and what it lets in."""

    name: str | None = Field(default=None, min_length=1, max_length=100, pattern=r"^[^\s:@/]+$")
    """Name of the composed model in the API; the library's folder by default. No spaces, no : @ /."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for every network of this machine."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0 takes a free one and tells it."""
    engine: Literal["local", "vllm"] = "local"
    """What runs the models: `local` on transformers, `vllm` where vLLM is installed."""
    allow_changes: bool = False
    """Let requests add and remove specialists, and save compositions: they change the library on disk."""
    playground: bool = True
    """Show a page at / that asks in a browser."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's: a file, or the name of a known format such as chatml. A tokenizer without one gets the
    messages' texts, a blank line between them."""
    most_jobs: int = Field(default=256, ge=1)
    """Answers that may run or wait at one time; what comes beyond is told to come again later (429)."""
    most_answers: int = Field(default=128, ge=1)
    """Answers that one request may ask for: prompts times n."""
    body_bytes: int = Field(default=2_097_152, ge=1024)
    """Longest request body; a longer one is refused while it comes in (413)."""
    drain_s: float = Field(default=60.0, ge=0)
    """Seconds that answers under way have to finish once the server is told to stop."""
