"""Examples: every form of row, what is tokenised and what is learnt of it, and every refusal by file and line."""

from __future__ import annotations

import copy
import gzip
import json

import pytest
import torch

from asterism.core.errors import DataError, UnsupportedError
from asterism.models.examples import Example, Examples, encoded, example_of, padded, prompt_ids, read_examples
from tests import tiny

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
ASKED = Example("Who walks?", "A dog.")


@pytest.fixture
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture
def chatting():
    """The tokenizer with a chat template."""
    own = copy.deepcopy(tiny.tiny_tokenizer())
    own.chat_template = CHATML
    return own


def turns(*roles):
    return {"messages": [{"role": role, "content": f"said by the {role}"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "Who?", "response": " Me", "id": 3}, "Who?", " Me"),
        ({"instruction": "Name it.", "output": "It"}, "Name it.", "It"),
        ({"instruction": "Name it.", "input": "", "output": "It"}, "Name it.", "It"),
        ({"instruction": "Name it.", "input": None, "output": "It"}, "Name it.", "It"),
        ({"instruction": "Find the longest word.", "input": "a bee", "output": "bee"}, "Find the longest word.\n\na bee", "bee"),
        ({"instruction": "List.\nText: a bee\nAnswer:", "input": "a bee", "output": " x: bee"}, "List.\nText: a bee\nAnswer:", " x: bee"),
        (turns("user", "assistant"), "said by the user", "said by the assistant"),
        ({"text": "all of it"}, "", "all of it"),
    ],
)
def test_each_form_of_row(row, prompt, response):
    assert example_of(row, "here") == Example(prompt, response)


def test_files_plain_and_gzip_rows_and_datasets_read_alike(tmp_path):
    rows = [{"prompt": f"asked {n}", "response": f"said {n}"} for n in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines + "\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(lines)
    want = [Example(row["prompt"], row["response"]) for row in rows]
    for source in (tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl.gz"), tmp_path / "folder", rows, want, iter(rows)):
        assert read_examples(source) == want
    assert read_examples(tmp_path / "rows.jsonl", limit=2) == read_examples(tmp_path / "folder", limit=2) == want[:2]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "Who?", "id": 1}, "A row is no example.\n  met:  {} holds question, id"),
        ({"prompt": "Who?"}, "A row is no example.\n  met:  {} holds prompt"),
        ({"prompt": "Who?", "response": "  "}, "A part of an example is empty.\n  met:  {}"),
        ({"prompt": "", "response": "x"}, "A part of an example is empty.\n  met:  {}"),
        ({"prompt": "Who?", "response": 3}, "A part of an example is not text.\n  met:  {}: int"),
        ({"prompt": "Who?", "response": "\ud800"}, "A text is not valid Unicode.\n  met:  {}"),
        ({"messages": []}, "A row's messages cannot be read.\n  met:  {}"),
        ({"messages": ["hello"]}, "A row's messages cannot be read.\n  met:  {}"),
    ],
)
def test_a_row_that_is_no_example_is_named_by_file_and_line(tmp_path, row, told):
    place = tmp_path / "rows.jsonl"
    place.write_text('{"text": "fine"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_examples(place)
    assert str(caught.value).startswith(told.format(f"{place}:2") + "\n  mend: ")


def test_a_broken_line_is_told_what_an_example_looks_like(tmp_path):
    place = tmp_path / "rows.jsonl"
    place.write_text('{"prompt": "Who?", "response": "Me."}\n{"prompt": \n')
    with pytest.raises(DataError) as caught:
        read_examples(place)
    mend = 'write one {"prompt": ..., "response": ...} object a line'
    assert str(caught.value) == f"A line is not JSON.\n  met:  {place}:2: Expecting value\n  mend: {mend}"


@pytest.mark.parametrize("roles", [("user", "assistant", "user", "assistant"), ("system", "user", "assistant"), ("user",)], ids=str)
def test_a_conversation_of_several_turns_is_refused(tmp_path, roles):
    place = tmp_path / "rows.jsonl"
    place.write_text(json.dumps(turns(*roles)))
    with pytest.raises(UnsupportedError) as caught:
        read_examples(place)
    assert caught.value.met == f"{place}:1: {', '.join(roles)}"


def test_no_examples(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    for source in ([], tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match=r"There are no examples"):
            read_examples(source)
    with pytest.raises(DataError, match=r"No examples there.\n  met:  .*missing.jsonl"):
        read_examples(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("example", "prompt", "response"),
    [
        (ASKED, "Who walks?\n", "A dog."),
        (Example("Answer:", " A dog."), "Answer:", " A dog."),
        (Example("Answer:\n", "A dog."), "Answer:\n", "A dog."),
        (Example("", "A dog."), "", "A dog."),
    ],
)
def test_without_a_template_prompt_and_response_stand_as_they_are_and_end(tokenizer, example, prompt, response):
    ids, asked = encoded(tokenizer, example, 64)
    assert tokenizer.decode(ids[:asked]) == prompt
    assert tokenizer.decode(ids[asked:-1]) == response
    assert ids[-1] == tokenizer.eos_token_id
    assert prompt_ids(tokenizer, example) == ids[:asked]


def test_with_a_template_they_are_turns(chatting):
    ids, asked = encoded(chatting, ASKED, 256)
    assert chatting.decode(ids[:asked]) == "<|user|>Who walks?<|end|>\n<|assistant|>"
    assert chatting.decode(ids[asked:]) == "A dog.<|end|>\n"
    plain, length = encoded(chatting, ASKED, 256, chat=False)
    assert chatting.decode(plain[:length]) == "Who walks?\n"
    text = Example("", "A dog.")
    assert encoded(chatting, text, 256) == encoded(tiny.tiny_tokenizer(), text, 256)


def test_a_template_that_says_the_prompt_otherwise_when_it_is_answered(chatting):
    chatting.chat_template = "{{ messages | length }}{{ messages[0].content }}"
    ids, asked = encoded(chatting, ASKED, 64)
    assert chatting.decode(ids[:asked]) == "1Who walks?"
    assert chatting.decode(ids[asked:-1]) == "A dog."
    assert ids[-1] == chatting.eos_token_id


def test_a_template_that_fails_is_told(chatting):
    chatting.chat_template = "{{ raise_exception('no user here') }}"
    with pytest.raises(DataError, match=r"chat template cannot be used.\n  met:  no user here"):
        encoded(chatting, ASKED, 64)


def test_a_long_prompt_loses_its_beginning_and_never_the_response(tokenizer):
    example = Example("one two three four five six seven", "eight nine")
    whole, asked = encoded(tokenizer, example, 256)
    for length in range(len(whole) - asked + 1, len(whole)):
        ids, kept = encoded(tokenizer, example, length)
        assert ids == whole[-length:]
        assert kept == asked - (len(whole) - length) > 0
    with pytest.raises(DataError, match=r"A response is longer than an example may be.\n  met:  .* tokens, max_length .*'eight nine'"):
        encoded(tokenizer, example, len(whole) - asked)
    assert len(encoded(tokenizer, Example("", "eight nine"), len(whole) - asked)[0]) == len(whole) - asked


def test_a_begin_token_is_kept_where_a_prompt_is_cut(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begins = copy.deepcopy(tokenizer)
    begins.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    example = Example("one two three four five six seven", "eight nine")
    whole, asked = encoded(begins, example, 256)
    assert whole[0] == 0
    ids, kept = encoded(begins, example, len(whole) - 3)
    assert ids == [0, *whole[4:]]
    assert kept == asked - 3


def test_what_is_learnt_is_the_response_alone(tokenizer):
    data = Examples(tokenizer, [ASKED, Example("Why does the dog walk home?", "It rained.")], 64)
    batch = padded(tokenizer)([data[0], data[1]])
    assert len(data) == 2
    assert data.longest == batch["input_ids"].shape[1]
    assert data.highest == int(batch["input_ids"].max())
    for row in range(2):
        own = data.rows[row][0]
        mask = batch["attention_mask"][row].bool()
        assert mask.sum() == len(own)
        assert batch["input_ids"][row][mask].tolist() == own
        learnt = batch["labels"][row] != -100
        assert torch.equal(batch["labels"][row][learnt], batch["input_ids"][row][learnt])
        assert tokenizer.decode(batch["labels"][row][learnt][:-1]) == ("A dog.", "It rained.")[row]
        assert not learnt[~mask].any()
