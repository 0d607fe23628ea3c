"""The application that Ray deploys: its arguments, what it asks of Ray, and one replica of it, without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import yaml

pytest.importorskip("ray.serve", reason="the extra `scale` is not installed")

from asterism.constellation.index import Constellation
from asterism.core.errors import SettingsError, UnknownName, UnsupportedError
from asterism.serve import scale
from asterism.serve.jobs import Stats
from asterism.serve.local.settings import LocalSettings
from asterism.serve.vllm.settings import VllmSettings
from tests import tiny
from tests.serve.scripted import Scripted

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.yaml"


def test_arguments_are_the_settings_of_serve_and_of_the_engine():
    own, server, engine = scale.settings_of({"library": "lib", "replicas": "2", "most_jobs": "99", "slots": "7", "allow_changes": "true"})
    assert (own.library, own.replicas, server.most_jobs, server.allow_changes) == (Path("lib"), 2, 99, True)
    assert isinstance(engine, LocalSettings)
    assert engine.slots == 7
    _, _, engine = scale.settings_of({"library": "lib", "engine": "vllm", "max_num_seqs": "8"})
    assert isinstance(engine, VllmSettings)
    assert engine.max_num_seqs == 8


@pytest.mark.parametrize(
    ("args", "error", "told"),
    [
        ({}, SettingsError, "library"),
        ({"library": "lib", "port": "80"}, SettingsError, "http_options"),
        ({"library": "lib", "playground": "true"}, SettingsError, "one process"),
        ({"library": "lib", "replica": "2"}, UnknownName, "did you mean 'replicas'"),
        ({"library": "lib", "max_num_seqs": "8"}, UnknownName, "local engine"),
        ({"library": "lib", "replicas": "3", "most_replicas": "2"}, SettingsError, "most_replicas"),
        ({"library": "lib", "engine": "vlm"}, SettingsError, "engine"),
    ],
)
def test_arguments_that_nothing_can_be_done_with_are_told(args, error, told):
    with pytest.raises(error, match=told):
        scale.settings_of(args)


def test_what_ray_is_asked_for():
    fixed = scale.app({"library": "lib", "replicas": "3", "cpus": "2", "gpus": "0.5", "per_node": "1", "drain_s": "7"})._bound_deployment
    assert fixed.num_replicas == 3
    assert fixed._deployment_config.autoscaling_config is None
    assert (fixed.ray_actor_options["num_cpus"], fixed.ray_actor_options["num_gpus"]) == (2, 0.5)
    assert fixed._replica_config.max_replicas_per_node == 1
    assert fixed._deployment_config.graceful_shutdown_timeout_s == 7 + scale.LAST
    moving = scale.app({"library": "lib", "replicas": "1", "most_replicas": "4", "load": "9", "most_jobs": "100"})._bound_deployment
    found = moving._deployment_config.autoscaling_config
    assert (found.min_replicas, found.max_replicas, found.target_ongoing_requests) == (1, 4, 9)
    assert moving.max_ongoing_requests == 100 + scale.SPARE


def test_a_relative_place_is_where_the_caller_stands(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(scale, "_replica", lambda *given: seen.append(given) or scale.Replica)
    monkeypatch.chdir(tmp_path)
    scale.app({"library": "lib", "api_keys": "keys.txt"})
    assert (seen[0][0].library, seen[0][0].api_keys) == (tmp_path / "lib", tmp_path / "keys.txt")


def test_the_file_of_the_guide_is_one_that_ray_takes():
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema.model_validate(yaml.safe_load(EXAMPLE.read_text("utf-8")))
    (one,) = found.applications
    assert one.import_path == "asterism.serve.scale:app"
    scale.app(one.args)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    library = tiny.tiny_library(tmp_path_factory.mktemp("scale") / "tiny", "gpt2")
    Constellation.build(library, tiny.tiny_probes()).save()
    return library.root


def replica(root: Path, engine: Scripted, **args: object):
    own, server, local = scale.settings_of({"library": root, "device": "cpu", **args})
    return scale.replica_app(own, server, local, "node/one", made=lambda *_: engine)


def test_a_replica_answers_says_who_it_is_and_follows_the_files(whole, monkeypatch):
    engine = Scripted(lambda job: (5, 6, 0))
    app = replica(whole, engine)
    one = scale.Replica()
    one.app = app

    async def work():
        async with app.router.lifespan_context(app):
            await one.check_health()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                (whole / "library.json").touch()
                answer = await client.post("/v1/completions", json={"model": "tiny-base", "prompt": "The", "max_tokens": 3})
                missing = await client.get("/v1/nothing")
            monkeypatch.setattr(app.state.asking.meter, "stats", lambda: Stats(alive=False))
            with pytest.raises(Exception, match="stopped working"):
                await one.check_health()
        return answer, missing

    answer, missing = asyncio.run(work())
    assert (answer.status_code, missing.status_code) == (200, 404)
    assert answer.headers["x-asterism-replica"] == missing.headers["x-asterism-replica"] == "node/one"
    assert engine.followed == 1
    assert engine.closed


def test_a_replica_whose_engine_cannot_start_is_not_well(whole):
    engine = Scripted(lambda job: ())

    async def broken():
        raise UnsupportedError("This architecture is not served.", met="x", mend="y")

    engine.start = broken
    app = replica(whole, engine)
    one = scale.Replica()
    one.app = app

    async def work():
        async with app.router.lifespan_context(app):
            with pytest.raises(UnsupportedError, match="not served"):
                await one.check_health()

    asyncio.run(work())


def test_changes_need_keys_and_keys_are_read_where_the_replica_runs(whole, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedError, match="Everybody"):
        replica(whole, Scripted(lambda job: ()), allow_changes=True)
    monkeypatch.setenv("ASTERISM_API_KEYS", "a-key-of-ours")
    app = replica(whole, Scripted(lambda job: ()), allow_changes=True)

    async def work():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/v1/models"), await client.get("/health")

    closed, probed = asyncio.run(work())
    assert (closed.status_code, probed.status_code) == (401, 200)


def test_the_router_ranks_all_replicas_alike():
    router = object.__new__(scale.Fewest)
    (rank,) = asyncio.run(router.choose_replicas(["a", "b", "c"]))
    assert sorted(rank) == ["a", "b", "c"]
