"""Arrays in the safetensors layout, without copying them together: a header, then the arrays' own memory.

`safetensors.numpy.save` copies everything twice and holds the interpreter lock meanwhile: a second for a table of a
million rows. The bytes are readable by `safetensors.numpy.load`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Buffer = bytes | memoryview
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


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

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes in pieces of this size; at least one piece. Can be called again."""
        whole = bytearray()
        for part in self._parts:
            start = 0
            while start < len(part):
                taken = part[start : start + chunk_bytes - len(whole)]
                whole += taken
                start += len(taken)
                if len(whole) == chunk_bytes:
                    yield bytes(whole)
                    whole = bytearray()
        if whole:
            yield bytes(whole)
