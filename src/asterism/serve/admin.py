"""What the API tells of the library, and how requests change it: models, explanations, specialists, saved compositions."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import Field, model_validator

from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import SettingsError, StorageError, UnknownName
from asterism.models.library import check_name
from asterism.serve import schema
from asterism.serve.asking import Asking
from asterism.serve.choosing import OF, SAVED, model_ids, way
from asterism.serve.errors import Refused
from asterism.serve.replies import ERRORS, Model, Models, Removed, SavedList, SavedOne, SpecialistList, SpecialistOne
from asterism.serve.saved import Saved
from asterism.serve.streaming import JSON

OWNER = "asterism"


class ExplainRequest(schema.Body):
    """`POST /v1/asterism/explain`."""

    text: Annotated[schema.Text, Field(min_length=1)]
    """What to explain."""
    top_k: schema.Size | None = None
    """Specialists kept; 3 by default, or as many as there are."""
    mode: schema.Mode | None = None
    """How they are weighed; `evidence` by default."""


class SpecialistRequest(schema.Body):
    """`POST /v1/asterism/specialists`."""

    name: schema.Name
    """What the specialist will be called."""
    source: Annotated[schema.Text, Field(min_length=1, max_length=4096)]
    """Its folder on the server, or its Hub id."""
    probes: Annotated[list[Annotated[schema.Text, Field(min_length=1)]], Field(min_length=1)]
    """Texts of its domain, for the constellation."""


class SaveRequest(schema.Body):
    """`POST /v1/asterism/compositions`: a fixed mixture, or the one of a text."""

    label: schema.Name
    """The composition becomes the model NAME@label."""
    text: Annotated[schema.Text, Field(min_length=1)] | None = None
    """Save the mixture that this text asks for."""
    asterism: schema.Extras = schema.Extras()
    """How it is chosen and where it acts; or `mixture`, a fixed one."""
    replace: schema.Flag = False
    """Take the place of an earlier composition of that label."""

    @model_validator(mode="after")
    def _of_one_thing(self) -> SaveRequest:
        if (self.text is None) == (self.asterism.mixture is None):
            raise ValueError("give a text, or asterism.mixture")
        if self.asterism.renew is not None:
            raise ValueError("a saved composition is never renewed: leave asterism.renew out")
        return self


def routes(asking: Asking, saved: Saved, changing: AbstractAsyncContextManager[Any]) -> APIRouter:
    """The routes, over what answers them; `changing` lets in one change at a time."""
    router = APIRouter(responses=ERRORS)
    served, engine = asking.served, asking.engine

    def allowed() -> None:
        if not asking.settings.allow_changes:
            mend = "start the server with --allow-changes"
            raise Refused(403, "Changes over the API are off.", met="a request that changes the library", mend=mend)
        asking.open()

    def model(id: str) -> dict[str, Any]:
        told = {"id": id, "object": "model", "created": served.created, "owned_by": OWNER, "root": served.name}
        return told | {"parent": None if id == served.name else served.name, "max_model_len": engine.facts.room}

    @router.get("/v1/models", response_model=Models)
    async def models() -> Response:
        """Every model that can be asked."""
        asking.open()
        return JSON({"object": "list", "data": [model(id) for id in _ids()]})

    @router.get("/v1/models/{model_id:path}", response_model=Model)
    async def one_model(model_id: str) -> Response:
        """One of them."""
        asking.open()
        if model_id not in _ids():
            raise Refused.of(UnknownName("model", model_id, _ids()), 404, code="model_not_found", param="model")
        return JSON(model(model_id))

    @router.post("/v1/asterism/explain", response_model=dict[str, Any])
    async def explain(body: ExplainRequest) -> Response:
        """What a text asks of the library: coefficients, evidence, shares, and who is most active in which block."""
        asking.open()
        given = {name: value for name in ("top_k", "mode") if (value := getattr(body, name)) is not None}
        top_k = min(MixtureSettings().top_k, len(engine.facts.specialists))
        await asking.tokens(body.text)
        return JSON(await engine.explain(body.text, MixtureSettings(**{"top_k": top_k, **given})))

    @router.get("/v1/asterism/specialists", response_model=SpecialistList)
    async def specialists() -> Response:
        """The specialists there are now."""
        asking.open()
        return JSON({"object": "list", "data": [specialist(name) for name in engine.facts.specialists]})

    def specialist(name: str) -> dict[str, Any]:
        return {"name": name, "object": "asterism.specialist", "model": f"{served.name}{OF}{name}", "parent": served.name}

    @router.post("/v1/asterism/specialists", status_code=201, response_model=SpecialistOne)
    async def add(body: SpecialistRequest) -> Response:
        """Add a specialist to library, constellation and engine, while answers go on. Off unless --allow-changes."""
        allowed()
        check_name(body.name)
        async with changing:
            if body.name in engine.facts.specialists:
                mend = "choose another name, or remove the old one first"
                raise Refused(409, "A specialist has that name already.", met=repr(body.name), mend=mend)
            try:
                await engine.add(body.name, body.source, list(body.probes))
            except StorageError as error:
                raise Refused.of(error, 400, param="source") from error
        return JSON(specialist(body.name), 201)

    @router.delete("/v1/asterism/specialists/{name}", response_model=Removed)
    async def remove(name: str) -> Response:
        """Take a specialist out: answers that run with it finish with it. Its files stay. Off unless --allow-changes."""
        allowed()
        async with changing:
            if name in engine.facts.specialists and len(engine.facts.specialists) == 1:
                raise Refused(409, "It is the last specialist.", met=repr(name), mend="add another one first")
            await engine.remove(name)
        return JSON({"name": name, "object": "asterism.specialist", "deleted": True})

    @router.get("/v1/asterism/compositions", response_model=SavedList)
    async def compositions() -> Response:
        """The saved compositions."""
        return JSON({"object": "list", "data": [composition(label) for label in saved.labels()]})

    @router.get("/v1/asterism/compositions/{label}", response_model=SavedOne)
    async def one_composition(label: str) -> Response:
        """One of them."""
        return JSON(composition(label))

    def composition(label: str) -> dict[str, Any]:
        return {"object": "asterism.composition", "model": f"{served.name}{SAVED}{label}", **saved.told(label)}

    @router.post("/v1/asterism/compositions", status_code=201, response_model=SavedOne)
    async def save(body: Annotated[SaveRequest, Body()]) -> Response:
        """Keep a mixture under a label: from then on it is a model of its own. Off unless --allow-changes."""
        allowed()
        asked = way(served.name, body.asterism, served, engine.facts.specialists, saved.recall, renews=True)
        origin: dict[str, Any] = {"mixture": body.asterism.mixture} if body.text is None else {"text": body.text}
        if asked.wish is not None and body.text is not None:
            asked = asked.chosen(await engine.choose(await asking.tokens(body.text), asked.wish))
        if asked.composition is None:
            raise SettingsError("The generalist alone is a model already.", met=body.asterism.mixture, mend=f"ask for {served.name}-base")
        async with changing:
            made = asked.composition
            await asyncio.to_thread(saved.save, body.label, made.mixture, made.settings, origin=origin, replace=body.replace)
        return JSON(composition(body.label), 201)

    @router.delete("/v1/asterism/compositions/{label}", response_model=Removed)
    async def forget(label: str) -> Response:
        """Forget a saved composition. Off unless --allow-changes."""
        allowed()
        saved.remove(label)
        return JSON({"name": label, "object": "asterism.composition", "deleted": True})

    def _ids() -> list[str]:
        return model_ids(served.name, engine.facts.specialists, saved.labels())

    return router
