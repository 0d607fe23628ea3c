"""Requests made from the server's own description: none breaks it, and every answer is of the form that it describes."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from asterism.serve.app import create_app
from tests.serve.live import live
from tests.serve.scripted import Scripted

CHECKS = [not_a_server_error, content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance]
ROUTES = (
    "GET /health",
    "GET /metrics",
    "GET /ready",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /v1/asterism/explain",
    "GET /v1/asterism/specialists",
    "POST /v1/asterism/specialists",
    "DELETE /v1/asterism/specialists/{name}",
    "GET /v1/asterism/compositions",
    "POST /v1/asterism/compositions",
    "GET /v1/asterism/compositions/{label}",
    "DELETE /v1/asterism/compositions/{label}",
)


@pytest.fixture(scope="module")
def open_server(served):
    tokens = [*served.tokenizer(" fine", add_special_tokens=False)["input_ids"], served.tokenizer.eos_token_id]
    with live(Scripted(lambda job: tokens), served) as running:
        yield running


@pytest.fixture(scope="module")
def schema(open_server):
    return schemathesis.openapi.from_url(f"{open_server.url}/openapi.json")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_breaks_the_server(schema, open_server, route, mode):
    method, path = route.split()
    met = []

    @given(schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=10, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    def ask(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # or else most requests would end there
        met.append(case.call_and_validate(base_url=open_server.url, checks=CHECKS).status_code)

    try:
        ask()
    except Unsatisfiable:
        assert mode == schemathesis.GenerationMode.NEGATIVE  # a route without parameters cannot be asked wrongly
    else:
        assert met


def test_every_route_is_described(served, scripted):
    paths = create_app(scripted(), served).openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, own in paths.items() for method in own} == set(ROUTES)
