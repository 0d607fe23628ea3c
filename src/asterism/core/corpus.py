"""Text on disk: JSON lines, plain or gzip, as loose rows, a folder of domains, or probes with their domains.

A row holds its `text`, or a `prompt` and a `response`: one text, the response below the prompt.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asterism.core.errors import DataError, UnknownName

GENERAL = "general"
"""The one domain name that has no specialist: the generalist's own text."""

_FILE = re.compile(r"^(?:(?P<domain>[^.]+)\.(?P<split>train|heldout)|cross\.(?P<pair>[^.]+)(?:\.[^.]+)?)\.jsonl(?:\.gz)?$")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Probe:
    """A text with its domain (one) or domains (a cross-domain probe has two)."""

    id: str
    text: str
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError("A probe's text is empty.", met=f"probe {self.id!r}", mend="remove it or give it text")
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise DataError(
                "A probe names one domain or several different ones.", met=f"{self.id!r}: {list(self.domains)}", mend="e.g. [medical]"
            )

    @property
    def is_cross(self) -> bool:
        """Whether more than one domain is needed."""
        return len(self.domains) > 1

    @property
    def group(self) -> str:
        """`medical`, or `medical-legal` for a cross-domain probe."""
        return "-".join(self.domains)


@dataclass(frozen=True)
class Corpus:
    """The texts of a folder: training texts and held-out probes by domain, and cross-domain probes."""

    train: dict[str, list[str]] = field(default_factory=dict)
    heldout: dict[str, list[Probe]] = field(default_factory=dict)
    cross: list[Probe] = field(default_factory=list)

    @property
    def domains(self) -> tuple[str, ...]:
        """Every single domain met, `general` left out, in order of the files' names."""
        return tuple(name for name in dict.fromkeys([*self.train, *self.heldout]) if name != GENERAL)

    def only(self, domains: Iterable[str]) -> Corpus:
        """The texts and probes of these domains and of `general` alone, e.g. for a library that has fewer specialists than the folder."""
        wanted = {*domains, GENERAL}
        return Corpus(
            {name: texts for name, texts in self.train.items() if name in wanted},
            {name: probes for name, probes in self.heldout.items() if name in wanted},
            [probe for probe in self.cross if wanted.issuperset(probe.domains)],
        )


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, plain or gzip; DataError names file and line."""
    return (row for _, row in placed_rows(Path(path)))


def read_texts(path: str | Path) -> list[str]:
    """The text of every row of a file."""
    return [_text(row, where) for where, row in placed_rows(Path(path))]


def read_probes(path: str | Path) -> list[Probe]:
    """The probes of one file of rows with text and `domains` (or `domain`); `id` is optional."""
    return [_probe(row, where, str(number)) for number, (where, row) in enumerate(placed_rows(Path(path)), 1)]


def read_corpus(*places: str | Path) -> Corpus:
    """Read folders of `<domain>.train`, `<domain>.heldout` and `cross.<a>-<b>` files (`.jsonl`, `.jsonl.gz`), or probe files.

    Several folders are read as one; a domain's rows may lie in more than one of them.
    """
    corpus = Corpus()
    for place in map(Path, places):
        if is_corpus_file(place):
            _take_file(corpus, place)
        elif place.is_file():
            _take_probes(corpus, read_probes(place))
        elif place.is_dir():
            for path in sorted(place.iterdir()):
                _take_file(corpus, path)
        else:
            raise DataError("No text there.", met=place, mend="name a folder of <domain>.train.jsonl files, or a file of probes")
    if not (corpus.train or corpus.heldout or corpus.cross):
        names = "<domain>.train.jsonl, <domain>.heldout.jsonl, cross.<a>-<b>.jsonl (or .gz)"
        raise DataError("No text was found.", met=", ".join(map(str, places)), mend=f"the folder holds files named {names}")
    return corpus


def is_corpus_file(path: Path) -> bool:
    """Whether it is a file whose name tells whose texts it holds."""
    return path.is_file() and _FILE.match(path.name) is not None


def check_domains(probes: Iterable[Probe], known: Sequence[str]) -> None:
    """UnknownName when a probe names a domain that is neither known nor `general`."""
    for probe in probes:
        for name in probe.domains:
            if name not in known and name != GENERAL:
                raise UnknownName(f"domain (probe {probe.id!r})", name, known)


def placed_rows(path: Path, form: str = '{"text": ...}') -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line that is not blank; `form` is the object that a broken line's error asks for."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield where, _row(line, where, form)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("A text file cannot be read.", met=f"{path}: {error}", mend="give JSON lines, plain or gzip") from None


def check_unicode(text: str, where: str) -> None:
    """DataError for a lone surrogate, which no tokenizer can read."""
    if _SURROGATE.search(text):
        raise DataError("A text is not valid Unicode.", met=where, mend="remove its lone surrogate (\\ud800-\\udfff)")


def _take_file(corpus: Corpus, path: Path) -> None:
    named = _FILE.match(path.name)
    if not named:
        return
    if named["pair"]:
        pair = named["pair"].split("-")
        rows = enumerate(placed_rows(path), 1)
        corpus.cross.extend(_probe(row, where, f"{named['pair']}-{n}", pair if len(pair) == 2 else None) for n, (where, row) in rows)
    elif named["split"] == "train":
        corpus.train.setdefault(named["domain"], []).extend(read_texts(path))
    else:
        domain = named["domain"]
        rows = enumerate(placed_rows(path), 1)
        probes = [Probe(str(row.get("id", f"{domain}-{n}")), _text(row, where), (domain,)) for n, (where, row) in rows]
        corpus.heldout.setdefault(domain, []).extend(probes)


def _probe(row: dict[str, Any], where: str, name: str, otherwise: list[str] | None = None) -> Probe:
    """The probe of a row; `name` and `otherwise` stand in for an absent id and absent domains."""
    domains = row.get("domains", row.get("domain", otherwise))
    if isinstance(domains, str):
        domains = [domains]
    if not isinstance(domains, list) or not domains or not all(isinstance(domain, str) and domain for domain in domains):
        raise DataError("A probe's domains are missing.", met=where, mend='add "domains": ["medical"] to the row')
    return Probe(str(row.get("id", name)), _text(row, where), tuple(domains))


def _take_probes(corpus: Corpus, probes: list[Probe]) -> None:
    for probe in probes:
        if probe.is_cross:
            corpus.cross.append(probe)
        else:
            corpus.heldout.setdefault(probe.domains[0], []).append(probe)


def _row(line: bytes, where: str, form: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise DataError("A line is not UTF-8.", met=f"{where}, byte {error.start}", mend="convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError("A line is not JSON.", met=f"{where}: {error.msg}", mend=f"write one {form} object a line") from None
    if not isinstance(row, dict):
        raise DataError("A line is not an object.", met=where, mend=f"write one {form} object a line")
    return row


def _text(row: dict[str, Any], where: str) -> str:
    parts = [row.get(name) for name in (("text",) if "text" in row else ("prompt", "response"))]
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise DataError("A row has no text.", met=where, mend='give it a non-empty "text", or "prompt" and "response"')
    text = "\n".join(map(str, parts))
    check_unicode(text, where)
    return text
