"""JSON from topics that anyone may write to: whatever is wrong with it raises one error."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from wire.errors import CodecError

Value = TypeVar("Value")
Whole = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
"""An integer that every JSON reader can represent; the sum of a few thousand of them fits into 64 bits."""

MAX_EPOCH = 1 << 40
"""More than any deployment counts, and far from what `Whole` can hold: the next writer takes the epoch above."""
Epoch = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=MAX_EPOCH)]

_anything = msgspec.json.Decoder()


def decode_json(value: bytes | None, decoder: msgspec.json.Decoder[Value] = _anything) -> Value:
    """JSON as the type of the ``decoder``. Raises `CodecError` for other types, text that is not UTF-8, and excessive
    nesting.

    A decoder is made when its module is imported: two threads that decode a type for the first time at once would crash
    msgspec 0.22, which describes a type at its first use.
    """
    try:
        return decoder.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"expected JSON of a known form, got {(value or b'')[:80]!r} ({error})") from error
