"""`asterism serve` under the load of many clients, every question with a mixture and draws of its own: is each answer its solo run?

    python benchmarks/load.py [--quick] [--clients 200] [--minutes 3] [--most-jobs 128]

The server is a process of its own; locust's clients (load_client.py) are another. Every question is asked once of the quiet server
first; under load its answer must say the same: texts, ends, shares, tokens. Beyond the queue's bound clients get 429 and come again when
Retry-After says; some leave in the middle of a stream. /health, /metrics and the server's resident memory are read once a second;
memory's slope (Theil-Sen, with its 95 % interval) is that of the last two thirds, when the bounded caches are full. A float64 library of
random weights: then no batch rounds a near tie another way, so that every difference is a fault. Ends with 1 where a check fails.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from common import options, report
from libraries import NAMES, random_library, random_texts
from load_answers import told
from scipy.stats import theilslopes
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from asterism.constellation.index import Constellation
from asterism.core.progress import quiet
from asterism.models.library import Library

HERE, LOG = Path(__file__).parent, "server.log"
SERVER = ("--tails-gb", "0.1", "--trunks-gb", "0.05", "--slots", "32", "--name", "load", "--no-playground", "--device", "cpu")
"""Small caches: they are full long before the end, so that what still grows is a leak."""
LOST, GROWTH = 0.5, 0.02
"""Largest part of the readings that may be missing, and largest growth of memory over the time measured."""
LEAVING = 0.1
"""Largest part of the bound by which the engine may count more: answers whose clients have just left, until its next turn."""
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def main() -> None:
    """Prepare, ask alone, load, compare, print."""
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, help="that ask at one time")
    parser.add_argument("--minutes", type=float, help="of load")
    parser.add_argument("--most-jobs", type=int, help="the server's bound on answers running and waiting")
    given = parser.parse_args()
    clients = given.clients or (12 if given.quick else 200)
    minutes, bound = given.minutes or (0.1 if given.quick else 3.0), given.most_jobs or (6 if given.quick else 128)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        library = prepared(Path(folder) / "library", given.quick)
        with serving(library.root, bound) as (url, process):
            known = [asked_alone(url, question) for question in questions(library, 24 if given.quick else 96)]
            plan.write_text(json.dumps({"questions": known}), "utf-8")
            with Watch(url, process, wait=0.25 if given.quick else 1.0) as watch:
                loaded(plan, url, clients, minutes)
            seen = json.loads((plan.parent / "seen.json").read_text("utf-8"))
            left, log = at_rest(url), (library.root / LOG).read_text("utf-8")
    told_of(seen, watch, left, log, clients, minutes, bound, quick=given.quick)


def prepared(root: Path, small: bool) -> Library:
    """A library of random weights in float64, and its constellation."""
    hidden, blocks = (32, 2) if small else (128, 4)
    with quiet():
        random_library(root, hidden=hidden, blocks=blocks, vocabulary=1024)
        for name in ("generalist", *NAMES):
            AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float64).save_pretrained(root / name)
        library = Library.open(root)
        texts = {name: random_texts(library, 4, shortest=20, longest=40, seed=2 + i) for i, name in enumerate([*library.names, "general"])}
        Constellation.build(library, texts).save()
    return library


def questions(library: Library, count: int) -> list[dict[str, Any]]:
    """Questions of every kind, seeded: how the mixture is found, how tokens are drawn, both endpoints, streams, who leaves."""
    drawn, found = random.Random(7), []
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("evidence", "load", {"top_k": 2}),
        ("evidence", "load", {"renew": 8}),
        ("fast", "load", {"mode": "fast"}),
        ("excluding", "load", {"exclude": [NAMES[0]]}),
        ("top layers", "load", {"layers": 1}),
        ("specialist", f"load:{NAMES[1]}", {}),
        ("base", "load-base", {}),
        ("fixed", "load", {}),
    ]
    for number, prompt in enumerate(random_texts(library, count, shortest=4, longest=60, seed=1)):
        kind, model, extras = ways[number % len(ways)]
        if kind == "fixed":
            first, second = drawn.sample(NAMES, 2)
            share = drawn.randint(1, 8) / 10
            extras = {"mixture": {first: share, second: round(0.9 - share, 1)}}
        sampling = drawn.choice([{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95}, {"temperature": 1.2, "n": 2}])
        body: dict[str, Any] = {"model": model, "seed": number, "max_tokens": drawn.choice([4, 12, 32, 64]), "asterism": extras, **sampling}
        chat, leaves = drawn.random() < 0.3, drawn.random() < 0.05
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        if leaves or drawn.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        found.append({"kind": "leaving" if leaves else kind, "path": path, "body": body, "leaves": leaves})
    return found


@contextmanager
def serving(root: Path, bound: int) -> Iterator[tuple[str, psutil.Process]]:
    """`asterism serve` in a process of its own, on a free port; it must end well when told to stop."""
    command = [sys.executable, "-m", "asterism", "serve", str(root), "--port", "0", "--most-jobs", str(bound), *SERVER]
    with open(root / LOG, "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            yield _ready(process, root / LOG), psutil.Process(process.pid)
            process.terminate()
            if process.wait(60) != 0:
                raise SystemExit(f"the server ended with {process.returncode}: {(root / LOG).read_text('utf-8')[-2000:]}")
        finally:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server tells once it answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        text = log.read_text("utf-8")
        for line in text.splitlines():
            if line.endswith(": ready"):
                return line.removesuffix(": ready")
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text('utf-8')[-2000:]}")


def asked_alone(url: str, question: dict[str, Any]) -> dict[str, Any]:
    """The question with its answer by the quiet server."""
    answer = httpx.post(url + question["path"], json=question["body"], timeout=120)
    if answer.status_code != 200:
        raise SystemExit(f"{question} is answered with {answer.status_code}: {answer.text}")
    found = told(answer.text)
    return {**question, "answer": found, "tokens": found[-1]}


def loaded(plan: Path, url: str, clients: int, minutes: float) -> None:
    """Locust, headless, in its own process."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(HERE / "load_client.py"), "--headless", "--only-summary", "--host", url]
    command += ["--users", str(clients), "--spawn-rate", str(max(clients / 4, 1)), "--run-time", f"{round(60 * minutes)}s"]
    command += ["--stop-timeout", "60", "--exit-code-on-error", "0", "--loglevel", "ERROR"]
    environment = {**os.environ, "ASTERISM_LOAD": str(plan), "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * minutes + 180)
    if done.returncode:
        raise SystemExit(f"locust ended with {done.returncode}: {done.stderr[-2000:]}")


def figures(url: str) -> dict[str, float]:
    """The sums of /metrics by name."""
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics", timeout=10).text.splitlines():
        if line and not line.startswith("#"):
            name = line.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def at_rest(url: str) -> float:
    """Answers that the server still counts as under way, up to ten seconds after the last client has gone."""
    for _ in range(100):
        now = figures(url)
        if not (left := now[RUNNING] + now[WAITING]):
            return 0.0
        time.sleep(0.1)
    return left


@dataclass
class Watch:
    """Reads /metrics and the server's memory while the block runs."""

    url: str
    process: psutil.Process
    wait: float
    inside: list[float] = field(default_factory=list)
    """Answers that the server had let in, as /health tells."""
    queue: list[float] = field(default_factory=list)
    """Answers and readings that ran or waited in the engine, as /metrics tells."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Minutes, MB resident."""
    lost: int = 0

    def __enter__(self) -> Watch:
        self._over, self._begun = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.wait):
            self.memory.append(((time.monotonic() - self._begun) / 60, self.process.memory_info().rss / 1e6))
            try:
                self.inside.append(float(httpx.get(f"{self.url}/health", timeout=10).json()["running"]))
                now = figures(self.url)
                self.queue.append(now[RUNNING] + now[WAITING])
            except httpx.HTTPError:
                self.lost += 1

    def slope(self) -> tuple[float, float, float]:
        """MB a minute over the last two thirds, and its 95 % interval."""
        later = self.memory[len(self.memory) // 3 :]
        found: Any = theilslopes([mb for _, mb in later], [minute for minute, _ in later], 0.95)
        return float(found.slope), float(found.low_slope), float(found.high_slope)


def told_of(seen: dict[str, Any], watch: Watch, left: float, log: str, clients: int, minutes: float, bound: int, *, quick: bool) -> None:
    """The report, and an end with 1 where a check fails."""
    seconds = sorted(seen["seconds"]) or [float("nan")]
    slope, low, high = watch.slope()
    measured = watch.memory[-1][0] - watch.memory[len(watch.memory) // 3][0]
    growth = slope * measured / statistics.median(mb for _, mb in watch.memory)
    metrics: dict[str, float | None] = {"clients": clients, "minutes": minutes, "answers": seen["answers"]}
    metrics |= {"answers_per_s": seen["answers"] / (60 * minutes), "tokens_per_s": seen["tokens"] / (60 * minutes)}
    metrics |= {"wrong": len(seen["wrong"]), "errors": len(seen["errors"]), "refused_429": seen["refused"], "left_mid_stream": seen["left"]}
    metrics |= {"p50_s": statistics.median(seconds), "p95_s": seconds[int(0.95 * (len(seconds) - 1))]}
    inside, queue = max(watch.inside, default=bound + 1.0), max(watch.queue, default=2.0 * bound)
    metrics |= {"queue_bound": bound, "queue_peak": inside, "engine_peak": queue, "left_behind": left}
    metrics |= {"rss_mb": watch.memory[-1][1], "rss_mb_per_min": slope, "rss_mb_per_min_low": low, "rss_mb_per_min_high": high}
    checks = {
        "questions were answered": seen["answers"] > 0,
        "no error but 429": not seen["errors"],
        "every answer is its solo run": not seen["wrong"],
        "every 429 says when to come again": not seen["retry_missing"],
        "more clients than places met 429": seen["refused"] > 0 or clients <= bound,
        "the queue kept its bound": inside <= bound and queue <= bound * (1 + LEAVING) and watch.lost <= LOST * len(watch.memory),
        "nothing was left behind": left == 0,
        "memory is flat": quick or low <= 0 or growth <= GROWTH,
    }
    report(
        "load",
        f"{clients} clients for {minutes:g} minutes",
        ["check", "held"],
        [[name, "yes" if held else "NO"] for name, held in checks.items()],
        metrics,
        notes=[*seen["wrong"][:5], *seen["errors"][:5], f"memory of the server grew by {100 * growth:.2g} % over {measured:.2g} minutes"],
    )
    if not all(checks.values()):
        sys.exit(f"a check failed; the server's log ends:\n{log[-4000:]}")


if __name__ == "__main__":
    main()
