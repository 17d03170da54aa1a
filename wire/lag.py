"""The fields that readers of ``headrace.trainer.lag.v1`` rely on; ``schema/lag.schema.json`` has the whole message.

Readers get a plain dict whose fields have the types below, or None for any other record.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from wire.errors import CodecError
from wire.json_value import Whole, decode_json


class _Lag(msgspec.Struct):
    lag_records: Whole
    lag_s: float


class _Stage(_Lag):
    partitions: dict[str, _Lag] = {}


class _Throughput(msgspec.Struct):
    interactions_per_s: float
    steps_per_s: float = 0.0
    examples_per_s: float = 0.0
    arriving_examples_per_s: float = 0.0
    catch_up_s: float | None = 0.0


class _Loss(msgspec.Struct):
    total: float | None = None


class _Process(msgspec.Struct):
    role: str
    component: str
    silent_s: float


class _Version(msgspec.Struct):
    epoch: Whole
    number: Whole


class _Freshness(msgspec.Struct):
    now_s: float | None = None
    at_swap_s: float | None = None


class _Message(msgspec.Struct):
    """The fields that readers use."""

    time_ms: Whole
    stages: dict[str, _Stage]
    throughput: _Throughput
    loss: _Loss = msgspec.field(default_factory=_Loss)
    metrics: dict[str, Any] = {}
    num_interactions: Whole = 0
    num_steps: Whole = 0
    num_lost: Whole = 0
    num_dead_letters: Whole = 0
    num_gone: Whole = 0
    num_items: Whole = 0
    num_evicted: Whole = 0
    num_servers: Whole = 0
    processes: list[_Process] = []
    dead_letters: dict[str, Whole] = {}
    epoch: Whole = -1
    version: _Version | None = None
    freshness: _Freshness = msgspec.field(default_factory=_Freshness)


_known = msgspec.json.Decoder(_Message)
_whole = msgspec.json.Decoder(dict[str, Any])


def decode_lag(value: bytes | None) -> dict[str, Any] | None:
    """A message of the lag topic as it was written, with defaults added; None for anything else."""
    try:
        known, message = decode_json(value, _known), decode_json(value, _whole)
    except CodecError:
        return None
    return {"num_servers": known.num_servers, "num_interactions": known.num_interactions, **message}


STALE_S = 3.0
"""Processes report every second; a report older than this is stale."""


def aged(message: dict[str, Any], now_s: float) -> dict[str, Any]:
    """The message as it reads now: once it is stale, its own age is added to every age in it."""
    age_s = now_s - message["time_ms"] / 1000
    if age_s <= STALE_S:
        return message
    stages = {name: {**stage, "lag_s": stage["lag_s"] + age_s} for name, stage in message["stages"].items()}
    processes = [{**each, "silent_s": each["silent_s"] + age_s} for each in message.get("processes", [])]
    fresh_s = message.get("freshness", {}).get("now_s")
    fresh = {} if fresh_s is None else {"freshness": {**message["freshness"], "now_s": fresh_s + age_s}}
    return {**message, "stages": stages, "processes": processes, **fresh}


def measure(tree: Any, *path: str) -> float | None:
    """A finite number in a tree of dicts, such as the message's ``metrics``; None if the path does not lead to one."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree)
    return float(tree) if is_number else None
