"""Which probes are drawn."""

from __future__ import annotations

import pytest

from asterism.core.corpus import Corpus, Probe
from asterism.core.errors import DataError, UnknownName
from asterism.evaluate.probes import draw
from asterism.evaluate.settings import EvaluationSettings

DOMAINS = ("medical", "legal")


def corpus(**more) -> Corpus:
    heldout = {name: [Probe(f"{name}-{i}", "some words here", (name,)) for i in range(9)] for name in (*DOMAINS, "general")}
    cross = [Probe(f"x-{i}", "some words here", ("legal", "medical")) for i in range(9)]
    return Corpus(heldout={**heldout, **more}, cross=cross)


def test_as_many_as_asked_of_each_group_and_no_general_ones():
    drawn = draw(corpus(), DOMAINS, EvaluationSettings(single_per_domain=4, cross_per_pair=3))
    assert [sum(probe.group == group for probe in drawn) for group in ("medical", "legal", "medical-legal")] == [4, 4, 3]
    assert len(drawn) == 11


def test_the_draw_depends_on_the_seed_alone():
    draws = [[probe.id for probe in draw(corpus(), DOMAINS, EvaluationSettings(seed=s, single_per_domain=4))] for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("where", ["heldout", "cross"])
def test_a_domain_without_a_specialist_is_named_not_dropped(where):
    made = corpus(medikal=[Probe("p", "some words here", ("medikal",))]) if where == "heldout" else corpus()
    if where == "cross":
        made.cross.append(Probe("p", "some words here", ("medikal", "legal")))
    with pytest.raises(UnknownName, match="did you mean 'medical'"):
        draw(made, DOMAINS, EvaluationSettings())


def test_a_corpus_can_be_held_to_the_librarys_domains():
    made = corpus(medikal=[Probe("p", "some words here", ("medikal",))])
    made.cross.append(Probe("p", "some words here", ("medikal", "legal")))
    kept = made.only(DOMAINS)
    assert set(kept.heldout) == {*DOMAINS, "general"}
    assert len(kept.cross) == 9
    assert draw(kept, DOMAINS, EvaluationSettings()) == draw(corpus(), DOMAINS, EvaluationSettings())


def test_nothing_to_draw_is_told():
    with pytest.raises(DataError, match="no probe to evaluate on"):
        draw(Corpus(), DOMAINS, EvaluationSettings())
