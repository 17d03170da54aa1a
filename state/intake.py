"""Records of the actions topic, decoded; what is refused becomes a dead letter."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from state.outbox import stored_dead_letter
from state.sequencer import Sequencer
from wire.action import Action, Rejection, decode_record
from wire.action_json import ForgetRequest
from wire.config import ActionConfig
from wire.partitioner import partition_of

Decoded = list[tuple[int, Action]] | ForgetRequest
_list = msgspec.json.Decoder(list[msgspec.Raw])


class Intake:
    """Decodes one partition's records. ``num_partitions``: None takes every user and every request about an item.
    ``topic``: named in dead letters."""

    def __init__(
        self,
        sequencer: Sequencer,
        action: ActionConfig,
        partition: int,
        num_partitions: int | None,
        topic: str,
        dead: dict[str, int],
    ) -> None:
        self._sequencer = sequencer
        self._action = action
        self._partition = partition
        self._num_partitions = num_partitions
        self._topic = topic
        self.dead = dict(dead)
        """Reason → dead letters, since the database was created."""

    def decode(self, offset: int, record_ms: int, value: bytes | None, dead: list[bytes]) -> Decoded:
        """A record's actions with their places in it, or its request to forget. What is refused is appended to
        ``dead``, as dead letters in stored form."""
        sequencer, users = self._sequencer, self._sequencer.users
        decoded = decode_record(value, record_ms, self._action)
        if type(decoded[0]) is ForgetRequest and all(map(self._is_ours, decoded[0].keys)):
            return decoded[0]
        taken: list[tuple[int, Action]] = []
        elements: Sequence[bytes | msgspec.Raw] = ()
        for index, one in enumerate(decoded):
            if type(one) is Action and (one.user in users or self._is_ours(one.user)):
                taken.append((index, one))
                continue
            if not isinstance(one, Rejection):
                elements = elements or _elements(value or b"")
                one = self._wrong_partition(one, index, elements)
            if sequencer.reject(offset):
                self.dead[one.reason] = self.dead.get(one.reason, 0) + 1
            dead.append(stored_dead_letter(one, self._topic, self._partition, offset, record_ms))
        return taken

    def _is_ours(self, key: str) -> bool:
        return self._num_partitions is None or partition_of(key.encode(), self._num_partitions) == self._partition

    def _wrong_partition(
        self, action: Action | ForgetRequest, index: int, elements: Sequence[bytes | msgspec.Raw]
    ) -> Rejection:
        key = next(key for key in action.keys if not self._is_ours(key))
        what = "item" if isinstance(action, ForgetRequest) and not action.names else "user"
        home = partition_of(key.encode(), self._num_partitions or 1)
        message = (
            f"{what} {key[:40]!r}: expected in partition {home} of {self._num_partitions}, "
            f"got {self._partition}; use the {what} as the key and Kafka's murmur2 partitioner (librdkafka has another "
            "default: set its option partitioner to murmur2)"
        )
        raw = elements[index]
        return Rejection("wrong_partition", message, index if isinstance(raw, msgspec.Raw) else -1, bytes(raw))


def _elements(value: bytes) -> Sequence[bytes | msgspec.Raw]:
    """The actions of a list as they were written, or what is no list."""
    return _list.decode(value) if value.lstrip()[:1] == b"[" else (value,)
