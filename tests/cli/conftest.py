"""A tiny library with texts and an index, and the command line run inside the test's own process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from asterism.cli.app import main
from tests import tiny


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict:
        """The one JSON object on stdout."""
        return json.loads(self.out)


def write_texts(folder: Path) -> Path:
    """The tiny texts as a data folder: train files, held-out files and cross-domain files."""
    folder.mkdir(parents=True)
    for domain, texts in tiny.tiny_probes().items():
        _write(folder / f"{domain}.train.jsonl", [{"text": text} for text in texts])
    for domain in tiny.DOMAINS:
        _write(folder / f"{domain}.heldout.jsonl", [{"id": p.id, "text": p.text} for p in tiny.tiny_singles() if p.domains == (domain,)])
    for pair in {probe.domains for probe in tiny.tiny_cross()}:
        rows = [{"id": p.id, "text": p.text, "domains": list(p.domains)} for p in tiny.tiny_cross() if p.domains == pair]
        _write(folder / f"cross.{'-'.join(pair)}.jsonl", rows)
    return folder


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(scope="session")
def original(tmp_path_factory, data) -> Path:
    """A library with an index, never to be changed."""
    root = tmp_path_factory.mktemp("original") / "library"
    tiny.tiny_library(root)
    with pytest.raises(SystemExit) as ended:
        main(["index", str(root), "--data", str(data), "--device", "cpu", "--quiet", "--json"])
    assert ended.value.code == 0
    return root


@pytest.fixture
def library(original, tmp_path) -> Path:
    """A copy of the library, free to be changed."""
    return Path(shutil.copytree(original, tmp_path / "library"))


@pytest.fixture
def asterism(capsys) -> Callable[..., Ran]:
    """Run a command: `asterism("index", library, "--data", data)`."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return Ran(int(ended.value.code or 0), told.out, told.err)

    return run
