"""The server on a Ray cluster: several replicas of `asterism serve`, on one machine or many, as many as there is work for.

    serve run asterism.serve.scale:app library=/shared/library replicas=2 most_replicas=8

Every replica opens the same library folder, which all nodes see at one path, and is a whole server of its own: engine, queue, API. Ray's
proxies give each request to the replica with the fewest under way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from ray import get_runtime_context, serve
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from asterism.core.errors import SettingsError, UnknownName
from asterism.core.settings import Settings
from asterism.serve.local.settings import LocalSettings
from asterism.serve.settings import ServeSettings
from asterism.serve.vllm.settings import VllmSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

PROXIES = "Ray's proxies listen, not the replicas."
HTTP = "give it to Ray: `http_options` in a Serve config file, or `serve start --http-host ... --http-port ...`"
OTHERS = {
    "host": (PROXIES, HTTP),
    "port": (PROXIES, HTTP),
    "playground": ("The playground keeps its sessions in one process.", "leave it out; `asterism serve` has it"),
}
"""Settings of `asterism serve` that have no use here."""
PLACES = ("library", "api_keys")
"""Paths, which a replica would read from another working folder."""
SPARE = 64
"""Requests beyond `most_jobs` that Ray lets through to a replica: those get our 429, and /health and /metrics are always heard."""
HEADER = b"x-asterism-replica"
SHORTEST = 15.0
"""Seconds of load that Ray looks at, at least: it measures every ten."""
LAST = 5.0
"""Seconds beyond `drain_s` that a replica has to end."""


class ScaleSettings(Settings):
    """How many replicas there are, and what each one takes. Paths are those on the replicas' machines."""

    library: Path
    """Folder of the library, at the same path on every node."""
    replicas: int = Field(default=1, ge=1)
    """Replicas that there always are."""
    most_replicas: int | None = Field(default=None, ge=1)
    """Replicas that there are at most, as the load asks for them; `replicas` where nothing is given."""
    load: float = Field(default=32.0, gt=0)
    """Requests, running and waiting together, that a replica should have on average: more call for another replica."""
    upscale_s: float = Field(default=10.0, ge=0)
    """Seconds that the load must ask for more replicas before there are more."""
    downscale_s: float = Field(default=300.0, ge=0)
    """Seconds that the load must ask for fewer before one goes; answers under way on it finish."""
    per_node: int | None = Field(default=None, ge=1)
    """Replicas that one node may hold."""
    cpus: float = Field(default=1.0, ge=0)
    """Cores that Ray sets aside for a replica; torch takes as many threads."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for a replica, and that it alone sees."""
    device: str | None = None
    """Device of a replica's models, e.g. cpu; an accelerator if a replica sees one."""
    api_keys: Path | None = None
    """File of API keys, as in `asterism serve`; each replica also reads its own ASTERISM_API_KEYS."""

    @model_validator(mode="after")
    def _range(self) -> ScaleSettings:
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError("most_replicas is less than replicas")
        return self


def app(args: Mapping[str, Any]) -> Application:
    """What `serve run asterism.serve.scale:app KEY=VALUE ...` and the `args` of a Serve config file give, as an application.

    Keys: `library` and the rest of ScaleSettings, the settings of `asterism serve` but host, port and playground, and the engine's.
    Raises UnknownName and SettingsError. Nothing is opened here: that is for the replicas.
    """
    own, server, engine = settings_of(args)
    own = own.changed(**{name: path.expanduser().absolute() for name in PLACES if (path := getattr(own, name)) is not None})
    options: dict[str, Any] = {"num_replicas": own.replicas}
    if own.most_replicas is not None:
        scaling = {"min_replicas": own.replicas, "max_replicas": own.most_replicas, "target_ongoing_requests": own.load}
        scaling |= {"upscale_delay_s": own.upscale_s, "downscale_delay_s": own.downscale_s}
        options = {"autoscaling_config": {**scaling, "look_back_period_s": max(own.upscale_s, SHORTEST)}}
    if own.per_node is not None:
        options["max_replicas_per_node"] = own.per_node
    deployment = serve.deployment(
        _replica(own, server, engine),
        name="asterism",
        ray_actor_options={"num_cpus": own.cpus, "num_gpus": own.gpus},
        max_ongoing_requests=server.most_jobs + SPARE,
        graceful_shutdown_timeout_s=server.drain_s + LAST,
        request_router_config={"request_router_class": Fewest},
        **options,
    )
    return deployment.bind()


def settings_of(args: Mapping[str, Any]) -> tuple[ScaleSettings, ServeSettings, LocalSettings | VllmSettings]:
    """The settings that arguments name, each by its class. Raises UnknownName, and SettingsError for what is Ray's or another engine's."""
    for name, (wrong, mend) in OTHERS.items():
        if name in args:
            raise SettingsError(wrong, met=f"{name}={args[name]}", mend=mend)
    server = ServeSettings(**_of(ServeSettings, args))
    kind = LocalSettings if server.engine == "local" else VllmSettings
    known = {name for cls in (ScaleSettings, ServeSettings, kind) for name in cls.model_fields if name not in OTHERS}
    for name in args:
        if name not in known:
            raise UnknownName(f"setting with the {server.engine} engine", name, known)
    return ScaleSettings(**_of(ScaleSettings, args)), server, kind(**_of(kind, args))


def _of(cls: type[Settings], args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name in cls.model_fields}


def _replica(own: ScaleSettings, server: ServeSettings, engine: LocalSettings | VllmSettings) -> Any:
    """The class of a replica, whose application is built where the replica runs."""

    def build() -> FastAPI:
        return replica_app(own, server, engine, name_of_replica())

    return serve.ingress(build)(Replica)


class Replica:
    """One server. Ray asks it whether it is well, and replaces it when it is not."""

    app: FastAPI

    async def check_health(self) -> None:
        """Raises while the engine cannot be started, and once it has died: Ray starts another replica then."""
        await self.app.state.up.wait()
        if self.app.state.failure is not None:
            raise self.app.state.failure
        self.app.state.asking.alive()
        self.app.state.looking = asyncio.ensure_future(self.app.state.following.current())


def replica_app(own: ScaleSettings, server: ServeSettings, engine: Any, name: str, *, made: Callable[..., Any] | None = None) -> FastAPI:
    """The API of one replica over the library's files, its changes kept in step with the other replicas'.

    `name` is told with every answer. `made` makes the engine, as `asterism.serve.engines.engine_of` does.
    """
    import torch

    from asterism.constellation.index import FOLDER, Constellation
    from asterism.models.library import Library
    from asterism.serve.app import create_app
    from asterism.serve.engines import engine_of
    from asterism.serve.following import Current, Following, marks
    from asterism.serve.security import read_keys
    from asterism.serve.served import Served
    from asterism.serve.server import check_open

    keys = read_keys(own.api_keys)
    check_open("every node", keys=keys, allow_changes=server.allow_changes)
    seen = marks(own.library)
    library = Library.open(own.library, device=own.device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu"))
    constellation = Constellation.load(library.root / FOLDER, library)
    running = (made or engine_of)(server.engine, library, constellation, engine)
    following = Following(running, library.root, seen)
    app = create_app(running, Served.of(library, constellation, server.name), server, keys=keys, changing=following)
    state = app.state
    state.following, state.up, state.failure = following, asyncio.Event(), None

    def started(failure: Exception | None) -> None:
        state.failure = failure
        state.up.set()

    state.started = started
    app.add_middleware(Current, following=following)
    app.add_middleware(Told, name=name)
    return app


class Told:
    """ASGI middleware: every answer says which replica gave it."""

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._header = app, (HEADER, name.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Put the header on the answer."""

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], self._header]}
            await send(message)

        await self._app(scope, receive, named)


class Fewest(FIFOMixin, RequestRouter):
    """Gives a request to the replica with the fewest under way, wherever it is.

    Ray's own router keeps to the proxy's node while a replica there takes requests at all; ours take many more than they run at a time.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[Sequence[RunningReplica]]:
        """All replicas as one rank: Ray takes the one with the shortest queue; between equals the dice decide."""
        return [random.sample(candidate_replicas, len(candidate_replicas))]


def name_of_replica() -> str:
    """NODE/REPLICA, as Ray names them."""
    return f"{get_runtime_context().get_node_id()[:12]}/{serve.get_replica_context().replica_id.unique_id}"
