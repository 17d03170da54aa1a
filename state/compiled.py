"""Applies batches in C++ (`kernels.sequences`); `state.sequencer` is the definition.

Everything that a batch has changed is in the database before the next one, so the two can take turns: the definition
carries out requests to forget, refreshes and restores, on users that it loads and drops again.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernels.compiled import KernelUnavailable
from kernels.sequences import Changes, Rules, Sequences
from state.errors import StoreError
from state.meta import Position
from state.names import Names
from state.sequencer import Sequencer
from state.user_store import UserStore
from wire.action import Action
from wire.config import ActionConfig, SequenceConfig
from wire.example import Counts
from wire.moment import MAX_TIMESTAMP_MS

Run = list[tuple[int, int, int, int]]
"""Records: the range of each one's actions, its offset and its Kafka timestamp."""


def rules_of(action: ActionConfig, sequence: SequenceConfig, partition: int, num_partitions: int | None) -> Rules:
    """The configuration as C++ takes it."""
    return Rules(
        partition, num_partitions or 0, sequence.segment_len, sequence.num_slots, sequence.join_window_ms,
        sequence.deduplicate, action.min_timestamp_ms, MAX_TIMESTAMP_MS, action.max_future_ms, action.max_record_bytes,
        action.max_actions_per_record, tuple(action.kinds), tuple(action.features), tuple(action.user_features),
        action.user_tokens, action.propensity,
    )  # fmt: skip


class CompiledUsers:
    """One partition's users, in C++. Raises `StoreError` without compiled kernels."""

    def __init__(self, rules: Rules, users: UserStore, names: Names) -> None:
        try:
            self._sequences = Sequences(rules)
        except KernelUnavailable as error:
            raise StoreError(f'store.backend: {error}; or set store.backend = "python"') from error
        self._users, self._names = users, names

    def decode(self, values: Sequence[bytes], record_times_ms: Sequence[int]) -> list[tuple[int, int]]:
        """`Sequences.decode`."""
        return self._sequences.decode(values, record_times_ms)

    def add(self, actions: Sequence[tuple[int, Action]]) -> tuple[int, int]:
        """Take a record's actions with their places in it; returns their range."""
        first = end = 0
        for index, one in actions:
            numbers = (
                one.item_hash, one.bits, one.timestamp_ms, one.id_hash, one.session_hash, one.domain_hash, index,
                *one.feature_hash, *one.user_feature_hash,
            )  # fmt: skip
            end = self._sequences.add(one.user, one.item, numbers, one.value) + 1
            first = end - len(actions)
        return first, end

    def apply(self, run: Run, sequencer: Sequencer) -> Changes:
        """Apply records that were decoded, and advance the sequencer's position. Raises `StoreCorrupt`."""
        self._load_missing()
        changes = self._sequences.apply(run, sequencer.numbers)
        applied, record_ms, event_ms, counted, *rest = changes.position
        counts, next_number, epoch = Counts(*rest[:4]), rest[4], rest[5]
        sequencer.resume(Position(applied, record_ms, event_ms, counted, counts, next_number, epoch))
        return changes

    def settle(self, max_users: int, *, max_names: int = Names.MAX_CACHED) -> None:
        """What `apply` returned is in the database: keep at most this many users and names in memory."""
        self._sequences.settle(max_users, max_names)

    def drop(self, user: str) -> None:
        """Forget a user who was changed or removed elsewhere."""
        self._sequences.drop(user)

    def _load_missing(self) -> None:
        sequences, users = self._sequences, self._users
        names, items = sequences.missing()
        for name, stored in users.stored(names):
            if not sequences.load(name, stored):
                users.check(name)
        for name, older in users.older(sequences.incomplete()):
            if not sequences.complete(name, older):
                users.check(name)
        sequences.know(users.names.named(items, self._names.day))
