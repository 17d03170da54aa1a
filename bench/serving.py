"""How many requests per second one server answers, and how fast: with and without cached keys and values, with and
without versions being swapped, and what a swap costs.

The server (real HTTP, no broker) and the clients are separate processes on this machine. Configurations take turns.
Histories have the maximum length (200 interactions), and the model its default size.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch
import uvicorn

from bench.bad_requests import bad_requests
from bench.clients import load, post
from bench.served import NOW_MS, NUM_DIRTY, NUM_USERS, START_MS, histories, versions
from bench.timing import Row, row, take_turns
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.config import ServingConfig
from serving.http.app import build_app
from serving.http.listener import options_of
from serving.model.tables import TableSet
from serving.process import tune_interpreter
from serving.service import Service
from serving.versions.manager import WeightsManager
from trainer.config import TrainerConfig
from wire.hashing import item_hash
from wire.weights import Version, decode_blob, encode_blob

encode = msgspec.json.encode
SWAPS_PER_S = 2.0
USUAL_SWAPS_PER_S = round(1 / TrainerConfig().publish_every_s, 2)
NUM_DELTAS = 8
SERVERS = {
    "cached": {"cache_versions": 0},
    "cached, over versions": {},
    "uncached": {"cache_bytes": 0},
    "one by one": {"max_batch": 1, "cache_versions": 0},
}
"""What each configuration may reuse. Versions differ little here, so entries of earlier ones are good if allowed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load: which requests, to which server, with or without swaps and bad requests."""

    what: str
    server: str
    swaps_per_s: float = 0
    beside: str = ""

    def __str__(self) -> str:
        swaps = f", {self.swaps_per_s:g} swaps/s" if self.swaps_per_s else ""
        return f"{self.what}, {self.server}{swaps}{f', beside {self.beside}' if self.beside else ''}"


def run(quick: bool) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    num_items = 10_000
    rows = [*_engine(num_items, 5 if quick else 15), *_swaps(200_000 if quick else 1_000_000)]
    return [*rows, *_over_http(num_items, 1.0 if quick else 3.0, 2 if quick else 5)]


def _engine(num_items: int, rounds: int) -> list[Row]:
    """The processor time of one request, without HTTP."""
    kept, manager = histories(num_items), WeightsManager()
    manager.stage(next(versions(num_items, taught=True)))
    manager.swap()
    held = manager.current
    assert held is not None
    engines = {"cached": Engine(kept), "uncached": Engine(kept, cache_bytes=0)}
    candidates = np.array([item_hash(item) for item in range(1000)], np.int64)
    asked: dict[str, Any] = {"recommend": None, "rank 100": candidates[:100], "rank 1000": candidates}

    def ask(user: int, wanted: Any) -> Request:
        past = kept.get(f"u{user}")
        assert past is not None
        return Request(f"u{user}", past.interactions, past.user_features, START_MS + 10**9, candidates=wanted)

    contenders: dict[str, Any] = {
        f"{what}, {name}": (lambda engine=engine, wanted=wanted: engine.answer(held, [ask(7, wanted)]))
        for what, wanted in asked.items() for name, engine in engines.items()
    }  # fmt: skip
    together = [ask(user, None) for user in range(16)]
    contenders["recommend, cached, 16 at once"] = lambda: engines["cached"].answer(held, together)
    seconds = take_turns(contenders, rounds, dict.fromkeys(contenders, 3))
    seconds["recommend, cached, 16 at once"] /= 16
    rows = [row(f"engine: {name}", 1000 * value, "ms per request") for name, value in seconds.items()]
    for what in asked:
        gain = seconds[f"{what}, uncached"] / seconds[f"{what}, cached"]
        rows.append(row(f"engine: {what}, cached over uncached", gain, "times"))
    return rows


def _swaps(num_items: int) -> list[Row]:
    """Putting a delta of 1,000 rows into service, beside copying the table that it changes."""
    manager, coming = WeightsManager(), versions(num_items)
    manager.stage(next(coming))
    manager.swap()
    deltas = [next(coming) for _ in range(12)]
    source = manager.current.tables if manager.current is not None else TableSet(torch.device("cpu"), "auto")

    def swap() -> None:
        manager.stage(deltas.pop())
        manager.swap()

    def copy() -> None:
        table = source["items"]
        table.rows.clone(), table.derived.clone(), table.live.clone()

    swap()
    seconds = take_turns({"swap": swap, "copy": copy}, 9)
    name = f"{NUM_DIRTY:,} of {num_items:,} rows"
    return [row(f"swap: {name}", 1000 * seconds["swap"], "ms", note="outside of requests"),
            row(f"swap: copying the table instead, {name}", 1000 * seconds["copy"], "ms")]  # fmt: skip


def _over_http(num_items: int, seconds: float, rounds: int) -> list[Row]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, num_items), daemon=True)
    process.start()
    try:
        ports: dict[str, int] = ours.recv()
        return _take_turns_over_http(ours, ports, seconds, rounds)
    finally:
        process.kill()
        process.join()


def _take_turns_over_http(swapping: Connection, ports: dict[str, int], seconds: float, rounds: int) -> list[Row]:
    bodies = {"recommend": lambda user: {"user": user},
              "rank 100": lambda user: {"user": user, "items": list(range(100))},
              "rank 1000": lambda user: {"user": user, "items": list(range(1000))}}  # fmt: skip
    cases = [
        Case(what, name, swaps) for what in bodies for name in ("cached", "uncached") for swaps in (0, SWAPS_PER_S)
    ]
    cases += [Case("recommend", "cached", USUAL_SWAPS_PER_S), Case("recommend", "cached, over versions", SWAPS_PER_S)]
    cases += [Case("recommend", "one by one"), *(Case("recommend", "cached", beside=name) for name in bad_requests())]
    found: dict[Case, list[tuple[float, float, float]]] = {case: [] for case in cases}
    failures = 0
    for _ in range(rounds):
        for case in cases:
            swapping.send(case.swaps_per_s)
            swapping.recv()
            requests = [
                post("/" + case.what.split()[0], encode({**bodies[case.what](f"u{user}"), "timestamp": NOW_MS}))
                for user in range(NUM_USERS)
            ]
            asyncio.run(load([(ports[case.server], requests)], min(seconds, 0.3)))
            bad = bad_requests()[case.beside] if case.beside else None
            taken, wrong, wall_s = asyncio.run(load([(ports[case.server], requests)], seconds, bad))
            failures += wrong
            p50, p99 = np.percentile(taken, [50, 99]) * 1000
            found[case].append((len(taken) / wall_s, float(p50), float(p99)))
    rows, still = [], 0.0
    for case, each in found.items():
        rate, p50, p99 = (median(column) for column in zip(*each, strict=True))
        note = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        if case.beside:
            rows.append(row(f"HTTP: p99 of {case}", p99, "ms", 50.0, note=f"{rate:,.0f} requests/s", most=True))
            continue
        is_main = case == Case("recommend", "cached")
        rows.append(row(f"HTTP: {case}", rate, "requests/s", 1000.0 if is_main else None, note=note))
        if is_main:
            rows.append(row(f"HTTP: p99 of {case}", p99, "ms", 25.0, most=True))
            still = p99
        if case.what == "recommend" and case.server == "cached" and case.swaps_per_s:
            rows.append(row(f"HTTP: p99 of {case}, over that without", p99 / still, "times", 1.15, most=True))
    return [*rows, row("HTTP: requests dropped or refused", float(failures), "requests", 0.0, most=True)]


def _as_published(num_items: int) -> tuple[Version, Iterator[Version]]:
    """A base, and an endless series of deltas that cost what a subscriber pays: decoding, not what the trainer does."""
    made = versions(num_items, taught=True)
    base, deltas = next(made), list(itertools.islice(made, NUM_DELTAS))
    blobs = [(each.manifest, encode_blob(each.snapshot)) for each in deltas]

    def coming() -> Iterator[Version]:
        for number, (manifest, blob) in enumerate(itertools.cycle(blobs), 1):
            named = msgspec.structs.replace(manifest, number=number, onto_number=number - 1)
            yield Version(named, decode_blob(blob))

    return base, coming()


def _serve(pipe: Connection, num_items: int) -> None:
    """The server's process: one listener per configuration; swaps on request."""
    torch.set_num_threads(1)
    kept, manager = histories(num_items), WeightsManager()
    base, coming = _as_published(num_items)
    manager.stage(base)
    manager.swap()
    ports = {}
    for name, options in SERVERS.items():
        service = Service(ServingConfig(**options), manager, kept)  # type: ignore[arg-type]
        service.histories_ready.set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        ports[name] = listener.getsockname()[1]
        running = options_of(build_app(service), service.config)
        threading.Thread(target=uvicorn.Server(running).run, kwargs={"sockets": [listener]}, daemon=True).start()
    tune_interpreter()
    pipe.send(ports)
    swaps_per_s = 0.0
    while True:
        if pipe.poll(1 / swaps_per_s if swaps_per_s else None):
            swaps_per_s = pipe.recv()
            pipe.send("done")
        if swaps_per_s:
            manager.stage(next(coming))
            manager.swap()
            manager.settle()
