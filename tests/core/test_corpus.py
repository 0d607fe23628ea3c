"""Text on disk: every format read, every bad file told by file and line."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.corpus import Probe, check_domains, read_corpus, read_probes, read_rows, read_texts
from asterism.core.errors import DataError, UnknownName


def lines(path, *rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def told(call, *args):
    with pytest.raises((DataError, UnknownName)) as caught:
        call(*args)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    lines(tmp_path / "medical.train.jsonl", {"text": "m1"}, {"text": "m2"})
    lines(tmp_path / "legal.train.jsonl.gz", {"text": "l1"})
    lines(tmp_path / "general.train.jsonl.gz", {"text": "g1"})
    lines(tmp_path / "medical.heldout.jsonl.gz", {"id": "m-9", "text": "m3"}, {"text": "m4"})
    lines(tmp_path / "general.heldout.jsonl", {"text": "g2"})
    lines(tmp_path / "cross.medical-legal.jsonl", {"id": "x", "text": "ml1", "domains": ["medical", "legal"]}, {"text": "ml2"})
    lines(tmp_path / "instruct.mbpp.train.jsonl", {"prompt": "p"})  # of another kind: passed over
    (tmp_path / "README.md").write_text("not text to read")
    (tmp_path / "uie").mkdir()
    return tmp_path


def test_a_folder_of_domains(folder):
    corpus = read_corpus(folder)
    assert corpus.train == {"general": ["g1"], "legal": ["l1"], "medical": ["m1", "m2"]}
    assert corpus.domains == ("legal", "medical")
    assert corpus.heldout == {
        "medical": [Probe("m-9", "m3", ("medical",)), Probe("medical-2", "m4", ("medical",))],
        "general": [Probe("general-1", "g2", ("general",))],
    }
    assert corpus.cross == [Probe("x", "ml1", ("medical", "legal")), Probe("medical-legal-2", "ml2", ("medical", "legal"))]


def test_a_prompt_and_its_response_are_one_text(tmp_path):
    file = lines(tmp_path / "instruct.jsonl.gz", {"prompt": "Two and two?", "response": "4"}, {"text": "plain", "prompt": "not read"})
    assert read_texts(file) == ["Two and two?\n4", "plain"]
    assert 'or "prompt" and "response"' in told(read_texts, lines(tmp_path / "half.jsonl", {"prompt": "Two and two?"}))


def test_several_places_are_read_as_one(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    lines(other / "medical.train.jsonl", {"text": "m5"})
    lines(other / "code.train.jsonl", {"text": "c1"})
    probes = lines(other / "mine.jsonl", {"text": "p1", "domain": "legal"}, {"text": "p2", "domains": ["code", "legal"], "id": 7})
    corpus = read_corpus(folder, other, probes)
    assert corpus.train["medical"] == ["m1", "m2", "m5"]
    assert corpus.domains == ("legal", "medical", "code")
    assert corpus.heldout["legal"] == [Probe("1", "p1", ("legal",))]
    assert corpus.cross[-1] == Probe("7", "p2", ("code", "legal"))
    assert corpus.cross[-1].is_cross
    assert corpus.cross[-1].group == "code-legal"


def test_one_file_of_a_folder_is_read_by_its_name(folder):
    assert read_corpus(folder / "medical.train.jsonl").train == {"medical": ["m1", "m2"]}
    assert list(read_corpus(folder / "medical.heldout.jsonl.gz").heldout) == ["medical"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=8), st.booleans())
def test_any_unicode_survives_plain_and_packed(tmp_path_factory, texts, packed):
    path = tmp_path_factory.mktemp("texts") / ("t.jsonl.gz" if packed else "t.jsonl")
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_texts(path) == texts


def test_packing_is_seen_by_content_and_blank_lines_do_not_count(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a"}\n\n   \n{"text": "b"}'))  # a byte order mark, no last newline
    assert read_texts(path) == ["a", "b"]
    assert list(read_rows(path)) == [{"text": "a"}, {"text": "b"}]


ROW = 'write one {"text": ...} object a line'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', "A line is not UTF-8.\n  met:  {path}:3, byte 10\n  mend: convert the file to UTF-8"),
        (b'{"text": "a"}\n{"text": \n', "A line is not JSON.\n  met:  {path}:2: Expecting value\n  mend: " + ROW),
        (b"plain words\n", "A line is not JSON.\n  met:  {path}:1: Expecting value\n  mend: " + ROW),
        (b'["a"]\n', "A line is not an object.\n  met:  {path}:1\n  mend: " + ROW),
        (
            b'\n{"text": "a"}\n\n{"text": "  "}\n',
            'A row has no text.\n  met:  {path}:4\n  mend: give it a non-empty "text", or "prompt" and "response"',
        ),
        (b'{"txt": "a"}\n', 'A row has no text.\n  met:  {path}:1\n  mend: give it a non-empty "text", or "prompt" and "response"'),
        (b'{"text": 3}\n', 'A row has no text.\n  met:  {path}:1\n  mend: give it a non-empty "text", or "prompt" and "response"'),
        (
            b'{"text": "a \\ud800"}\n',
            "A text is not valid Unicode.\n  met:  {path}:1\n  mend: remove its lone surrogate (\\ud800-\\udfff)",
        ),
    ],
)
def test_bad_lines_are_told_by_place(tmp_path, content, message):
    path = tmp_path / "medical.train.jsonl"
    for suffix, packed in (("", content), (".gz", gzip.compress(content))):
        path = tmp_path / f"medical.train.jsonl{suffix}"
        path.write_bytes(packed)
        assert told(read_texts, path) == message.replace("{path}", str(path))
        assert told(read_corpus, path) == message.replace("{path}", str(path))


def test_a_broken_gzip_file(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({"text": f"text {n} {n * n}"}) + "\n" for n in range(2000)).encode())
    broken = {
        "cut short": whole[:-100],
        "header alone": whole[:6],
        "bytes changed": whole[:300] + bytes(200) + whole[500:],
        "wrong sum": whole[:-8] + b"12345678",
    }
    for kind, content in broken.items():
        path.write_bytes(content)
        message = told(read_texts, path)
        assert message.startswith(f"A text file cannot be read.\n  met:  {path}: "), kind
        assert message.endswith("\n  mend: give JSON lines, plain or gzip")


def test_places_without_text(tmp_path):
    missing = tmp_path / "missing"
    assert told(read_corpus, missing).startswith(f"No text there.\n  met:  {missing}\n  mend: ")
    assert told(read_texts, missing).startswith(f"A text file cannot be read.\n  met:  {missing}: [Errno 2]")
    assert told(read_texts, tmp_path).startswith("A text file cannot be read.")
    (tmp_path / "notes.txt").write_text("words")
    assert told(read_corpus, tmp_path).startswith(
        f"No text was found.\n  met:  {tmp_path}\n  mend: the folder holds files named <domain>.train"
    )


def test_an_empty_file_has_no_texts(tmp_path):
    (tmp_path / "medical.train.jsonl").write_text("")
    assert read_texts(tmp_path / "medical.train.jsonl") == []
    assert read_corpus(tmp_path).train == {"medical": []}


@pytest.mark.parametrize("domains", [{}, {"domains": []}, {"domains": [3]}, {"domains": None}, {"domain": ""}, {"domains": ["a", ""]}])
def test_a_probe_without_domains(tmp_path, domains):
    path = lines(tmp_path / "p.jsonl", {"text": "a", "domain": "legal"}, {"text": "b", **domains})
    want = f'A probe\'s domains are missing.\n  met:  {path}:2\n  mend: add "domains": ["medical"] to the row'
    assert told(read_probes, path) == want


def test_domains_of_a_cross_file(tmp_path):
    path = lines(tmp_path / "cross.case-law-science.jsonl", {"text": "a", "domains": ["case-law", "science"]})
    assert read_corpus(path).cross[0].domains == ("case-law", "science")
    lines(path, {"text": "a"})  # three words: which two are the domains?
    assert told(read_corpus, path).startswith("A probe's domains are missing.")
    other = lines(tmp_path / "cross.legal-code.prose.jsonl", {"text": "a"}, {"text": "b", "domains": "legal"})
    assert [probe.domains for probe in read_corpus(other).cross] == [("legal", "code"), ("legal",)]


def test_probes_that_cannot_be():
    assert told(Probe, "p", " \n", ("legal",)) == "A probe's text is empty.\n  met:  probe 'p'\n  mend: remove it or give it text"
    for domains in ((), ("legal", "legal")):
        message = told(Probe, "p", "a", domains)
        assert message == f"A probe names one domain or several different ones.\n  met:  'p': {list(domains)}\n  mend: e.g. [medical]"


def test_unknown_domains_are_told_with_the_nearest():
    probes = [Probe("1", "a", ("general",)), Probe("2", "b", ("legal", "code")), Probe("3", "c", ("medcal",))]
    check_domains(probes[:2], ["legal", "code"])
    message = told(check_domains, probes, ["legal", "code", "medical"])
    assert message == "No such domain (probe '3').\n  met:  'medcal'\n  mend: did you mean 'medical'?"
