"""How long `asterism --help` and `import asterism` take, as whole processes.

python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from common import interleaved, options, report

LIMIT_S = 0.5


def main() -> None:
    """Measure, print."""
    repetitions = 3 if options(__doc__).parse_args().quick else 11
    ways = {
        "bare": [sys.executable, "-c", ""],
        "import": [sys.executable, "-c", "import asterism"],
        "help": [sys.executable, "-m", "asterism", "--help"],
    }
    rivals = {name: lambda command=command: subprocess.run(command, check=True, capture_output=True) for name, command in ways.items()}
    seconds = {name: statistics.median(values) for name, values in interleaved(rivals, repetitions, warm=2).items()}
    rows = [[" ".join(ways[name][1:]) or "python", value] for name, value in seconds.items()]
    metrics = {"help_s": seconds["help"], "import_s": seconds["import"], "python_s": seconds["bare"]}
    report(
        "startup",
        "Starting up (median of whole processes)",
        ["command", "seconds"],
        rows,
        metrics,
        notes=[f"limit for --help: {LIMIT_S} s"],
    )


if __name__ == "__main__":
    main()
