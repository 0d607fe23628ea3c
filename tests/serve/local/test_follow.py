"""Two engines over one library's files: what one changes, the other takes over."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asterism.compose.composer import Composer
from asterism.constellation.index import FOLDER, Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import AsterismError, MismatchError, StorageError, UnknownName
from asterism.models.library import Library
from asterism.serve.jobs import Composition, Job, Sampling, Tokens, Wish
from asterism.serve.local.engine import LocalEngine
from tests import tiny

TEXT = "The nurse recorded"
NEW = ["The star is bright tonight.", "A comet crossed the sky."]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    library = tiny.tiny_library(tmp_path_factory.mktemp("follow") / "library", "gpt2", dtype=torch.float64)
    Constellation.build(library, tiny.tiny_probes()).save()
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2", dtype=torch.float64), 5, 0.2), library.root / "stars")
    return library.root


@pytest.fixture
def root(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "library"))


def engine_on(root: Path) -> LocalEngine:
    library = Library.open(root)
    return LocalEngine(library, Constellation.load(root / FOLDER, library))


def run(root: Path, work: Callable[[LocalEngine, LocalEngine], Awaitable[Any]]) -> Any:
    """`work` with two engines on the same files."""

    async def two() -> Any:
        engines = engine_on(root), engine_on(root)
        await asyncio.gather(*(engine.start() for engine in engines))
        try:
            return await asyncio.wait_for(work(*engines), 60)
        finally:
            await asyncio.gather(*(engine.close() for engine in engines))

    return asyncio.run(two())


def job(engine: LocalEngine, name: str, most: int = 8) -> Job:
    composition = Composition(Mixture.fixed({name: 1.0}, engine.library.anatomy.hidden_size))
    return Job(f"{name}{most}", tuple(engine.library.tokenizer(TEXT)["input_ids"]), Sampling(most), composition)


async def written(engine: LocalEngine, one: Job) -> list[int]:
    return [token.id for event in [e async for e in engine.submit(one)] if isinstance(event, Tokens) for token in event.tokens]


def wanted(root: Path, name: str, most: int = 8) -> list[int]:
    library = Library.open(root)
    ids = library.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    model: Any = Composer(library).materialise(Mixture.fixed({name: 1.0}, library.anatomy.hidden_size))
    return model.generate(ids, max_new_tokens=most, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()


def test_a_specialist_that_another_engine_added_is_chosen_and_answers(root):
    async def work(one, other):
        await one.add("stars", "stars", NEW)
        before = other.facts.specialists
        await other.follow()
        choice = await other.choose(other.library.tokenizer(NEW[0])["input_ids"], Wish())
        return before, other.facts.specialists, await written(other, job(other, "stars")), choice

    before, after, answer, choice = run(root, work)
    assert before == tiny.DOMAINS
    assert after == (*tiny.DOMAINS, "stars")
    assert answer == wanted(root, "stars")
    library = Library.open(root)
    want = Constellation.load(root / FOLDER, library).mixture(NEW[0])
    assert choice.mixture.shares == pytest.approx(want.shares, abs=1e-5)


def test_one_that_went_is_refused_and_who_runs_with_it_goes_on(root):
    async def work(one, other):
        running = asyncio.ensure_future(written(other, job(other, "legal", 60)))
        while not other.stats().running:
            await asyncio.sleep(0.001)
        await one.remove("legal")
        await other.follow()
        with pytest.raises(UnknownName):
            other.submit(job(other, "legal"))
        with pytest.raises(UnknownName):
            await other.choose([5, 6], Wish(exclude=("legal",)))
        return await running, other.facts.specialists

    want = wanted(root, "legal", 60)
    answer, names = run(root, work)
    assert answer == want
    assert names == ("medical", "code", "science")


def test_one_that_came_back_from_elsewhere_answers_with_its_new_weights(root):
    async def work(one, other):
        await one.remove("legal")
        await one.add("legal", "stars", NEW)
        await other.follow()
        return await written(other, job(other, "legal"))

    old = wanted(root, "legal")
    answer = run(root, work)
    assert answer == wanted(root, "legal") != old


def test_another_calibration_is_taken_over(root):
    async def work(_one, other):
        tokens = other.library.tokenizer(TEXT)["input_ids"]
        before = await other.choose(tokens, Wish())
        sharper = other.constellation.calibration.changed(temperature=0.01, probes=("a probe",))
        Constellation.load(root / FOLDER, Library.open(root)).with_calibration(sharper).save()
        await other.follow()
        return before.mixture, (await other.choose(tokens, Wish())).mixture

    before, after = run(root, work)
    library = Library.open(root)
    want = Constellation.load(root / FOLDER, library).mixture(TEXT)
    assert after.shares == pytest.approx(want.shares, abs=1e-5)
    assert after.shares != pytest.approx(before.shares, abs=1e-3)


def test_what_cannot_be_followed_leaves_the_engine_as_it_was(root):
    async def work(one, other):
        constellation = other.constellation
        library = Library.open(root)
        Constellation.build(library, tiny.tiny_probes(), IndexSettings(max_length=7)).save()
        with pytest.raises(MismatchError, match="another way"):
            await other.follow()
        (root / FOLDER / "index.json").unlink()
        with pytest.raises(AsterismError):
            await other.follow()
        (root / "library.json").write_text("{")
        with pytest.raises(StorageError):
            await other.follow()
        assert other.constellation is constellation
        return other.facts.specialists, await written(other, job(other, "code"))

    want = wanted(root, "code")
    assert run(root, work) == (tiny.DOMAINS, want)


def test_a_specialist_whose_weights_are_damaged_is_left_out_and_the_rest_taken_over(root):
    async def work(one, other):
        await one.add("stars", "stars", NEW)
        await one.remove("legal")
        weights = root / "stars" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-8:] = b"\xff" * 8  # NaN in float64
        weights.write_bytes(content)
        with pytest.raises(AsterismError, match="NaN"):
            await other.follow()
        choice = await other.choose([5, 6, 7], Wish())
        return other.facts.specialists, choice.mixture.specialists

    names, chosen = run(root, work)
    assert names == ("medical", "code", "science")
    assert set(chosen) <= set(names)
