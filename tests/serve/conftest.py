"""A tiny library as the API sees it, and a scripted engine that answers with a text."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from asterism.models.library import Library
from asterism.serve.served import Served
from tests import tiny
from tests.serve.scripted import Scripted

TEXT = " the patient was given café and bread."


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Library:
    """A tiny library on disk, never to be changed."""
    return tiny.tiny_library(tmp_path_factory.mktemp("serve") / "tiny", "qwen2", kind="mlp")


@pytest.fixture(scope="session")
def served(library) -> Served:
    return Served.of(library, SimpleNamespace(settings=SimpleNamespace(max_length=256)))  # type: ignore[arg-type]


@pytest.fixture
def scripted(served) -> Callable[..., Scripted]:
    """`scripted(text)`: an engine that answers with this text and the end token."""

    def make(text: str = TEXT, **switches: Any) -> Scripted:
        tokens = [*served.tokenizer(text, add_special_tokens=False)["input_ids"], served.tokenizer.eos_token_id]
        return Scripted(lambda job: tokens, **switches)

    return make
