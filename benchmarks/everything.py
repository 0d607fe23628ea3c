"""Run every benchmark, one process each, and keep their last lines in results.json beside this file.

python benchmarks/everything.py [--quick]     (--quick only shows that they run: nothing is kept)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import options

HERE = Path(__file__).parent
NAMES = ("startup", "compose", "fingerprint", "mixture", "index", "evaluate")


def main() -> None:
    """Run them in order, stop at the first that fails."""
    quick = options(__doc__).parse_args().quick
    kept = []
    for name in NAMES:
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        kept.append(json.loads(done.stdout.splitlines()[-1]))
    if not quick:
        (HERE / "results.json").write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
