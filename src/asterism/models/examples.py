"""Examples: prompts with their responses, from rows on disk to batches whose loss is the response's alone.

What a model reads. Where the tokenizer has a chat template (and `chat` is on) the prompt is a user's turn and the response what the
assistant says; else the prompt stands as it is, a newline below it unless it ends or the response begins with white space, then the
response and the end token. Prompt and response are tokenised apart, so the prompt's tokens at training are those that an answer is asked
with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from asterism.core.corpus import check_unicode, placed_rows
from asterism.core.errors import DataError, SettingsError, UnsupportedError
from asterism.models.batching import pad_id
from asterism.models.datasets import dataset_rows, is_dataset

FORMS = '"prompt" and "response"; "instruction", "output" and perhaps "input"; "messages"; or "text"'
IGNORED = -100
"""The label of a token that is no answer."""
TABLES = (".parquet", ".csv")
"""Files that `datasets` reads; any other file holds JSON lines."""


@dataclass(frozen=True)
class Example:
    """What is asked and what is to be answered; without a prompt the response is a text of its own."""

    prompt: str
    response: str


def read_examples(
    source: str | Path | Iterable[Example | Mapping[str, Any]], *, split: str = "train", limit: int | None = None
) -> list[Example]:
    """The first `limit` examples (None: all) of a JSON-lines file (plain or gzip), of a folder or Hub id that `datasets` reads, or of rows.

    A row holds `prompt` and `response`; or `instruction`, `output` and perhaps `input` (put below the instruction unless it stands in it
    already); or `messages`, one of a user and one of an assistant; or `text`, all of which is to be learnt. Other keys are passed over.
    Raises DataError naming file and line of a row that is none of these or is empty, UnsupportedError for a conversation of several turns.
    """
    found = [row if isinstance(row, Example) else example_of(row, where) for where, row in islice(_placed(source, split, limit), limit)]
    if not found:
        raise DataError("There are no examples.", met=_shown(source), mend=f"give rows with {FORMS}")
    return found


def held_apart(examples: Sequence[Example], share: float, seed: int = 42) -> tuple[list[Example], list[Example]]:
    """Examples to train on and examples held out, a share of all different ones drawn by `seed`; each in the order given, 0 holds none out.

    An example that is there more than once goes to one side with all its copies. Raises SettingsError for a share outside [0, 1),
    DataError where either part would be empty.
    """
    if not 0 <= share < 1:
        raise SettingsError("What is held out is a share of the examples.", met=share, mend="e.g. 0.1 for a tenth; 0 for none")
    if not share:
        return list(examples), []
    unlike = list(dict.fromkeys(examples))
    count = max(1, round(share * len(unlike)))
    if count >= len(unlike):
        met = f"{len(unlike)} different ones, {share:g} of them held out"
        raise DataError("Too few examples to hold some out.", met=met, mend="give more examples, or hold none out (0)")
    apart = set(Random(seed).sample(unlike, count))
    return [example for example in examples if example not in apart], [example for example in unlike if example in apart]


def example_of(row: Any, where: str) -> Example:
    """The example that a row holds; `where` names it in errors."""
    if not isinstance(row, Mapping):
        raise DataError("A row is not an object.", met=f"{where}: {type(row).__name__}", mend=f"give it {FORMS}")
    if row.get("messages") is not None:
        return _of_messages(row["messages"], where)
    if "prompt" in row and "response" in row:
        return _example(row["prompt"], row["response"], where)
    if "instruction" in row and "output" in row:
        prompt = _text(row["instruction"], where)
        given = _text(row.get("input") or "", where)
        return _example(prompt if given.strip() in prompt else f"{prompt}\n\n{given}", row["output"], where)
    if "text" in row:
        return Example("", _filled(row["text"], where))
    raise DataError("A row is no example.", met=f"{where} holds {', '.join(map(str, row)) or 'nothing'}", mend=f"give it {FORMS}")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, example: Example, *, chat: bool = True) -> list[int]:
    """Token ids that an answer to the example's prompt is asked with; its response decides only about the newline (see above)."""
    return _ids(tokenizer, example, chat)[0]


def encoded(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int, *, chat: bool = True) -> tuple[list[int], int]:
    """Token ids of prompt and response, and how many are the prompt's.

    What is longer than `max_length` loses the beginning of its prompt (a begin token is kept), never any of its response: DataError for a
    response that is longer itself, or leaves no room for any of its prompt.
    """
    prompt, response = _ids(tokenizer, example, chat)
    room = max_length - len(response)
    if room < min(len(prompt), 1):
        met = f"{len(response)} tokens, max_length {max_length}: {example.response[:60]!r}"
        raise DataError("A response is longer than an example may be.", met=met, mend="raise max_length, or leave that example out")
    prompt = shortened(tokenizer, prompt, room)
    return prompt + response, len(prompt)


def shortened(tokenizer: PreTrainedTokenizerBase, prompt: list[int], room: int) -> list[int]:
    """The last `room` tokens of a prompt that is longer, a begin token kept where there is room for more."""
    if len(prompt) <= room:
        return prompt
    first = prompt[:1] if room > 1 and prompt[0] == tokenizer.bos_token_id else []
    return first + prompt[len(prompt) - room + len(first) :]


class Examples(Dataset):
    """Tokenised examples: `input_ids` and `labels` [T] int64 each, labels -100 on the prompt. Raises as `encoded`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, *, chat: bool = True) -> None:
        self.rows = [encoded(tokenizer, example, max_length, chat=chat) for example in examples]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(ids) for ids, _ in self.rows)

    @property
    def highest(self) -> int:
        """The highest token met."""
        return max(max(ids) for ids, _ in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, prompt = self.rows[index]
        tokens = torch.tensor(ids)
        labels = tokens.clone()
        labels[:prompt] = IGNORED
        return {"input_ids": tokens, "labels": labels}


def padded(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """How rows become a batch: padded on the right to the longest, with a mask; `input_ids`, `attention_mask`, `labels` [B, T] int64."""
    filling = {"input_ids": pad_id(tokenizer), "attention_mask": 0, "labels": IGNORED}

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        whole = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
        return {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in whole], batch_first=True, padding_value=value)
            for name, value in filling.items()
        }

    return collate


def _placed(source: Any, split: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    """(where it stands, row or example) of every row of a source."""
    if not isinstance(source, str | Path):
        return ((f"row {number}", row) for number, row in enumerate(source, 1))
    place = Path(source).expanduser()
    if place.is_file() and place.suffix not in TABLES:
        return placed_rows(place, '{"prompt": ..., "response": ...}')
    if place.is_file() or is_dataset(str(source)):
        rows = dataset_rows(str(place if place.exists() else source), split=split, limit=limit)
        return ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))
    raise DataError("No examples there.", met=source, mend="give a JSON-lines file, a folder that `datasets` reads, or a Hub id")


def _of_messages(messages: Any, where: str) -> Example:
    turns = [turn for turn in messages if isinstance(turn, Mapping)] if isinstance(messages, list | tuple) else []
    roles = [str(turn.get("role")) for turn in turns]
    if not turns or len(turns) != len(messages):
        raise DataError(
            "A row's messages cannot be read.", met=where, mend='give [{"role": "user", "content": ...}, {"role": "assistant", ...}]'
        )
    if roles != ["user", "assistant"]:
        mend = "give one turn of a user and one of an assistant; put what went before into the user's"
        raise UnsupportedError(
            "A conversation of other turns than one question and its answer.", met=f"{where}: {', '.join(roles)}", mend=mend
        )
    return _example(turns[0].get("content"), turns[1].get("content"), where)


def _example(prompt: Any, response: Any, where: str) -> Example:
    return Example(_filled(prompt, where), _filled(response, where))


def _filled(value: Any, where: str) -> str:
    if not _text(value, where).strip():
        raise DataError("A part of an example is empty.", met=where, mend=f"leave the row out, or give it {FORMS}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError("A part of an example is not text.", met=f"{where}: {type(value).__name__}", mend=f"give it {FORMS}")
    check_unicode(value, where)
    return value


def _ids(tokenizer: PreTrainedTokenizerBase, example: Example, chat: bool) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the response, the latter closed by whatever ends it."""
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    if example.prompt and chat and tokenizer.chat_template:
        return _in_turns(tokenizer, example, end)
    gap = "\n" if example.prompt and not example.prompt[-1].isspace() and not example.response[:1].isspace() else ""
    prompt = _plain(tokenizer, example.prompt + gap, special=True)
    if end and prompt[-1:] == end and len(prompt) > 1:
        prompt = prompt[:-1]  # a tokenizer that ends every text
    return prompt, _plain(tokenizer, example.response) + end


def _in_turns(tokenizer: PreTrainedTokenizerBase, example: Example, end: list[int]) -> tuple[list[int], list[int]]:
    asked = [{"role": "user", "content": example.prompt}]
    said = [*asked, {"role": "assistant", "content": example.response}]
    try:
        prompt = str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
        whole = str(tokenizer.apply_chat_template(said, tokenize=False))
    except Exception as error:  # templates are programs of their own, with errors of their own
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError("The tokenizer's chat template cannot be used.", met=told, mend="mend it, or leave it out (chat off)") from None
    if whole.startswith(prompt):
        return _plain(tokenizer, prompt), _plain(tokenizer, whole[len(prompt) :])
    return _plain(tokenizer, prompt), _plain(tokenizer, example.response) + end


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # pyright: ignore


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "an empty list"
