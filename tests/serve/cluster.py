"""The server on a Ray cluster of two nodes, all on this machine: python cluster.py QUESTIONS.json, which says what to ask.

Prints what was seen as one JSON line. A program of its own: Ray's processes must not outlive the test, nor its warnings reach it.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import ray
from ray import serve
from ray.cluster_utils import Cluster

from asterism.serve.scale import app

PATIENCE = 150
BEGUN = time.monotonic()
KEY = "a-key-for-the-test"


@contextmanager
def two_nodes() -> Iterator[str]:
    """A cluster with room for one replica a node, and one proxy; its address."""
    node: dict[str, Any] = dict(num_cpus=1, object_store_memory=80 * 2**20, include_log_monitor=False)
    cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False))
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()
        cluster.shutdown()


class Asker:
    """Asks questions whose answers are known, and counts who answered, and what was wrong."""

    def __init__(self, url: str, questions: list[dict[str, Any]]) -> None:
        self.url, self.questions = url, questions
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=8)
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        self.wrong: list[str] = []
        self.answered: Counter[str] = Counter()

    def ask(self, number: int) -> str:
        """One question; the replica that answered."""
        question = self.questions[number % len(self.questions)]
        raw = self.client.completions.with_raw_response.create(**question["body"])
        replica = raw.headers["x-asterism-replica"]
        text = raw.parse().choices[0].text
        if text != question["text"]:
            self.wrong.append(f"{replica}: {question['body']}: {text!r}")
        self.answered[replica] += 1
        return replica

    def until(self, true: Callable[[set[str]], bool], what: str) -> set[str]:
        """Keep asking, six at a time, until those who answered the last round are as wished."""
        end = time.monotonic() + PATIENCE
        with ThreadPoolExecutor(6) as pool:
            while True:
                seen = set(pool.map(self.ask, range(6)))
                if true(seen):
                    break
                if time.monotonic() > end:
                    raise TimeoutError(f"{what}: only {seen}")
                time.sleep(0.8)  # for the processes that start
        print(f"{time.monotonic() - BEGUN:5.1f} s: {what}", file=sys.stderr, flush=True)
        return seen

    def each(self, replicas: set[str], get: Callable[[httpx.Client], httpx.Response]) -> dict[str, httpx.Response]:
        """The same request until every replica has answered it once: the first answer of each."""
        found: dict[str, httpx.Response] = {}
        for _ in range(200):
            answer = get(self.http)
            found.setdefault(answer.headers["x-asterism-replica"], answer)
            if found.keys() >= replicas:
                return found
        raise TimeoutError(f"only {set(found)} answered")


def models(asker: Asker, replicas: set[str]) -> dict[str, list[str]]:
    """The models that each replica knows."""
    found = asker.each(replicas, lambda http: http.get("/v1/models"))
    return {name: [one["id"] for one in answer.json()["data"]] for name, answer in found.items()}


def aborted(asker: Asker, replicas: set[str], body: dict[str, Any]) -> bool:
    """Whether a client who goes in the middle of a stream is noticed, behind Ray's proxy too."""
    for _ in range(10):
        with asker.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            next(answer.iter_lines())
        time.sleep(0.5)
        pages = asker.each(replicas, lambda http: http.get("/metrics")).values()
        lines = [line for page in pages for line in page.text.splitlines() if 'request_success_total{finished_reason="abort"' in line]
        if any(float(line.split()[-1]) > 0 for line in lines):
            return True
    return False


def kill(replica: str) -> None:
    """End a replica's process, as a machine that fails would."""
    name = replica.partition("/")[2]
    ray.kill(ray.get_actor(f"SERVE_REPLICA::default#asterism#{name}", namespace="serve"), no_restart=False)


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """The whole story."""
    with two_nodes() as url:
        serve.run(app({**plan["args"], "replicas": 1, "most_replicas": 2, "load": 0.05, "upscale_s": 0, "per_node": 1, "cpus": 1}))
        asker = Asker(url, plan["questions"])
        first = asker.until(lambda seen: len(seen) == 1, "one replica answers")
        both = asker.until(lambda seen: len(seen) == 2, "the load has brought a second one")
        gone = aborted(asker, both, plan["long"])
        added = asker.http.post("/v1/asterism/specialists", json=plan["specialist"])
        after = models(asker, both)
        asker.questions = plan["later"]
        asker.until(lambda seen: len(seen) == 2, "both answer with the specialist that one of them was given")
        removed = asker.http.delete(f"/v1/asterism/specialists/{plan['specialist']['name']}")
        last = models(asker, both)
        asker.questions = plan["questions"]
        killed = sorted(both)[0]
        kill(killed)
        replaced = asker.until(lambda seen: len(seen) == 2 and killed not in seen, "the one that was killed is replaced")
    told = {"first": sorted(first), "both": sorted(both), "killed": killed, "replaced": sorted(replaced), "gone": gone}
    told |= {"added": added.status_code, "removed": removed.status_code, "after": after, "last": last}
    return told | {"wrong": asker.wrong, "answered": sum(asker.answered.values()), "seconds": time.monotonic() - BEGUN}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text("utf-8")))), flush=True)
