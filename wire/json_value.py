"""JSON from topics that anyone may write to: whatever is wrong with it raises one error."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from wire.errors import CodecError

Value = TypeVar("Value")
Whole = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
"""An integer that every JSON reader can represent; the sum of a few thousand of them fits into 64 bits."""


def decode_json(value: bytes | None, kind: type[Value] | Any = Any) -> Value:
    """JSON as a ``kind``. Raises `CodecError` for other types, text that is not UTF-8, and excessive nesting."""
    try:
        decoded: Value = msgspec.json.decode(value or b"", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"expected JSON of a known form, got {(value or b'')[:80]!r} ({error})") from error
    return decoded
