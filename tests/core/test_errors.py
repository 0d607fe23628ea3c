"""The three lines of every error, and the nearest known name."""

from __future__ import annotations

import pytest

from asterism.core import errors
from asterism.core.errors import AsterismError, DataError, UnknownName


def test_an_error_says_what_was_met_and_how_to_mend_it():
    error = DataError("A row has no text.", met="a.jsonl:3", mend="give it some")
    assert str(error) == "A row has no text.\n  met:  a.jsonl:3\n  mend: give it some"
    assert (error.wrong, error.met, error.mend) == ("A row has no text.", "a.jsonl:3", "give it some")


def test_an_error_cannot_leave_a_part_out():
    with pytest.raises(TypeError):
        DataError("A row has no text.")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "known", "mend"),
    [
        ("medcal", ["legal", "medical"], "did you mean 'medical'?"),
        ("zzz", ["medical", "legal"], "choose from legal, medical"),
        ("zzz", [], "there is no domain yet"),
        ("zzz", [f"d{n:02}" for n in range(23)], "choose from " + ", ".join(f"d{n:02}" for n in range(20)) + " and 3 more"),
        (7, ["7a"], "did you mean '7a'?"),
        ("TIES", ["dare_ties", "ties"], "did you mean 'ties'?"),
        ("lama", ["Llama", "Qwen2"], "did you mean 'Llama'?"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name, known, mend):
    error = UnknownName("domain", name, iter(known))
    assert str(error) == f"No such domain.\n  met:  {name!r}\n  mend: {mend}"


def test_errors_are_caught_as_pythons_own_kinds_too():
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AsterismError)}
    assert len(kinds) == 8
    assert {name for name, kind in kinds.items() if issubclass(kind, ValueError)} == {"SettingsError", "DataError", "MismatchError"}
    assert {name for name, kind in kinds.items() if issubclass(kind, LookupError)} == {"UnknownName"}
