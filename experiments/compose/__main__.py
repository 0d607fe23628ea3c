"""python -m experiments.compose --data DIR [--data DIR2] [--scale lab|pocket] [--runs runs/compose]"""

from __future__ import annotations

import argparse
from pathlib import Path

from asterism.core.corpus import read_corpus
from experiments.compose.models import SCALES, build_libraries


def main() -> None:
    """Train, index, diagnose, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of text; may be given more than once")
    parser.add_argument("--scale", choices=SCALES, default="lab")
    parser.add_argument("--runs", type=Path, default=Path("runs/compose"), help="where trained models are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    given = parser.parse_args()
    corpus = read_corpus(*given.data)
    build_libraries(corpus, given.runs / given.scale, given.scale, tuple(given.seeds))


if __name__ == "__main__":
    main()
