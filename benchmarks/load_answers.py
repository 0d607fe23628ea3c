"""What an answer of the API says, for load.py and its clients: compared, it must be the same whoever else was asking."""

from __future__ import annotations

import json
from typing import Any


def told(text: str) -> list[Any]:
    """What an answer, whole or streamed with its usage, says: texts, ends, shares to four places, tokens. [the body] where it is none."""
    try:
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        if text.startswith("data: ") and lines.pop() != "[DONE]":
            return [text[:200]]
        parts = [json.loads(line) for line in lines]
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        for part in parts:
            for choice in part["choices"]:
                said = choice.get("message") or choice.get("delta") or choice
                texts[choice["index"]] = texts.get(choice["index"], "") + (said.get("content") or said.get("text") or "")
                reasons[choice["index"]] = choice.get("finish_reason") or reasons.get(choice["index"], "")
        mixture = parts[0]["asterism"]
        shares = {name: round(share, 4) for name, share in sorted(mixture["shares"].items())}
        usage = parts[-1]["usage"]["completion_tokens"]
        return [[texts[place] for place in sorted(texts)], [reasons[place] for place in sorted(reasons)], shares, usage]
    except (ValueError, KeyError, TypeError, IndexError):
        return [text[:200]]
