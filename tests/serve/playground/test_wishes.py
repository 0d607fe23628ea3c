"""What a link asks for, and who is asked then."""

from __future__ import annotations

import pytest

from asterism.core.errors import SettingsError
from asterism.serve.playground.wishes import NOBODY, UNIFORM, Wishes, rivals

NAMES = ("medical", "legal", "code")


def test_a_link_brings_back_what_it_was_made_of():
    own = Wishes(text="Is it? <b>&", top_k=2, mode="fast", layers=3, rival="legal", most=64, temperature=0.5, seed=7)
    link = {name: str(value) for name, value in own.model_dump().items()}
    assert Wishes.of_link(link, NAMES, blocks=4) == own


def test_what_a_link_asks_wrongly_is_left_at_its_default():
    link = {
        "text": "x",
        "top_k": "99",
        "mode": "evidense",
        "layers": "77",
        "rival": "leagl",
        "most": "-3",
        "temperature": "hot",
        "more": "1",
    }
    found = Wishes.of_link(link, NAMES, blocks=4)
    assert found == Wishes(text="x", top_k=3, layers=4)
    assert Wishes.of_link({}, NAMES[:2], blocks=4).top_k == 2
    with pytest.raises(SettingsError):
        Wishes(top_k=0)


def test_all_who_answer_get_the_same_prompt_length_and_draws():
    own = Wishes(top_k=2, mode="fast", layers=3, most=9, temperature=0.5, seed=7)
    composed, base, rival = own.questions((1, 2), "lib", NAMES)
    assert [one.model for one in (composed, base, rival)] == ["lib", "lib-base", "lib"]
    assert composed.extras.model_dump(exclude_none=True) == {"top_k": 2, "mode": "fast", "layers": 3}
    assert rival.extras.mixture == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    for one in (composed, base, rival):
        assert (one.tokens, one.usual, one.temperature, one.seed) == ((1, 2), 9, 0.5, 7)
    assert own.changed(rival="legal").questions((1,), "lib", NAMES)[2].model == "lib:legal"
    assert len(own.changed(rival=NOBODY).questions((1,), "lib", NAMES)) == 2
    assert rivals(NAMES) == [UNIFORM, *NAMES, NOBODY]
    assert Wishes().extras().layers == "all"
