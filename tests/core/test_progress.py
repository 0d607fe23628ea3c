"""One bar: on a terminal it counts, rates and ends; without one, or under `quiet`, it is silent."""

from __future__ import annotations

import re

import pytest

from asterism.core.progress import counting, is_quiet, quiet, track


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with quiet(False):
        yield


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_items_pass_through_in_order():
    assert list(track(iter("abc"), "letters")) == ["a", "b", "c"]
    with quiet(False):
        assert list(track([3, 1, 2], "numbers")) == [3, 1, 2]


def test_a_terminal_sees_count_rate_and_time_left(terminal, capfd):
    assert sum(track(range(30), "adding")) == 435
    out, shown = capfd.readouterr()
    assert out == ""
    assert "adding" in shown
    assert "30/30" in plain(shown)
    assert "/s" in plain(shown)
    assert "left" in plain(shown)


def test_a_bar_by_hand_and_an_unknown_total(terminal, capfd):
    with counting("tokens", None) as advance:
        advance(5)
        advance()
    assert "6/?" in plain(capfd.readouterr().err)


def test_an_error_ends_the_bar_and_passes(terminal, capfd):
    with pytest.raises(KeyError), counting("steps", 3):
        raise KeyError
    assert capfd.readouterr().err.endswith("\x1b[?25h")  # the cursor is shown again


def test_silence(capfd, monkeypatch):
    with quiet(False):
        list(track(range(3), "no terminal"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with quiet():
        list(track(range(3), "quiet"))
        with counting("quiet", 2) as advance:
            advance()
    assert capfd.readouterr() == ("", "")


def test_quiet_nests_and_ends():
    with quiet(False):
        assert not is_quiet()
        with quiet():
            assert is_quiet()
            with quiet(False):
                assert not is_quiet()
            assert is_quiet()
        assert not is_quiet()
        with pytest.raises(RuntimeError), quiet():
            raise RuntimeError
        assert not is_quiet()
