"""A tiny library with its index, a scripted engine that explains as the real one does, and a server with the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from asterism.constellation.explanation import explain
from asterism.constellation.index import Constellation
from asterism.models.library import Library
from asterism.serve.served import Served
from tests import tiny
from tests.serve.scripted import Scripted


@dataclass
class Explaining(Scripted):
    """The scripted engine, with true explanations."""

    constellation: Constellation | None = None

    async def explain(self, text, settings) -> dict[str, Any]:
        await super().explain(text, settings)
        assert self.constellation is not None
        return explain(self.constellation.library, self.constellation, text, settings)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Library:
    """With its index, never to be changed."""
    found = tiny.tiny_library(tmp_path_factory.mktemp("playground") / "tiny", "qwen2", kind="mlp")
    Constellation.build(found, tiny.tiny_probes()).save()
    return found


@pytest.fixture(scope="session")
def built(library) -> Constellation:
    return Constellation.load(library.root / "constellation", library)


@pytest.fixture(scope="session")
def served(library, built) -> Served:
    return Served.of(library, built)


@pytest.fixture(scope="session")
def explaining(served, built) -> Callable[..., Explaining]:
    """`explaining(text)`: an engine that answers with this text; `endless`: again and again."""

    def make(text: str, **switches: Any) -> Explaining:
        end = [] if switches.get("endless") else [served.tokenizer.eos_token_id]
        tokens = [*served.tokenizer(text, add_special_tokens=False)["input_ids"], *end]
        return Explaining(lambda job: tokens, constellation=built, **switches)

    return make
