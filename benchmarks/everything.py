"""Run every benchmark, one process each, and keep their last lines in results.json beside this file.

python benchmarks/everything.py [--quick] [--only NAME]     (--quick only shows that they run: nothing is kept)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import options

HERE = Path(__file__).parent
NAMES = ("startup", "compose", "fingerprint", "mixture", "index", "evaluate", "merge", "route", "cka", "fuse", "serve", "load")


def main() -> None:
    """Run them in order, stop at the first that fails."""
    parser = options(__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, help="run this one, and keep what is known of the others")
    given = parser.parse_args()
    quick, place = given.quick, HERE / "results.json"
    known = {each["name"]: each for each in json.loads(place.read_text("utf-8"))} if given.only and place.exists() else {}
    for name in given.only or NAMES:
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        known[name] = json.loads(done.stdout.splitlines()[-1])
    if not quick:
        place.write_text(json.dumps([known[name] for name in NAMES if name in known], indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
