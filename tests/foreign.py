"""What anybody may write to a topic of ours: none of it may end a process, a thread or a command."""

from __future__ import annotations

DEEP = b"[" * 50_000 + b"]" * 50_000
HUGE = b"1" + b"0" * 30
"""An integer that JSON holds and 64 bits do not."""
NO_EPOCH = 1 << 53
"""The largest integer that our JSON may have: the epoch above it could not be written."""
_FORMS = (
    b'{"role": "something else", "component": "x", "time_ms": 1}',
    b'{"role": "server", "component": "\xff", "time_ms": 1}',
    b'{"role": "server", "component": "x", "time_ms": 1, "more": %b}' % DEEP,
    b'{"role": "server", "component": "x", "time_ms": %b}' % HUGE,
    b'{"role": "worker", "component": "x", "time_ms": 1, "partitions": {"0": {"num_dead": %b}}}' % HUGE,
    b'{"role": "trainer", "component": "x", "time_ms": 1}',
    b'{"time_ms": "soon", "stages": {}, "throughput": {}}',
    b'{"time_ms": 1, "stages": {"train": {"lag_records": "x", "lag_s": 0}}, "throughput": {"interactions_per_s": 1}}',
    b'{"time_ms": 1, "stages": {}, "throughput": {"interactions_per_s": 1}, "processes": [5]}',
    b'{"epoch": "x", "claimant": 5}',
    b'{"epoch": 1, "number": 1, "made_ms": "now"}',
    b'{"epoch": %d, "claimant": "x"}' % NO_EPOCH,
    b'{"role": "server", "component": "y", "time_ms": 1, "epoch": %d}' % NO_EPOCH,
    b'{"role": "worker", "component": "z", "time_ms": 1, "partitions": {"0": {"writer_epoch": %d}}}' % NO_EPOCH,
)
FOREIGN: tuple[bytes | None, ...] = (
    None, b"", b"7 bytes", b"no json", b"\xff" * 99, b"null", b"5", b'"x"', b"[]", b"{}", b"{", DEEP, HUGE,
    b"\0" * 1000, b"HRE", *_FORMS,
)  # fmt: skip
