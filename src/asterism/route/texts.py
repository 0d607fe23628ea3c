"""The texts of a router's task: those it learns from and those held out, and the record that keeps the two apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asterism.core.corpus import Corpus, read_corpus
from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.core.storage import digest_of, read_json, write_json
from asterism.models.batching import tokenise
from asterism.models.starts import training_texts
from asterism.models.types import PreTrainedTokenizerBase
from asterism.route.training import check_texts, split

RECORD = "texts.json"
LEAST = 3
"""Tokens of a text that is told by halves, see `route.scoring`."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskTexts:
    """Texts of one task."""

    train: list[str]
    held_out: list[str]


def task_texts(data: str | Path, domain: str | None = None, *, held_out: float = 0.1, seed: int = 42) -> TaskTexts:
    """What a router may learn from and what it is told by: of a file of rows, of a folder's domain, or of a dataset by its Hub id.

    A folder's domain has its held-out file. Where there is none, and of a pair `a-b`, whose texts are its cross-domain probes, a share
    `held_out` of the texts is drawn by `seed`; 0 holds nothing out. Raises DataError, SettingsError (a folder without a domain, or a
    domain without a folder), UnknownName for a domain that the folder has not.
    """
    if not Path(data).is_dir():
        return _parted(_rows(data, domain), held_out, seed)
    corpus = read_corpus(data)
    chosen = _chosen(corpus, domain, data)
    own = [probe.text for probe in corpus.heldout.get(chosen, ())]
    train = corpus.train.get(chosen) or _pair(corpus, chosen)
    if not train:
        raise DataError("The domain has no training texts.", met=f"{chosen} of {data}", mend=f"give {chosen}.train.jsonl, or a file")
    if not own:
        return _parted(train, held_out, seed)
    if both := set(own) & set(train):
        met, mend = f"{chosen}: {len(both)} of them, e.g. {min(both)[:60]!r}", "take them out of either file"
        raise DataError("Held-out texts are among the training texts.", met=met, mend=mend)
    return TaskTexts(train, own)


def heldout_texts(data: str | Path, domain: str | None = None) -> list[str]:
    """Texts to tell a router by: all of a file of rows or of a pair's cross-domain probes, or a folder's held-out texts of a domain.

    Raises as `task_texts`.
    """
    if not Path(data).is_dir():
        return _rows(data, domain)
    corpus = read_corpus(data)
    chosen = _chosen(corpus, domain, data)
    found = [probe.text for probe in corpus.heldout.get(chosen, ())] or _pair(corpus, chosen)
    if not found:
        raise DataError("The domain has no held-out texts.", met=f"{chosen} of {data}", mend=f"give {chosen}.heldout.jsonl, or a file")
    return found


def keep_texts(folder: str | Path, texts: TaskTexts) -> None:
    """Write beside a router the texts held out of its training, and digests of those that it has seen."""
    seen = sorted({_mark(text) for text in texts.train})
    write_json(Path(folder) / RECORD, {"format_version": FORMAT_VERSION, "seen": seen, "held_out": texts.held_out})


def kept_texts(folder: str | Path) -> list[str]:
    """The texts held out of a router's training; none where none were kept. StorageError for a damaged record."""
    return _record(folder)[1]


def check_unseen(folder: str | Path, texts: Iterable[str]) -> None:
    """DataError naming the first text that a router has learnt from; one without a record has seen nothing that is known."""
    seen = _record(folder)[0]
    known = [text for text in texts if _mark(text) in seen]
    if known:
        met = f"{folder}: {len(known)} of them, e.g. {known[0][:60]!r}"
        mend = "give texts that were held out; `asterism route eval` without --data takes those kept beside the router"
        raise DataError("The router has learnt from these texts.", met=met, mend=mend)


def check_readable(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """DataError naming the first text of fewer than LEAST tokens: by it no router could be told, however it was trained."""
    for text, ids in zip(texts, tokenise(tokenizer, texts, LEAST), strict=True):
        if len(ids) < LEAST:
            mend = "leave it out of the data, or give it more words"
            raise DataError(f"A held-out text has fewer than {LEAST} tokens.", met=repr(text), mend=mend)


def _parted(texts: Sequence[str], held_out: float, seed: int) -> TaskTexts:
    """A text that is there more than once goes to one side with all its copies."""
    if not held_out:
        check_texts(texts)
        return TaskTexts(list(texts), [])
    drawn = split(list(dict.fromkeys(texts)), held_out, seed)[1]
    apart = set(drawn)
    return TaskTexts([text for text in texts if text not in apart], drawn)


def _rows(data: str | Path, domain: str | None) -> list[str]:
    """The texts of a file or of a dataset by its Hub id, which have no domains to choose from."""
    if domain is not None:
        mend = "leave the domain out, or give a folder of <domain>.train.jsonl files"
        raise SettingsError("A domain is chosen of a folder.", met=f"{domain} of {data}", mend=mend)
    return training_texts(str(data), "")


def _chosen(corpus: Corpus, domain: str | None, data: str | Path) -> str:
    """The domain or pair, proven to be there."""
    known = {*corpus.train, *corpus.heldout, *(probe.group for probe in corpus.cross)}
    if domain is None:
        mend = f"--domain, one of {', '.join(sorted(known))}"
        raise SettingsError("A folder holds the texts of several domains.", met=data, mend=mend)
    if domain not in known and not _pair(corpus, domain):
        raise UnknownName("domain or pair with texts", domain, known)
    return domain


def _pair(corpus: Corpus, domain: str) -> list[str]:
    """The cross-domain probes of a pair, in whichever order it is named."""
    return [probe.text for probe in corpus.cross if set(probe.domains) == set(domain.split("-"))]


def _mark(text: str) -> str:
    return digest_of(text)[:16]


def _record(folder: str | Path) -> tuple[set[str], list[str]]:
    path = Path(folder) / RECORD
    if not path.is_file():
        return set(), []
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION or not {"seen", "held_out"} <= set(record):
        mend = "train the router again, with this version of asterism"
        raise StorageError("A router's record of its texts cannot be read.", met=path, mend=mend)
    return set(record["seen"]), record["held_out"]
