"""Every error asterism raises on purpose: what is wrong, what was met, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 20
"""Known names that an UnknownName lists."""


class AsterismError(Exception):
    """What is wrong, what was met, how to mend it: all three, always."""

    def __init__(self, wrong: str, *, met: object, mend: str) -> None:
        super().__init__(f"{wrong}\n  met:  {met}\n  mend: {mend}")
        self.wrong, self.met, self.mend = wrong, met, mend


class SettingsError(AsterismError, ValueError):
    """A setting outside its range, of the wrong type, or unknown."""


class DataError(AsterismError, ValueError):
    """A text, probe or row that cannot be used."""


class StorageError(AsterismError):
    """A file or folder that is missing, damaged, in the way, or could not be written."""


class MismatchError(AsterismError, ValueError):
    """Models, tokenizers, adapters or tensors that do not belong together."""


class StaleError(AsterismError):
    """An artefact made from something that has changed since."""


class UnsupportedError(AsterismError):
    """An architecture, adapter or request that asterism cannot represent exactly."""


class UnknownName(AsterismError, LookupError):  # noqa: N818
    """A name that is not among the known ones; the nearest known name is offered, however it is capitalised."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        plain = {each.casefold(): each for each in names}
        if near := get_close_matches(str(name).casefold(), plain, n=1):
            mend = f"did you mean {plain[near[0]]!r}?"
        elif names:
            mend = "choose from " + ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        else:
            mend = f"there is no {kind} yet"
        super().__init__(f"No such {kind}.", met=repr(name), mend=mend)
