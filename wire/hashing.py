"""Identity: what makes two keys the same, and the 64-bit number that stands for a key everywhere after the worker."""

from __future__ import annotations

from functools import lru_cache

from xxhash import xxh3_64_intdigest

Key = str | int


def canonical(key: Key) -> str:
    """The one spelling of a user or item key: ``5`` and ``"5"`` are the same key, ``"05"`` is another."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool) or not isinstance(key, int):
        raise TypeError(f"key: expected a string or an integer, got {type(key).__name__} {key!r}; send the id as text")
    return str(key)


def key_hash(key: Key) -> int:
    """xxh3-64 of the canonical UTF-8 as a signed int64; never 0, which means "none" in every column."""
    digest = xxh3_64_intdigest(canonical(key).encode())
    signed = digest - (1 << 64) if digest >= 1 << 63 else digest
    return signed or 1


item_hash = lru_cache(maxsize=1 << 16, typed=True)(key_hash)
"""`key_hash` of keys that recur."""
