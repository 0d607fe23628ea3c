"""The engines by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from asterism.serve.engine import Engine

if TYPE_CHECKING:
    from asterism.constellation.index import Constellation
    from asterism.models.library import Library


def engine_of(name: Literal["local", "vllm"], library: Library, constellation: Constellation, settings: Any) -> Engine:
    """An engine, not started; `settings` are its own. UnsupportedError for one that is not installed."""
    if name == "local":
        from asterism.serve.local.engine import LocalEngine

        return LocalEngine(library, constellation, settings)
    from asterism.serve.vllm.engine import VllmEngine

    return VllmEngine(library, constellation, settings)
