"""Requests that would bring down a careless server."""

from __future__ import annotations

import json

from bench.clients import post


def bad_requests() -> dict[str, bytes]:
    """Requests by name. The last ones are valid for a model of the default kinds, and as long as the limits allow."""
    candidates = list(range(10_000))
    history = [{"item": n, "action": "rate", "timestamp": n} for n in range(1000)]
    unknown = [{**each, "action": "no such kind"} for each in history]
    many = [{"user": f"u{n}", "k": 1000} for n in range(64)]
    return {
        "40,000 × {} for a list of ids": post("/rank", b'{"user": 1, "items": [' + b",".join([b"{}"] * 40_000) + b"]}"),
        "bodies of 3.6 MB": post("/rank", b"x" * 3_600_000),
        "100,000 brackets": post("/rank", b'{"user": 1, "items": ' + b"[" * 100_000),
        "slow bodies": post("/rank", b"{", declared=1000),
        "histories of an unknown kind": post("/recommend", json.dumps({"history": unknown}).encode()),
        "rank 10,000": post("/rank", json.dumps({"user": "u1", "items": candidates}).encode()),
        "recommend by a history of 1,000": post("/recommend", json.dumps({"history": history}).encode()),
        "64 × recommend 1,000": post("/recommend/batch", json.dumps({"requests": many}).encode()),
    }
