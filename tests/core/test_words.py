"""How figures are worded."""

from asterism.core.words import counted, span


def test_one_is_no_plural():
    assert [counted(count, "text") for count in (0, 1, 2, 1200)] == ["0 texts", "1 text", "2 texts", "1,200 texts"]


def test_an_interval_that_is_not_there_is_a_dash():
    assert span(0.25, 0.5, ".1f") == "0.2 to 0.5"
    assert span(None, None) == span(1.0, None) == "–"
