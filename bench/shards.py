"""`python -m bench shards [--quick]`: two servers that hold half of the users each, against one that holds all.

Requests/s and p99 of /recommend over real HTTP: one process with one and with two threads that answer; two processes
that are asked for their own users alone, for all users at random, and for each other's users alone. The servers (no
broker) and the clients are separate processes on this machine, and take turns. Histories have the maximum length.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch
import uvicorn

from bench.clients import Asked, load, post
from bench.served import NOW_MS, NUM_USERS, examples, versions
from bench.timing import Row, row
from serving.config import ServingConfig
from serving.http.app import build_app
from serving.http.listener import options_of
from serving.process import tune_interpreter
from serving.service import Service
from serving.users.histories import Histories
from serving.versions.manager import WeightsManager
from wire.example_codec import encode_example
from wire.partitioner import partition_of
from wire.status import ServerStatus, encode_status

NUM_PARTITIONS, NUM_ITEMS = 4, 10_000
PROCESSES: dict[str, dict[str, dict[str, Any]]] = {
    "whole": {"one": {}, "two threads": {"num_workers": 2}},
    "first": {"first": {"partitions": "1/2"}},
    "second": {"second": {"partitions": "2/2"}},
}
"""By process: its servers, each on a port of its own."""
CACHES: dict[str, dict[str, Any]] = {"cached": {"cache_versions": 0}, "uncached": {"cache_bytes": 0}}
Ports = dict[tuple[str, str], int]
"""By server and kind of cache."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one load: requests per second, the servers' processor time for one, and the p50 and p99 of the requests'
    times, in milliseconds. Processor time says most on a machine that does other things too."""

    rate: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float


def partition(user: int) -> int:
    """The user's partition."""
    return partition_of(f"u{user}".encode(), NUM_PARTITIONS)


def serve(pipe: Connection, configs: dict[str, dict[str, Any]]) -> None:
    """A process: serves each configuration with either cache, tells the ports, then is told of other servers."""
    torch.set_num_threads(1)
    kept, manager = Histories(10**9), WeightsManager()
    made = {
        (name, cache): Service(ServingConfig(**config, **options), manager, kept, name=name)
        for name, config in configs.items() for cache, options in CACHES.items()
    }  # fmt: skip
    for service in made.values():
        service.shard.place(NUM_PARTITIONS)
        kept.held = None if service.shard.is_whole else service.shard.held
    for example in examples(NUM_ITEMS):
        place = partition(int(example.user[1:]))
        kept.feed(place, encode_example(replace(example, partition=place)))
    manager.stage(next(versions(NUM_ITEMS, taught=True)))
    manager.swap()
    ports = {}
    for which, service in made.items():
        service.histories_ready.set()
        service.placing.known.set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        ports[which] = listener.getsockname()[1]
        running = options_of(build_app(service), service.config)
        threading.Thread(target=uvicorn.Server(running).run, kwargs={"sockets": [listener]}, daemon=True).start()
    tune_interpreter()
    pipe.send(ports)
    while True:
        cache, report = pipe.recv()
        for which, service in made.items():
            if which[1] == cache:
                service.placing.peers.hear(report)


def processor_s(pids: list[int]) -> float:
    """Processor time of some processes so far, in seconds."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


@contextmanager
def servers() -> Iterator[tuple[Ports, list[int]]]:
    """The processes; yields the servers' ports and the processes' ids."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for configs in PROCESSES.values():
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=serve, args=(theirs, configs), daemon=True))
        processes[-1].start()
    try:
        ports: Ports = {which: port for pipe in pipes for which, port in pipe.recv().items()}
        for (name, cache), port in ports.items():
            report = ServerStatus(
                component=name, time_ms=int(time.time() * 1000), num_partitions=NUM_PARTITIONS, epoch=1, number=0,
                partitions=PROCESSES.get(name, {}).get(name, {}).get("partitions", "none"),
                address=f"http://127.0.0.1:{port}",
            )  # fmt: skip
            for pipe in pipes:
                pipe.send((cache, encode_status(report)))
        yield ports, [each.pid for each in processes if each.pid is not None]
    finally:
        for process in processes:
            process.kill()
            process.join()


def cases(ports: Ports, cache: str) -> dict[str, Asked]:
    """Each load: which servers get which requests."""
    request = {user: post("/recommend", msgspec.json.encode({"user": f"u{user}", "timestamp": NOW_MS}))
               for user in range(NUM_USERS)}  # fmt: skip
    everyone = list(request.values())
    even, odd = ([request[user] for user in request if partition(user) % 2 == rest] for rest in (0, 1))
    first, second = ports["first", cache], ports["second", cache]
    return {
        "one process": [(ports["one", cache], everyone)],
        "one process, two threads that answer": [(ports["two threads", cache], everyone)],
        "two processes, each asked for its own users": [(first, even), (second, odd)],
        "two processes, asked at random": [(first, everyone), (second, everyone)],
        "two processes, each asked for the other's users": [(first, odd), (second, even)],
        "the first of two processes, asked for its own users": [(first, even)],
        "the second of two processes, asked for the first's users": [(second, even)],
    }


def measure(ports: Ports, pids: list[int], cache: str, seconds: float, rounds: int) -> tuple[dict[str, Found], int]:
    """By case, the medians over the rounds; and how many requests failed."""
    found: dict[str, list[Found]] = {}
    failures = 0
    for _ in range(rounds):
        for name, asked in cases(ports, cache).items():
            asyncio.run(load(asked, 0.3))
            before_s = processor_s(pids)
            taken, wrong, wall_s = asyncio.run(load(asked, seconds))
            cpu_ms = 1000 * (processor_s(pids) - before_s) / len(taken)
            p50, p99 = np.percentile(taken, [50, 99]) * 1000
            found.setdefault(name, []).append(Found(len(taken) / wall_s, cpu_ms, float(p50), float(p99)))
            failures += wrong
    columns = {name: [median(getattr(one, key) for one in each) for key in Found.__slots__]
               for name, each in found.items()}  # fmt: skip
    return {name: Found(*each) for name, each in columns.items()}, failures


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    rows, failed = [], 0
    with servers() as (ports, pids):
        for cache in CACHES:
            found, failures = measure(ports, pids, cache, 1.0 if quick else 2.0, 3 if quick else 5)
            failed += failures
            for name, each in found.items():
                note = f"p50 {each.p50_ms:.1f} ms, p99 {each.p99_ms:.1f} ms, processor {each.cpu_ms:.2f} ms"
                rows.append(row(f"{cache}: {name}", each.rate, "requests/s", note=note))
    return [*rows, row("requests dropped or refused", float(failed), "requests", 0.0, most=True)]
