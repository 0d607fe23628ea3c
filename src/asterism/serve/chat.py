"""Conversations as the model reads them: through a chat template, and plainly where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterism.core.errors import DataError, StorageError, UnknownName
from asterism.merge.chat import TEMPLATES, check_template


def template_of(given: str | None, tokenizer: Any) -> str | None:
    """The chat template to use: a file's, a known format's, or the tokenizer's own; None where there is none.

    Raises UnknownName for what is neither a file nor a known format, SettingsError for a template that is not Jinja.
    """
    if given is None:
        own = tokenizer.chat_template
        return own.get("default") if isinstance(own, dict) else own
    if given in TEMPLATES:
        return TEMPLATES[given]
    if not Path(given).is_file():
        raise UnknownName("chat template, nor a file of that name", given, TEMPLATES)
    try:
        text = Path(given).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError("The chat template cannot be read.", met=f"{given}: {error}", mend="give a text file") from None
    check_template(text)
    return text


def rendered(tokenizer: Any, template: str | None, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt of a conversation, up to where the assistant answers.

    Without a template the messages' texts follow each other, a blank line between them: models that never met a chat read them so.
    Raises DataError where the template refuses the conversation.
    """
    if template is None:
        return "\n\n".join(message["content"] for message in messages)
    from jinja2 import TemplateError

    given: dict[str, Any] = dict(chat_template=template, add_generation_prompt=True, tokenize=False)
    try:
        return str(tokenizer.apply_chat_template([dict(one) for one in messages], **given))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        mend = "e.g. one user message, or turns that alternate"
        raise DataError("The chat template refuses the conversation.", met=told, mend=mend) from None
