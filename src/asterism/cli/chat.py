"""`asterism chat LIBRARY`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.output import line, shares_line
from asterism.cli.places import open_both
from asterism.core.errors import AsterismError, SettingsError, UnknownName
from asterism.serve.talk.settings import TalkSettings

if TYPE_CHECKING:
    from asterism.serve.talk.talk import Talk

HELP = """/who NAME     let one specialist answer; /who generalist, or /who all for the composed model
/top N        keep N specialists
/mode MODE    evidence, fast or nodes
/why          the last mixture, with each candidate's loss on what was read
/new          forget the conversation
/quit         end; so do Ctrl-D, and Ctrl-C where nothing is being answered (there it breaks the answer off)"""


@command(TalkSettings)
def app(library: LIBRARY, *, given: Given):
    """Talk with a library in the terminal: each answer streams under the mixture that the conversation asks for.

    Lines that begin with a slash are commands; /help lists them. From a pipe every line is a turn.
    """
    settings = given.settings(TalkSettings)
    opened, constellation = open_both(library, given)
    from asterism.serve.local.engine import LocalEngine
    from asterism.serve.local.settings import LocalSettings
    from asterism.serve.served import Served
    from asterism.serve.talk.talk import Talk

    engine = LocalEngine(opened, constellation, LocalSettings(slots=1))
    with Talk(engine, Served.of(opened, constellation), settings, seed=given.seed) as talk:
        turns = Chat(talk).run(_lines())
    return {"library": library, "turns": turns, "settings": settings.model_dump(mode="json")}


class Chat:
    """The terminal's side of a conversation."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.turns = talk, []
        self.last: Mapping[str, Any] | None = None

    def run(self, lines: Iterator[str]) -> list[dict[str, Any]]:
        """Answer line after line until the end or /quit; the turns, with their mixtures."""
        if sys.stdin.isatty():
            line(f"{len(self.talk.specialists)} specialists: {', '.join(self.talk.specialists)}. /help lists the commands.")
        for text in lines:
            if not text.strip():
                continue
            try:
                if text.startswith("/"):
                    if self._command(*text[1:].strip().partition(" ")[::2]):
                        break
                else:
                    self._answer(text)
            except AsterismError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
        return self.turns

    def _answer(self, text: str) -> None:
        mixtures: list[Mapping[str, Any]] = []
        answer, whole = "", False
        try:
            with closing(self.talk.say(text)) as told:
                for one in told:
                    if isinstance(one, str):
                        answer += one
                        print(one, end="", flush=True)
                    else:
                        mixtures.append(one)
                        if len(mixtures) == 1:
                            line(f"[{_mixture(one)}]")
            whole = True
        except KeyboardInterrupt:
            print(" …", end="")
        finally:
            print(flush=True)
        for after in mixtures[1:]:
            line(f"[after {after['after']} tokens: {_mixture(after)}]")
        self.last = mixtures[0] if mixtures else None
        self.turns.append({"user": text, "assistant": answer, "who": self.talk.who, "whole": whole, "mixtures": mixtures})

    def _command(self, name: str, value: str) -> bool:
        """Do what a line with a slash says; whether that is to end."""
        known: dict[str, Callable[[str], None]] = {
            "help": lambda _: line(HELP),
            "who": self.talk.choose,
            "top": lambda number: self._set(top_k=_number(number)),
            "mode": lambda mode: self._set(mode=mode),
            "why": lambda _: self._why(),
            "new": lambda _: self.talk.turns.clear(),
            "quit": lambda _: None,
        }
        if name not in known:
            raise UnknownName("command", f"/{name}", [f"/{one}" for one in known])
        known[name](value.strip())
        return name == "quit"

    def _set(self, **values: Any) -> None:
        self.talk.settings = self.talk.settings.changed(**values)

    def _why(self) -> None:
        if self.last is None:
            raise SettingsError("Nothing has been answered yet.", met="/why", mend="say something first")
        losses = self.last.get("losses", {})
        shares = {**self.last["shares"], "generalist": self.last["generalist"]}
        for name, share in sorted(shares.items(), key=lambda item: -item[1]):
            line(f"  {share:4.0%}  {name}" + (f", loss {losses[name]:.3f}" if name in losses else ""))
        line(f"  entropy {self.last['entropy']:.2f} bits; deltas x {self.last['scale']:g}")


def _mixture(told: Mapping[str, Any]) -> str:
    return shares_line(told["shares"], told["generalist"]) if told["shares"] else "the generalist alone"


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError("That is no number.", met=text or "nothing", mend="e.g. /top 2") from None


def _lines() -> Iterator[str]:
    """What is typed, or what comes in a pipe; ended by Ctrl-D and Ctrl-C."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  arrow keys, and what was said before
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeDecodeError:
            print("error: That line is not UTF-8.", file=sys.stderr)
            continue
        yield text
