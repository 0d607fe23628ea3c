"""Which compositions are materialised: few live ones, within memory, after some patience; never where it is all the same."""

from __future__ import annotations

from typing import Any

import pytest

from asterism.serve.local.policy import PATIENCE, ROW, ExecutionSettings, Policy


class Asked:
    """A composition that reads one GB of each of some specialists, and whose tail takes one."""

    def __init__(self, *names: str) -> None:
        self.reads = dict.fromkeys(names, 10**9)


def policy(known: set | None = None, row: float = ROW, **settings: Any) -> Policy:
    return Policy(ExecutionSettings(**settings), lambda bound: 10**9, lambda bound: known is None or bound in known, row)


def several(count: int, *names: str, rows: int = 1) -> dict[Any, int]:
    return {Asked(*names): rows for _ in range(count)}


@pytest.mark.parametrize(("row", "most"), [(0.125, 7), (ROW, 4), (0.0, 3)])
def test_decoding_crosses_over_where_mixing_reads_less(row, most):
    """16 rows, each of three of four specialists."""
    threes = ("abc", "abd", "acd", "bcd")
    found = {}
    for count in (1, 2, 3, 4, 7, 8, 12, 16):
        live: dict[Any, int] = {Asked(*threes[number % 4]): 16 // count for number in range(count)}
        found[count] = len(policy(row=row, tails_gb=100).decode(live))
    assert found == {count: count if count <= most else 0 for count in found}, found
    assert len(policy(row=row, tails_gb=100).decode(several(9, *map(str, range(20))))) == 9


def test_a_specialist_alone_is_never_built():
    own, live = policy(set()), several(2, "a")
    assert not own.decode(live)
    assert not own.prefill(live, {})


def test_the_composition_of_many_rows_is_built_beside_those_of_few():
    own = policy(tails_gb=100)
    much: Any = Asked("a", "b", "c")
    live = several(5, "d", "e", "f")
    assert own.decode({**live, much: 10}) == {much}


def test_no_more_tails_than_memory():
    apart: dict[Any, int] = {Asked(*(f"{name}{number}" for name in "abc")): 1 for number in range(3)}
    assert [len(policy(tails_gb=size).decode(apart)) for size in (0.5, 1.5, 2.5, 3.5)] == [0, 1, 2, 3]
    assert not policy(tails_gb=0).decode(several(1, "a", "b"))


def test_amid_answers_a_tail_is_built_after_some_steps_and_one_at_a_time():
    known: set[Any] = set()
    own, live = policy(known), several(2, "a", "b", "c")
    for _ in range(PATIENCE):
        assert not own.decode(live)
    for count in (1, 2):
        chosen = own.decode(live)
        while len(chosen) < count:
            chosen = own.decode(live)
        assert len(chosen) == count
        known |= chosen


def test_a_prompt_is_worth_a_tail_where_its_answer_will_use_it():
    own, live = policy(set(), tails_gb=100), several(1, "a", "b", "c")
    assert own.prefill(live, {}) == set(live)
    assert not own.prefill(live, several(8, "a", "b", "c"))
    assert policy(None).prefill(live, several(8, "a", "b", "c")) == set(live)  # it has one already


@pytest.mark.parametrize(("way", "count"), [("mixed", 0), ("materialised", 6)])
def test_a_fixed_way_is_kept(way, count):
    own, live = policy(set(), execution=way), several(6, "a", "b")
    assert len(own.decode(live)) == len(own.prefill(live, {})) == count
