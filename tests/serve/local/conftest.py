"""The library with one specialist of each kind, as the tests of composition have it."""

from __future__ import annotations

from tests.compose.conftest import kinds  # noqa: F401
