"""Models, explanations, specialists that come and go, and saved compositions."""

from __future__ import annotations

import pytest
import torch

from asterism.compose.export import recalled
from asterism.core.errors import MismatchError, StorageError
from asterism.models.library import Library
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from tests import tiny
from tests.serve.conftest import TEXT
from tests.serve.live import live
from tests.serve.scripted import Scripted

NEW = {"name": "poetry", "source": "/somewhere/poetry", "probes": ["A rose is a rose."]}


@pytest.fixture(scope="module")
def _changeable(tmp_path_factory):
    from types import SimpleNamespace

    library = tiny.tiny_library(tmp_path_factory.mktemp("change") / "tiny", "qwen2", ("medical", "legal"), kind="mlp")
    served = Served.of(library, SimpleNamespace(settings=SimpleNamespace(max_length=256)))  # type: ignore[arg-type]
    with live(Scripted(lambda job: ()), served, ServeSettings(allow_changes=True)) as running:
        yield running


@pytest.fixture
def changeable(_changeable, scripted):
    """A server that may be changed, with a library of its own and nothing saved."""
    _changeable.engine.__dict__ |= scripted(names=("medical", "legal")).__dict__
    yield _changeable
    for file in (_changeable.asking.served.root / "compositions").glob("*"):
        file.unlink()


def save(server, label="law", **fields):
    return server.client.post("/v1/asterism/compositions", json={"label": label, **fields})


def message(answer) -> str:
    return answer.json()["error"]["message"]


def test_models_are_the_composed_one_the_generalist_and_each_specialist(server):
    models = server.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in models[:3]] == [("tiny", None), ("tiny-base", "tiny"), ("tiny:medical", "tiny")]
    assert {model["max_model_len"] for model in models} == {128}
    assert server.client.get("/v1/models/tiny:code").json() == models[4]


def test_explain(post, server):
    assert post("asterism/explain", text="a", mode="fast").json() == {"text": "a", "mode": "fast", "shares": {"medical": 1.0}}
    assert post("asterism/explain", text="").status_code == 400
    assert "did you mean 'mode'" in message(post("asterism/explain", text="a", mod="fast")).lower()


def test_changes_are_off_unless_allowed(server):
    for answer in (
        server.client.post("/v1/asterism/specialists", json=NEW),
        server.client.delete("/v1/asterism/specialists/legal"),
        save(server, text="a"),
        server.client.delete("/v1/asterism/compositions/law"),
    ):
        assert answer.status_code == 403
        assert "--allow-changes" in message(answer)
    assert server.engine.names == ("medical", "legal", "code", "science")
    assert server.client.get("/v1/asterism/specialists").json()["data"][1] == {
        "name": "legal",
        "object": "asterism.specialist",
        "model": "tiny:legal",
        "parent": "tiny",
    }
    assert server.client.get("/v1/asterism/compositions").json()["data"] == []


def test_a_specialist_comes_and_goes(changeable):
    added = changeable.client.post("/v1/asterism/specialists", json=NEW)
    assert (added.status_code, added.json()["model"]) == (201, "tiny:poetry")
    question = {"model": "tiny:poetry", "prompt": "a", "max_tokens": 32}
    assert changeable.client.post("/v1/completions", json=question).json()["choices"][0]["text"] == TEXT
    again = changeable.client.post("/v1/asterism/specialists", json=NEW)
    assert (again.status_code, "has that name already" in message(again)) == (409, True)
    assert changeable.client.delete("/v1/asterism/specialists/poetry").json()["deleted"] is True
    gone = changeable.client.delete("/v1/asterism/specialists/poetry")
    assert gone.status_code == 404
    assert changeable.client.post("/v1/completions", json=question).status_code == 404


def test_the_last_specialist_stays(changeable):
    assert changeable.client.delete("/v1/asterism/specialists/legal").status_code == 200
    last = changeable.client.delete("/v1/asterism/specialists/medical")
    assert (last.status_code, "last specialist" in message(last)) == (409, True)


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"name": "a:b"}, "cannot have that name"), ({"name": "general"}, "means something else"), ({"probes": []}, "at least 1 item")],
)
def test_specialists_that_cannot_be(changeable, fields, match):
    answer = changeable.client.post("/v1/asterism/specialists", json={**NEW, **fields})
    assert answer.status_code == 400
    assert match in message(answer)
    assert changeable.engine.names == ("medical", "legal")


def test_what_keeps_a_specialist_out_is_told_without_the_servers_paths(changeable):
    for error, status in (
        (StorageError("There is no such folder.", met="/srv/models/poetry", mend="give one"), 400),
        (MismatchError("It is of another architecture.", met="/srv/models/poetry", mend="give one of the generalist's"), 400),
    ):
        changeable.engine.refuses = error
        answer = changeable.client.post("/v1/asterism/specialists", json=NEW)
        assert answer.status_code == status
        assert "/srv" not in answer.text
        assert "poetry" in message(answer)


def test_a_fixed_mixture_is_saved_and_asked_for_by_its_label(changeable):
    made = save(changeable, asterism={"mixture": {"legal": 0.75}, "layers": 1})
    assert made.status_code == 201
    told = made.json()
    assert (told["model"], told["shares"], told["generalist"], told["usable"]) == ("tiny@law", {"legal": 0.75}, 0.25, True)
    assert told["origin"] == {"mixture": {"legal": 0.75}}
    assert changeable.client.get("/v1/asterism/compositions/law").json() == told
    assert changeable.client.get("/v1/asterism/compositions").json()["data"] == [told]
    assert "tiny@law" in [model["id"] for model in changeable.client.get("/v1/models").json()["data"]]
    answer = changeable.client.post("/v1/completions", json={"model": "tiny@law", "prompt": "a"}).json()
    assert (answer["asterism"]["shares"], answer["asterism"]["layers"], answer["asterism"]["mode"]) == ({"legal": 0.75}, 1, "saved")


def test_a_texts_mixture_is_saved_as_it_was_chosen(changeable):
    assert save(changeable, text="a", asterism={"top_k": 1}).status_code == 201
    saved = changeable.asking.recall("law")[0]
    assert saved.shares == {"medical": 0.75}
    again = Library.open(changeable.asking.served.root)
    mixture, settings = recalled(_record(changeable), again)
    assert torch.equal(mixture.weights, saved.weights)
    assert settings.layers == "all"


def _record(server):
    from asterism.core.storage import read_json

    return read_json(server.asking.served.root / "compositions" / "law.json")


def test_a_label_is_taken_until_it_is_given_up(changeable):
    mixture = {"asterism": {"mixture": {"legal": 1.0}}}
    assert save(changeable, **mixture).status_code == 201
    assert save(changeable, **mixture).status_code == 409
    assert save(changeable, **{"asterism": {"mixture": {"medical": 1.0}}}, replace=True).json()["shares"] == {"medical": 1.0}
    assert changeable.client.delete("/v1/asterism/compositions/law").json()["deleted"] is True
    for answer in (
        changeable.client.delete("/v1/asterism/compositions/law"),
        changeable.client.get("/v1/asterism/compositions/law"),
        changeable.client.post("/v1/completions", json={"model": "tiny@law", "prompt": "a"}),
    ):
        assert answer.status_code == 404


def test_a_composition_written_by_another_replica_is_a_model_here(changeable):
    save(changeable, asterism={"mixture": {"legal": 1.0}})
    folder = changeable.asking.served.root / "compositions"
    (folder / "copy.json").write_bytes((folder / "law.json").read_bytes())
    assert changeable.client.post("/v1/completions", json={"model": "tiny@copy", "prompt": "a"}).status_code == 200
    (folder / "copy.json").write_text("{}")
    broken = changeable.client.post("/v1/completions", json={"model": "tiny@copy", "prompt": "a"})
    assert broken.status_code == 500
    assert changeable.client.get("/v1/asterism/compositions/copy").json()["usable"] is False


def test_a_composition_of_a_specialist_that_left_is_refused(changeable):
    library = changeable.asking.served.library
    save(changeable, asterism={"mixture": {"legal": 1.0}})
    source = library.folder("legal")
    library.remove("legal")
    try:
        answer = changeable.client.post("/v1/completions", json={"model": "tiny@law", "prompt": "a"})
        assert (answer.status_code, "No such specialist" in message(answer)) == (404, True)
        told = changeable.client.get("/v1/asterism/compositions/law").json()
        assert (told["usable"], told["why"]) == (False, "No such specialist.")
    finally:
        library.add("legal", source)


@pytest.mark.parametrize("label", ["../up", "a/b", ".hidden", "a:b", "a@b", "", " a", "x" * 101, "con\n"])
def test_labels_that_cannot_name_a_file(changeable, label):
    assert save(changeable, label, asterism={"mixture": {"legal": 1.0}}).status_code == 400
    assert not list(changeable.asking.served.root.parent.glob("*.json"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "give a text, or asterism.mixture"),
        ({"text": "a", "asterism": {"mixture": {"legal": 1.0}}}, "give a text, or asterism.mixture"),
        ({"text": "a", "asterism": {"renew": 8}}, "never renewed"),
        ({"asterism": {"mixture": {"generalist": 1.0}}}, "tiny-base"),
        ({"asterism": {"mixture": {"legl": 1.0}}}, "Did you mean 'legal'"),
    ],
)
def test_compositions_that_cannot_be_saved(changeable, fields, match):
    answer = save(changeable, **fields)
    assert answer.status_code == 400
    assert match in message(answer)
