"""The clients of load.py, run by locust in a process of its own: each asks questions whose answers are known, and waits as it is told to.

ASTERISM_LOAD names the plan (JSON: questions, the answer of each when it was asked alone); what was seen is written beside it as seen.json.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from load_answers import told
from locust import FastHttpUser, constant, events, task

PLACE = Path(os.environ["ASTERISM_LOAD"])
PLAN = json.loads(PLACE.read_text("utf-8"))
SEEN: dict[str, Any] = {"answers": 0, "tokens": 0, "refused": 0, "left": 0, "retry_missing": 0, "errors": [], "wrong": [], "seconds": []}


class Client(FastHttpUser):
    """Asks one question after another."""

    wait_time = constant(0)
    network_timeout = connection_timeout = 120.0

    @task
    def ask(self) -> None:
        """One question, until it is answered."""
        question = random.choice(PLAN["questions"])
        begun = time.monotonic()
        while (after := self._once(question, begun)) is not None:
            gevent.sleep(after)

    def _once(self, question: dict[str, Any], begun: float) -> float | None:
        """Ask; seconds after which to ask again, if the server said so."""
        given: dict[str, Any] = dict(json=question["body"], name=question["kind"], catch_response=True, stream=question["leaves"])
        with self.client.post(question["path"], **given) as answer:
            if answer.status_code == 429:
                answer.success()
                SEEN["refused"] += 1
                if (after := answer.headers.get("Retry-After")) is None:
                    SEEN["retry_missing"] += 1
                return float(after or 1)
            if answer.status_code != 200:
                SEEN["errors"].append(f"{question['kind']}: {answer.status_code} {answer.error} {(answer.text or '')[:200]}")
                answer.failure("error")
            elif question["leaves"]:
                answer.stream.read(60)  # ... and go, in the middle of the answer
                SEEN["left"] += 1
            elif (found := told(answer.text or "")) != question["answer"]:
                SEEN["wrong"].append(f"{question['kind']}: {found} is not {question['answer']}"[:600])
                answer.failure("wrong answer")
            else:
                SEEN["answers"] += 1
                SEEN["tokens"] += question["tokens"]
                SEEN["seconds"].append(time.monotonic() - begun)
        return None


@events.quitting.add_listener
def _write(environment: Any, **_: Any) -> None:
    (PLACE.parent / "seen.json").write_text(json.dumps(SEEN), "utf-8")
