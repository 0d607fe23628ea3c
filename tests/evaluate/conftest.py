"""A library for tests that do not make their own."""

from __future__ import annotations

import pytest

from asterism.core.progress import quiet
from tests.tiny import tiny_library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    with quiet():
        return tiny_library(tmp_path_factory.mktemp("library"), "qwen2")
