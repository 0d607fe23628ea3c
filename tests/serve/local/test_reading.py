"""Mixtures chosen with the engine's own weights are the constellation's; one trunk pass serves choosing and answering."""

from __future__ import annotations

import pytest
import torch

from asterism.compose.answering import answer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.models.library import Library
from asterism.serve.jobs import Composition, Job, Sampling, Wish
from tests import tiny
from tests.serve.local.driving import Driver, alone, generated

TEXTS = [text for text, _ in tiny.CROSS[:5]] + ["a", tiny.PROBES["medical"][0], " ".join(tiny.PROBES["code"])]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return tiny.tiny_library(tmp_path_factory.mktemp("reading"), "qwen2", dtype=torch.float64)


@pytest.fixture(scope="module")
def topped(tmp_path_factory) -> Library:
    """Specialists that differ from the generalist in the last two blocks of five alone."""
    folder = tmp_path_factory.mktemp("topped")
    generalist = tiny.tiny_model("gpt2", 0, torch.float64)
    tiny.save(generalist, folder / "generalist")
    for number, name in enumerate(tiny.DOMAINS):
        changed = tiny.perturbed(generalist, 50 + number, 0.2)
        own = dict(changed.named_parameters())
        with torch.no_grad():
            for parameter, tensor in generalist.named_parameters():
                if not parameter.startswith(("transformer.h.3.", "transformer.h.4.")):
                    own[parameter].copy_(tensor)
        tiny.save(changed, folder / name)
    return Library.create(folder, str(folder / "generalist"), {name: folder / name for name in tiny.DOMAINS})


def built(library: Library, **settings) -> Constellation:
    return Constellation.build(library, tiny.tiny_probes(), IndexSettings(**settings))


def ids(library: Library, text: str) -> list[int]:
    return library.tokenizer(text)["input_ids"]


def same(got, want) -> None:
    assert got.specialists == want.specialists
    torch.testing.assert_close(got.weights, want.weights, rtol=0, atol=1e-5)
    assert got.generalist == pytest.approx(want.generalist, abs=1e-5)
    assert got.scale == want.scale
    assert got.evidence == pytest.approx(want.evidence, abs=1e-5)


@pytest.mark.parametrize(
    ("index", "wished"),
    [
        ({}, MixtureSettings()),
        ({}, None),
        ({"max_length": 24, "layer": 1}, MixtureSettings(top_k=2)),
        ({}, MixtureSettings(mode="fast", top_k=4)),
        ({"layer": 0}, MixtureSettings(mode="fast", top_k=1)),
        ({"domain_signatures": True}, MixtureSettings(mode="nodes", top_k=2, signature="domain")),
        ({}, MixtureSettings.paper(top_k=2, per_module=True)),
        ({"noise_site": "weights", "noise": 0.1}, MixtureSettings()),
    ],
)
def test_choices_are_the_constellations(library, index, wished):
    """All modes, several prompts at once, in chunks shorter than they are."""
    constellation = built(library, **index)
    driver = Driver.over(library, constellation, chunk=7)
    found: dict[str, list] = {text: [] for text in TEXTS}
    for text in TEXTS:
        driver.scheduler.choosing.ask(ids(library, text), Wish(wished), found[text].append)
    driver.run()
    for text in TEXTS:
        (choice,) = found[text]
        same(choice.mixture, constellation.mixture(text, wished or MixtureSettings()))
        assert choice.tokens == min(len(ids(library, text)), constellation.settings.max_length, tiny.LENGTH)
        assert choice.seconds > 0


def test_excluded_specialists_are_as_though_they_were_not_there(library):
    constellation = built(library)
    driver = Driver.over(library, constellation)
    for exclude in (("medical",), ("code", "legal")):
        settings = MixtureSettings(top_k=2)
        got = driver.choose(ids(library, TEXTS[0]), Wish(settings, exclude)).mixture
        same(got, constellation.without_domain(*exclude).mixture(TEXTS[0], settings))
    with pytest.raises(UnknownName, match="medical"):
        driver.choose(ids(library, TEXTS[0]), Wish(exclude=("medicine",)))
    with pytest.raises(SettingsError, match="top_k"):
        driver.choose(ids(library, TEXTS[0]), Wish(MixtureSettings(top_k=4), ("code",)))
    with pytest.raises(SettingsError, match="Every specialist"):
        driver.choose(ids(library, TEXTS[0]), Wish(exclude=tiny.DOMAINS))


def test_a_reading_that_fails_leaves_the_others(library):
    constellation = built(library)
    driver = Driver.over(library, constellation)
    forward = driver.scheduler.forward
    chunk, bad = forward.chunk, ids(library, TEXTS[1])

    def spoilt(places, compositions, tokens, start, **more):
        made = chunk(places, compositions, tokens, start, **more)
        for row, own in enumerate(tokens.tolist()):
            if own[: len(bad)] == bad:
                made.final[row] = torch.nan
        return made

    forward.chunk = spoilt
    found: list[list] = [[] for _ in TEXTS]
    for text, told in zip(TEXTS, found, strict=True):
        driver.scheduler.choosing.ask(ids(library, text), Wish(), told.append)
    driver.run()
    assert [isinstance(told[0], DataError) for told in found] == [place == 1 for place in range(len(TEXTS))]


def blocks_run(driver: Driver, library: Library) -> list[int]:
    """Times each block has run, counted from now on, once for each row."""
    counts = [0] * library.anatomy.n_blocks
    for index in range(library.anatomy.n_blocks):
        attention = driver.scheduler.forward.model.get_submodule(f"{library.anatomy.block_path(index)}.{library.anatomy.layout.attention}")

        def count(_module, given, named, index=index):
            counts[index] += (given[0] if given else named["hidden_states"]).shape[0]

        attention.register_forward_pre_hook(count, with_kwargs=True)
    return counts


@pytest.mark.parametrize("mode", ["evidence", "fast"])
def test_one_trunk_pass_serves_choosing_and_answering(topped, mode):
    """Three of five blocks are every specialist's own: they run once over the prompt, in evidence, fingerprint and answer together."""
    constellation = built(topped, layer=2)
    driver = Driver.over(topped, constellation)
    counts, text = blocks_run(driver, topped), TEXTS[0]
    settings = MixtureSettings(mode=mode)
    choice = driver.choose(ids(topped, text), Wish(settings))
    read = {"evidence": [1, 1, 1, 4, 4], "fast": [1, 1, 1, 0, 0]}[mode]
    assert counts == read
    job = Job("a", tuple(ids(topped, text)), Sampling(1), Composition(choice.mixture, CompositionSettings(layers=2)))
    driver.submit(job)
    driver.run()
    assert counts == [*read[:3], read[3] + 1, read[4] + 1]
    assert driver.last("a").cached_tokens == len(job.tokens)
    again = driver.choose(ids(topped, text), Wish(settings))
    assert counts == [*read[:3], read[3] + 1, read[4] + 1]
    same(again.mixture, choice.mixture)
    same(again.mixture, constellation.mixture(text, settings))


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "mistral"])
@pytest.mark.parametrize("layers", [1, 2])
def test_answers_on_a_known_trunk_are_the_same(kinds, family, layers):
    """Prompts longer and shorter than what was read, several together, mixed on the last blocks alone."""
    library = kinds(family)
    index = Constellation.build(library, {name: list(texts) for name, texts in zip(library.names, tiny.PROBES.values(), strict=False)},
                                IndexSettings(max_length=24))  # fmt: skip
    driver = Driver.over(library, index, chunk=40)
    jobs = []
    for place, text in enumerate([*TEXTS[:5], TEXTS[-1][:100]]):
        mixture = driver.choose(ids(library, text), Wish()).mixture
        jobs.append(Job(str(place), tuple(ids(library, text)), Sampling(5), Composition(mixture, CompositionSettings(layers=layers))))
    jobs.append(Job("base", jobs[0].tokens, Sampling(5)))
    for one in jobs:
        driver.submit(one)
    driver.run()
    for one in jobs:
        assert driver.answer(one.id) == generated(library, one)
        assert driver.last(one.id).cached_tokens == min(len(one.tokens), 24)


def test_trunks_stay_within_their_bytes(library):
    driver = Driver.over(library, built(library), trunks_gb=2e-4)
    kept = 0
    for text in TEXTS * 2:
        driver.choose(ids(library, text))
        assert driver.scheduler.choosing.trunks.nbytes <= 2e5
        kept = max(kept, len(driver.scheduler.choosing.trunks))
    assert 1 < kept < len(TEXTS)
    none = Driver.over(library, built(library), trunks_gb=0)
    none.choose(ids(library, TEXTS[0]))
    assert len(none.scheduler.choosing.trunks) == 0


def test_long_answers_are_what_generate_writes_with_renewals(library):
    """`asterism generate` renews mixtures; the engine's answers are its, whoever stands beside them."""
    constellation, texts = built(library, max_length=30), TEXTS[:3]
    want = answer(library, constellation, texts[:1], max_new_tokens=20, renew=6) + answer(
        library, constellation, texts[1:], max_new_tokens=20, renew=6
    )
    ends = frozenset({library.tokenizer.eos_token_id})
    driver = Driver.over(library, constellation)
    jobs = []
    for place, text in enumerate(texts):
        mixture = driver.choose(ids(library, text)).mixture
        jobs.append(Job(str(place), tuple(ids(library, text)), Sampling(20, ends=ends), Composition(mixture), renew=6))
        driver.submit(jobs[-1])
        driver.run(5)
    driver.run()
    for one, wanted in zip(jobs, want, strict=True):
        assert library.tokenizer.decode(driver.answer(one.id), skip_special_tokens=True) == wanted.text
        renewals = driver.renewals(one.id)
        assert len(renewals) == (len(driver.answer(one.id)) - 1) // 6
        same(renewals[-1].composition.mixture, wanted.mixture)
    fixed = alone(library, Job("a", jobs[0].tokens, jobs[0].sampling, jobs[0].composition))
    assert fixed != driver.answer("0")


def test_a_library_that_changes_fails_no_reading_and_no_renewal(tmp_path):
    """Specialists go while prompts are read for a choice and for a renewal: both go on with those that are left."""
    library = tiny.tiny_library(tmp_path, "gpt2", dtype=torch.float64)
    constellation = built(library)
    driver = Driver.over(library, constellation, chunk=8)
    mixture = driver.choose(ids(library, TEXTS[0])).mixture
    wish = Wish(MixtureSettings(top_k=3), ("science",))
    driver.submit(Job("a", tuple(ids(library, TEXTS[0])), Sampling(30), Composition(mixture), wish, renew=4))
    found: list = []
    driver.scheduler.choosing.ask(ids(library, TEXTS[1]), Wish(), found.append)
    while not driver.scheduler.choosing.readings:
        driver.scheduler.turn()
    smaller = constellation.without_domain("science", "legal")
    for name in ("science", "legal"):
        driver.scheduler.remove(name, smaller)
    driver.run()
    same(found[0].mixture, smaller.mixture(TEXTS[1], MixtureSettings(top_k=2)))
    assert len(driver.answer("a")) == 30
    assert len(driver.renewals("a")) == 7
    assert set(driver.renewals("a")[-1].composition.mixture.specialists) == {"medical", "code"}
