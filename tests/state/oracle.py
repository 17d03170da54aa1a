"""What a partition's log means, in the plainest Python that says it: whole log in, whole lives out.

Nothing here is shared with the code under test but hashing. No batches, no lazy sealing, no index: after every action
each open interaction of every user is looked at.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from wire.hashing import item_hash


@dataclass
class Token:
    """One interaction, open or sealed."""

    item: int
    bits: int
    time: int
    domain: int
    value: float | None
    features: list[int]

    def key(self) -> tuple[Any, ...]:
        value = None if self.value is None else float(self.value)
        return (self.item, self.bits, self.time, self.domain, value, tuple(self.features))


@dataclass
class Life:
    """One user."""

    sealed: list[Token] = field(default_factory=list)
    opened: list[Token] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    user_features: dict[str, int] = field(default_factory=dict)


@dataclass
class Oracle:
    kinds: list[str]
    features: list[str]
    user_features: list[str]
    window: int
    max_ids: int
    max_open: int
    max_future: int
    clock: float = -math.inf
    users: dict[str, Life] = field(default_factory=dict)
    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    ticks: int = 0
    dead: list[tuple[int, int, str]] = field(default_factory=list)

    def record(self, offset: int, record_ms: int, value: bytes | None) -> None:
        if not value:
            self.dead.append((offset, -1, "empty"))
            return
        try:
            content = json.loads(value)
        except ValueError:
            self.dead.append((offset, -1, "malformed"))
            return
        if isinstance(content, dict) and "tick" in content:
            self.ticks += 1
            self.clock = max(self.clock, content["tick"])
            self.seal_all()
        elif isinstance(content, list):
            for index, action in enumerate(content):
                self.one(action, offset, index, record_ms)
        else:
            self.one(content, offset, -1, record_ms)

    def one(self, action: Any, offset: int, index: int, record_ms: int) -> None:
        reason = self.wrong(action, record_ms)
        if reason:
            self.dead.append((offset, index, reason))
        else:
            self.apply(action)

    def wrong(self, action: Any, record_ms: int) -> str | None:
        """Only the kinds of wrong that the streams of the tests hold."""
        if not isinstance(action, dict):
            return "wrong_type"
        if "item" not in action:
            return "missing_field"
        if action["timestamp"] > record_ms + self.max_future:
            return "future"
        names = [action["action"]] if isinstance(action["action"], str) else action["action"]
        return None if all(name in self.kinds for name in names) else "unknown_action"

    def apply(self, action: dict[str, Any]) -> None:
        time, before = action["timestamp"], self.clock
        self.clock = max(self.clock, time)
        self.seal_all()
        life = self.users.setdefault(str(action["user"]), Life())
        if "id" in action and self.max_ids:
            if str(action["id"]) in life.ids:
                self.duplicate += 1
                return
            life.ids = [*life.ids, str(action["id"])][-self.max_ids :]
        self.accepted += 1
        for name, entry in action.get("user_features", {}).items():
            life.user_features[name] = item_hash(entry)
        names = [action["action"]] if isinstance(action["action"], str) else action["action"]
        bits = sum({1 << self.kinds.index(name) for name in names})
        item = item_hash(action["item"])
        features = [item_hash(f) if (f := action.get("features", {}).get(n)) is not None else 0 for n in self.features]
        domain = item_hash(action["domain"]) if "domain" in action else 0
        for token in life.opened:
            if token.item == item:
                token.bits |= bits
                token.domain = domain or token.domain
                token.value = action.get("value", token.value)
                token.features = [new or old for new, old in zip(features, token.features, strict=True)]
                return
        last = life.sealed[-1].time if life.sealed else time
        self.late += time < last or before - time > self.window
        life.opened.append(Token(item, bits, max(time, last), domain, action.get("value"), features))
        self.seal_all()
        if len(life.opened) > self.max_open:
            self.seal(life, min(life.opened, key=lambda token: token.time))

    def seal_all(self) -> None:
        for life in self.users.values():
            for token in sorted(life.opened, key=lambda token: token.time):
                if self.clock >= token.time + self.window:
                    self.seal(life, token)

    def seal(self, life: Life, token: Token) -> None:
        life.opened = [other for other in life.opened if other is not token]
        life.sealed.append(token)
