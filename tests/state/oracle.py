"""What a partition's log means, in the plainest Python: the whole log in, all users' histories out.

Only hashing is shared with the code under test. No batches, no bytes, no index: each action is compared with every
interaction that its user still keeps.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wire.hashing import item_hash


@dataclass(frozen=True)
class Token:
    """One interaction, as it is at some moment."""

    item: int
    bits: int
    time: int
    domain: int
    value: float | None
    features: list[int]
    session: int

    def key(self) -> tuple[Any, ...]:
        return (self.item, self.bits, self.time, self.domain, self.session, self.value, tuple(self.features))


@dataclass
class Life:
    """One user."""

    tokens: list[Token] = field(default_factory=list)
    ids: dict[int, list[str]] = field(default_factory=dict)
    """Place of an interaction → ids, oldest first."""
    user_features: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Life:
        """The same, unchanged by what this user does next."""
        return Life(list(self.tokens), {place: list(ids) for place, ids in self.ids.items()}, dict(self.user_features))


@dataclass
class Oracle:
    kinds: list[str]
    features: list[str]
    user_features: list[str]
    user_tokens: bool
    propensity: bool
    window: int
    segment_len: int
    num_slots: int
    deduplicate: bool
    max_ids: int
    max_future: int
    users: dict[str, Life] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    """The offset of each user's last action that changed anything."""
    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    dead: list[tuple[int, int, str]] = field(default_factory=list)
    moments: dict[tuple[str, int, int], Life] | None = None
    """Each user's state after the action at (offset, index), where requested."""

    def record(self, offset: int, record_ms: int, value: bytes | None) -> None:
        if not value:
            self.dead.append((offset, -1, "empty"))
            return
        try:
            content = json.loads(value)
        except ValueError:
            self.dead.append((offset, -1, "malformed"))
            return
        if isinstance(content, dict) and "forget" in content:
            self.accepted += 1
            self.forget(content, offset)
        elif isinstance(content, list):
            for index, action in enumerate(content):
                self.one(action, offset, index, record_ms)
        else:
            self.one(content, offset, -1, record_ms)

    def forget(self, order: dict[str, Any], offset: int) -> None:
        before = order.get("before_offset", offset)
        for user in order.get("users", [order.get("user", "")]):
            if self.last.get(user, offset) < before:
                del self.users[user], self.last[user]

    def one(self, action: Any, offset: int, index: int, record_ms: int) -> None:
        reason = self.wrong(action, record_ms)
        if reason:
            self.dead.append((offset, index, reason))
        else:
            user = str(action["user"])
            before = self.users.get(user, Life()).copy()
            self.apply(action)
            if self.users[user] != before:
                self.last[user] = offset
            if self.moments is not None:
                user = str(action["user"])
                self.moments[user, offset, max(index, 0)] = self.users[user].copy()

    def wrong(self, action: Any, record_ms: int) -> str | None:
        """Only the kinds of malformed records that the tests' streams contain."""
        if not isinstance(action, dict):
            return "wrong_type"
        if "item" not in action:
            return "missing_field"
        if action["timestamp"] > record_ms + self.max_future:
            return "future"
        names = [action["action"]] if isinstance(action["action"], str) else action["action"]
        return None if all(name in self.kinds for name in names) else "unknown_action"

    def first_kept(self, life: Life) -> int:
        """The user's first kept segment."""
        return max(0, (len(life.tokens) - 1) // self.segment_len - self.num_slots + 1)

    def kept(self, life: Life) -> list[Token]:
        return life.tokens[self.first_kept(life) * self.segment_len :]

    def kept_ids(self, life: Life) -> dict[int, list[str]]:
        return {place: ids for place, ids in life.ids.items() if place >= self.first_kept(life) * self.segment_len}

    def apply(self, action: dict[str, Any]) -> None:
        life = self.users.setdefault(str(action["user"]), Life())
        name = str(action["id"]) if "id" in action and self.deduplicate else None
        if name is not None and any(name in ids for ids in self.kept_ids(life).values()):
            self.duplicate += 1
            return
        self.accepted += 1
        for feature, entry in action.get("user_features", {}).items():
            life.user_features[feature] = item_hash(entry)
        place = self.joined(life, action)
        if place is None:
            place = self.append(life, action)
        else:
            life.tokens[place] = self.join(life.tokens[place], action)
        if name is not None:
            ids = life.ids.setdefault(place, [])
            ids.append(name)
            del ids[: -self.max_ids]

    def joined(self, life: Life, action: dict[str, Any]) -> int | None:
        first = self.first_kept(life) * self.segment_len
        session = item_hash(action["session"]) if "session" in action else None
        for place in reversed(range(first, len(life.tokens))):
            token = life.tokens[place]
            is_near = self.window > 0 and abs(token.time - action["timestamp"]) <= self.window
            if token.item == item_hash(action["item"]) and is_near and session in (None, token.session):
                return place
        return None

    def bits(self, action: dict[str, Any]) -> int:
        names = [action["action"]] if isinstance(action["action"], str) else action["action"]
        return sum({1 << self.kinds.index(name) for name in names})

    def given(self, action: dict[str, Any]) -> list[int]:
        entries = [action.get("features", {}).get(name) for name in self.features]
        hashes = [0 if entry is None else item_hash(entry) for entry in entries]
        (bits,) = struct.unpack("<q", struct.pack("<d", action.get("propensity", 0.0)))
        return [*hashes, bits] if self.propensity else hashes

    def append(self, life: Life, action: dict[str, Any]) -> int:
        time = action["timestamp"]
        last = life.tokens[-1].time if life.tokens else time
        self.late += time < last
        domain = item_hash(action["domain"]) if "domain" in action else 0
        session = item_hash(action["session"]) if "session" in action else 0
        value = float(np.float32(action["value"])) if "value" in action else None
        item, bits, features = item_hash(action["item"]), self.bits(action), self.given(action)
        if self.user_tokens:
            features += [life.user_features.get(name, 0) for name in self.user_features]
        life.tokens.append(Token(item, bits, max(time, last), domain, value, features, session))
        return len(life.tokens) - 1

    def join(self, token: Token, action: dict[str, Any]) -> Token:
        return replace(
            token,
            bits=token.bits | self.bits(action),
            domain=item_hash(action["domain"]) if "domain" in action else token.domain,
            value=float(np.float32(action["value"])) if "value" in action else token.value,
            features=[new or old for new, old in itertools.zip_longest(self.given(action), token.features)],
        )
