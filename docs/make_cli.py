"""python docs/make_cli.py [--check]: write docs/cli.md from the real --help of every command, or say that it is not in step."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}

from asterism.cli.app import COMMANDS, main

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Written by `docs/make_cli.py` from each command's `--help`; `make docs` renews it, `make check` holds it in step.

Exit codes: 0 done; 2 an error, told in three lines on stderr (what is wrong, what was met, how to mend it); 130 interrupted.
`asterism --install-completion` sets up completion for your shell.
"""


def help_of(*command: str) -> str:
    """What `asterism COMMAND --help` prints."""
    told = StringIO()
    with redirect_stdout(told):
        try:
            main([*command, "--help"])
        except SystemExit as ended:
            if ended.code:
                raise
    return "\n".join(line.rstrip() for line in told.getvalue().strip().splitlines())


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## asterism\n", f"```text\n{help_of()}\n```\n"]
    for name in COMMANDS:
        for words in ((name,), *((name, inside) for inside in inside_of(name))):
            parts += [f"## asterism {' '.join(words)}\n", f"```text\n{help_of(*words)}\n```\n"]
    return "\n".join(parts)


def inside_of(name: str) -> list[str]:
    """The commands of a group; none of a command."""
    found = import_module(f"asterism.cli.{name.replace('-', '_')}").app.registered_commands
    return [str(command.name) for command in found] if len(found) > 1 else []


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != page():
        sys.exit("docs/cli.md is not in step with the command line: run `make docs`")
