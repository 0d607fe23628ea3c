"""Which chat template is used, and what the API knows of a library."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.merge.chat import TEMPLATES
from asterism.serve.chat import rendered, template_of
from asterism.serve.served import Served
from tests import tiny

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]


def tokenizer(template=None):
    return SimpleNamespace(chat_template=template)


def test_the_tokenizers_own_template_is_used_unless_another_is_given(tmp_path):
    assert template_of(None, tokenizer("own")) == "own"
    assert template_of(None, tokenizer({"default": "own", "tool_use": "other"})) == "own"
    assert template_of(None, tokenizer()) is None
    assert template_of("chatml", tokenizer("own")) == TEMPLATES["chatml"]
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    assert template_of(str(tmp_path / "own.jinja"), tokenizer()) == "{{ messages[0].content }}!"


def test_templates_that_cannot_be_used(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'chatml'"):
        template_of("chatlm", tokenizer())
    (tmp_path / "broken").write_text("{% for %}")
    with pytest.raises(SettingsError, match="not Jinja"):
        template_of(str(tmp_path / "broken"), tokenizer())
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(StorageError, match="cannot be read"):
        template_of(str(tmp_path / "bytes"), tokenizer())


def test_a_conversation_ends_where_the_assistant_answers():
    whole = rendered(tiny.tiny_tokenizer(), TEMPLATES["chatml"], TURNS)
    assert whole == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(tiny.tiny_tokenizer(), None, TURNS) == "Hello\n\nYes"


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[7].content.x }}", "{{ 1 + 'a' }}"])
def test_a_template_that_fails_is_told_as_a_fault_of_the_conversation(template):
    with pytest.raises(DataError, match="refuses the conversation"):
        rendered(tiny.tiny_tokenizer(), template, TURNS)


def test_a_template_cannot_reach_beyond_the_conversation():
    with pytest.raises(DataError, match="refuses the conversation"):
        rendered(tiny.tiny_tokenizer(), "{{ ''.__class__.__mro__[1].__subclasses__() }}", TURNS)


def test_a_served_library_has_its_folders_name_its_ends_and_a_tokenizer_of_its_own(library):
    served = Served.of(library, SimpleNamespace(settings=SimpleNamespace(max_length=77)))  # type: ignore[arg-type]
    assert (served.name, served.window, served.nodes, served.root) == ("tiny", 77, tiny.HIDDEN, library.root)
    assert served.ends == {library.tokenizer.eos_token_id}
    assert served.tokenizer is not library.tokenizer


def test_ends_of_generation_settings_end_answers_too(tmp_path):
    import json

    library = tiny.tiny_library(tmp_path / "a: b@c", "qwen2", ("legal",), kind="mlp")
    (library.folder() / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    served = Served.of(library, SimpleNamespace(settings=SimpleNamespace(max_length=77)))  # type: ignore[arg-type]
    assert served.ends == {library.tokenizer.eos_token_id, 5, 7}
    assert served.name == "a--b-c"
