"""What the experiments' commands share: options that mean the same in each, and errors told without a traceback."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asterism.core.errors import AsterismError

OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "action": "append", "default": [], "help": "folder of text; may be given more than once"},
    "--scale": {"default": "lab", "help": "ladder: lab, the numbers in the docs; pocket, does it run; paper, its own"},
    "--only": {"action": "append", "metavar": "RUNG", "help": "this rung alone; may be given more than once"},
    "--runs": {"type": Path, "default": Path("runs/constellation"), "help": "where the ladder keeps its libraries"},
    "--results": {"type": Path, "help": "folder where results.json is written"},
    "--seeds": {"type": int, "nargs": "+", "default": [42, 43, 44]},
    "--threads": {"type": int, "default": torch.get_num_threads()},
}


def parser(about: str | None, *options: str) -> argparse.ArgumentParser:
    """A parser with some of OPTIONS; a command adds what it alone has."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in options:
        made.add_argument(name, **OPTIONS[name])
    return made


def ended(main: Callable[[], None]) -> None:
    """Run a command; an error that tells its mend ends it with exit code 2."""
    try:
        main()
    except AsterismError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def machine() -> dict[str, object]:
    """The kind of machine that ran this."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    known: dict[str, object] = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return known | {"system": platform.system(), "python": platform.python_version(), "torch": torch.__version__}
