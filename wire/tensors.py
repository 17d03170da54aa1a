"""Arrays in the safetensors layout, without copying them together: a header, then the arrays' own memory.

`safetensors.numpy.save` copies everything twice and holds the interpreter lock meanwhile: a second for a table of a
million rows. The bytes are readable by `safetensors.numpy.load`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Buffer = bytes | memoryview
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


_KINDS = {name: np.dtype(kind) for kind, name in _TYPES.items()}


def arrays_of(blob: bytes | bytearray) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors blob, as views of its memory (read-only if it is). Raises ValueError for other bytes.

    `safetensors.numpy.load` copies all of it, which takes as long as reading it from a broker.
    """
    data_at = 8 + int.from_bytes(blob[:8], "little")
    try:
        header = json.loads(bytes(blob[8:data_at]))
        return {name: _array(blob, data_at, about) for name, about in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a header of safetensors ({type(error).__name__}: {error})") from error


def _array(blob: bytes | bytearray, data_at: int, about: Mapping[str, Any]) -> NDArray[Any]:
    kind, shape, (first, end) = _KINDS[about["dtype"]], tuple(about["shape"]), about["data_offsets"]
    num = prod(shape)
    if min((*shape, first), default=first) < 0 or end - first != num * kind.itemsize or data_at + end > len(blob):
        raise ValueError(f"expected {shape} of {kind} in bytes {first} to {end} of {len(blob) - data_at}")
    return np.frombuffer(blob, kind, num, data_at + first).reshape(shape) if num else np.zeros(shape, kind)


class Tensors:
    """Named arrays as one sequence of bytes. They must not change while this is in use."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        ordered = sorted(arrays.items(), key=lambda each: (-each[1].dtype.itemsize, each[0]))
        kept = [(name, np.ascontiguousarray(array)) for name, array in ordered]
        header, start = {}, 0
        for name, array in kept:
            span = [start, start + array.nbytes]
            shape = list(arrays[name].shape)
            header[name] = {"dtype": _TYPES[array.dtype.name], "shape": shape, "data_offsets": span}
            start += array.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._parts: list[Buffer] = [len(text).to_bytes(8, "little") + text]
        self._parts += [array.reshape(-1).view(np.uint8).data for _, array in kept if array.nbytes]
        self.num_bytes = sum(len(part) for part in self._parts)

    @property
    def parts(self) -> list[Buffer]:
        """The parts of the bytes, in order."""
        return self._parts

    def checksum(self) -> str:
        """xxh3-128 of the bytes, as hex."""
        digest = xxhash.xxh3_128()
        for part in self._parts:
            digest.update(part)
        return digest.hexdigest()

    def chunks(self, chunk_bytes: int) -> Iterator[Buffer]:
        """The bytes in pieces of this size; at least one piece. Can be called again.

        A piece within one array is a view of it: copying a large version would hold the interpreter all the time.
        """
        begun: list[Buffer] = []
        room = chunk_bytes
        for part in self._parts:
            start = 0
            while start < len(part):
                taken = part[start : start + room]
                begun.append(taken)
                start, room = start + len(taken), room - len(taken)
                if not room:
                    yield begun[0] if len(begun) == 1 else b"".join(begun)
                    begun, room = [], chunk_bytes
        if begun:
            yield b"".join(begun)
