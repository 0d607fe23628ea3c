"""Every example runs, on one tiny library made by the examples' own helper."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "small.py")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    sys.path.insert(0, str(EXAMPLES))
    import small

    yield small.make(tmp_path_factory.mktemp("examples") / "library")[0].root
    sys.path.remove(str(EXAMPLES))
    sys.modules.pop("small", None)


def test_there_is_an_example_of_each_capability():
    assert len(PROGRAMS) >= 5


@pytest.mark.parametrize("program", PROGRAMS)
def test_example(program, library, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, str(library)])
    runpy.run_path(str(EXAMPLES / program), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3
