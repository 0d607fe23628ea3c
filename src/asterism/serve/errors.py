"""Errors as clients of OpenAI's API know them, ours inside: never a path, an environment variable or a stack."""

from __future__ import annotations

import re
from typing import Any

from asterism.core.errors import AsterismError, StaleError, StorageError, UnknownName

PATH = re.compile(r"(?<![\w./~<-])(?:~?/(?:[^\s'\":;,()\[\]{}/]+/)*|[A-Za-z]:\\(?:[^\s'\":;,()\[\]{}\\]+\\)*)([^\s'\":;,()\[\]{}/\\]+)")
"""A path from the root, from home or from a drive; its last name alone is told."""
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 403: "not_allowed", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 409: "already_there"}
CODES |= {413: "body_too_large", 415: "not_json", 429: "busy", 500: "internal_error", 503: "unavailable"}


class Refused(AsterismError):  # noqa: N818 - as UnknownName, a name that reads aloud
    """A request that is not answered, with its HTTP status and what OpenAI's clients read: `code`, and the field (`param`) at fault."""

    def __init__(
        self,
        status: int,
        wrong: str,
        *,
        met: object,
        mend: str,
        code: str | None = None,
        param: str | None = None,
        after: int | None = None,
    ) -> None:
        super().__init__(wrong, met=met, mend=mend)
        self.status, self.code, self.param, self.after = status, code, param, after

    @classmethod
    def of(cls, error: AsterismError, status: int, *, code: str | None = None, param: str | None = None) -> Refused:
        """An error from below, with a status of its own."""
        wrong, met, mend = map(without_paths, (error.wrong, str(error.met), error.mend))
        return cls(status, wrong, met=met, mend=mend, code=code, param=param)


class Busy(Refused):
    """There is no room for another answer now; `after` is when to come again, in seconds."""

    def __init__(self, met: object, after: int = 1) -> None:
        super().__init__(429, "The server is busy.", met=met, mend=f"come again in {after} s", after=after)


class Away(Refused):
    """The server does not answer yet, or no more."""

    def __init__(self, wrong: str, met: object, after: int = 5) -> None:
        super().__init__(503, wrong, met=met, mend=f"come again in {after} s", after=after)


def internal() -> Refused:
    """What a client is told of a fault of our own: the rest is in the server's log."""
    return Refused(500, "Something went wrong in the server.", met="an error of its own", mend="its log tells more; please report it")


def status_of(error: AsterismError) -> int:
    """The HTTP status: its own, 404 for an unknown name, 409 for what has changed since, 500 for damage and failed work, else 400."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, UnknownName):
        return 404
    if isinstance(error, StaleError):
        return 409
    return 500 if isinstance(error, StorageError) or type(error) is AsterismError else 400


def body_of(error: AsterismError, status: int | None = None) -> dict[str, Any]:
    """`{"error": {message, type, param, code, asterism: {wrong, met, mend}}}`."""
    status = status or status_of(error)
    told = error if isinstance(error, Refused) else Refused.of(error, status)
    parts = {"wrong": told.wrong, "met": str(told.met), "mend": told.mend}
    mend = told.mend[:1].upper() + told.mend[1:] + ("" if told.mend.endswith(("?", ".")) else ".")
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = told.code or CODES.get(status)
    shown = {"message": f"{told.wrong} Met: {told.met}. {mend}", "type": kind, "param": told.param, "code": code}
    return {"error": {**shown, "asterism": parts}}


def headers_of(error: AsterismError) -> dict[str, str]:
    """`Retry-After` where the error knows one."""
    after = getattr(error, "after", None)
    return {"Retry-After": str(after)} if after is not None else {}


def without_paths(text: str) -> str:
    """A text in which every path is its last name."""
    return PATH.sub(r"\1", text)
