"""Kafka's default partitioner, so that this code and producers in any language agree on a user's partition.

The algorithm is Austin Appleby's MurmurHash2 (public domain) with the seed that Kafka's Java client uses.
"""

from __future__ import annotations

import struct

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """MurmurHash2 of the bytes: 32 bits, unsigned."""
    length = len(data)
    state = _SEED ^ length
    num_words = length >> 2
    for (word,) in struct.iter_unpack("<I", data[: num_words << 2]):
        word = (word * _MULTIPLIER) & _MASK
        word = ((word ^ (word >> 24)) * _MULTIPLIER) & _MASK
        state = ((state * _MULTIPLIER) & _MASK) ^ word
    tail = data[num_words << 2 :]
    if tail:
        state = ((state ^ int.from_bytes(tail, "little")) * _MULTIPLIER) & _MASK
    state = ((state ^ (state >> 13)) * _MULTIPLIER) & _MASK
    return state ^ (state >> 15)


def partition_of(key_bytes: bytes, num_partitions: int) -> int:
    """The partition that Kafka's Java client chooses for a key: 0 ≤ partition < num_partitions."""
    return (murmur2(key_bytes) & 0x7FFFFFFF) % num_partitions
