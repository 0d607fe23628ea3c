"""What the web framework finds wrong with a request, told as our errors: the field, what was met, how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from asterism.core.errors import UnknownName
from asterism.serve.admin import ExplainRequest, SaveRequest, SpecialistRequest
from asterism.serve.errors import Refused
from asterism.serve.schema import ChatRequest, CompletionRequest, Extras, Message, StreamOptions

SEE = "see /openapi.json"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/asterism/explain": ExplainRequest,
    "/v1/asterism/specialists": SpecialistRequest,
    "/v1/asterism/compositions": SaveRequest,
}
INSIDE: dict[str, type[BaseModel]] = {"asterism": Extras, "stream_options": StreamOptions, "messages": Message}


def of_http(request: Request, error: HTTPException) -> Refused:
    """An unknown path, a wrong method, a body that is not UTF-8."""
    met = f"{request.method} {request.url.path}"
    if error.status_code in (404, 405):
        return Refused(error.status_code, "No such path." if error.status_code == 404 else "No such method here.", met=met, mend=SEE)
    return Refused(error.status_code, "The body cannot be read.", met="not UTF-8, or not JSON", mend="send JSON in UTF-8")


def of_fields(request: Request, error: RequestValidationError) -> Refused:
    """The first field at fault, with all that was found wrong with it."""
    errors = error.errors()
    first = errors[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        met = f"{first['ctx']['error']} at character {first['loc'][-1]}"
        return Refused(400, "The body is not JSON.", met=met, mend="send one JSON object")
    if not place:
        return _whole(request, first)
    depth = {"messages": 3, "asterism": 2, "stream_options": 2}.get(place[0], 1)
    param = ".".join(place[:depth])
    if first["type"] == "extra_forbidden":
        return _unknown(request, place, param)
    own = [each for each in errors if each["loc"][1 : 1 + depth] == first["loc"][1 : 1 + depth]]
    told = ", or: ".join(dict.fromkeys(map(_plain, own)))  # each way that a union could have been met
    return Refused(400, f"{param} is not usable: {told}.", met=_shown(first), mend=SEE, param=param)


def _whole(request: Request, first: Mapping[str, Any]) -> Refused:
    """A body that is no object, is not told to be JSON, or whose fields do not agree."""
    if request.method != "GET" and "json" not in request.headers.get("content-type", ""):
        mend = "send Content-Type: application/json"
        return Refused(415, "The body is not told to be JSON.", met="another content type, or none", mend=mend)
    return Refused(400, f"The request is not usable: {_plain(first)}.", met=_shown(first), mend=SEE)


def _unknown(request: Request, place: Sequence[str], param: str) -> Refused:
    name, known = place[-1], INSIDE.get(place[0]) if len(place) > 1 else BODIES.get(request.url.path)
    if len(place) == 1 and name in Extras.model_fields:
        mend = f'put it under asterism, e.g. extra_body={{"asterism": {{"{name}": ...}}}}'
        return Refused(400, "That field is asterism's own.", met=repr(name), mend=mend, code="unknown_field", param=param)
    fields = known.model_fields if known else ()
    return Refused.of(UnknownName("field", name, fields), 400, code="unknown_field", param=param)


def _plain(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _shown(error: Mapping[str, Any]) -> str:
    return repr(error.get("input"))[:80]
