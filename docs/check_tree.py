"""python docs/check_tree.py: nothing generated is committed, and no committed file is large."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = re.compile(
    r"(^|/)(__pycache__|\.venv|build|dist|site|runs|[^/]+\.egg-info|\.[a-z_]+_cache)/|\.(pyc|so|safetensors|bin|pt|pth)$"
)
LARGEST = 4_000_000  # bytes; the results of six rungs are the largest thing that belongs here


def main() -> int:
    """List what does not belong; 1 when there is any."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        print("not a git checkout: tree not checked")
        return 0
    files = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    wrong = [f"{name}: generated" for name in files if GENERATED.search(name)]
    wrong += [f"{name}: larger than {LARGEST} bytes" for name in files if (ROOT / name).stat().st_size > LARGEST]
    print("\n".join(wrong) or f"{len(files)} files, none generated")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
