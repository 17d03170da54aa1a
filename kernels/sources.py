"""Which C++ sources a compiled library was made from.

The build puts `digest` into the library, and `kernels.library` compares it before the first call: a library made from
other sources may lay out its arguments differently, and would crash the process.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
_COMMENT = re.compile(rb"[ \t]*//[^\n]*")


def digest(folder: Path = SOURCES) -> str:
    """Hexadecimal; changes with the code of any source or header below ``folder``, not with its comments."""
    found = hashlib.sha256()
    for path in sorted([*folder.rglob("*.cpp"), *folder.rglob("*.h")]):
        lines = _COMMENT.sub(b"", path.read_bytes()).split(b"\n")
        found.update(path.relative_to(folder).as_posix().encode() + b"\n")
        found.update(b"\n".join(line for line in lines if line.strip()))
    return found.hexdigest()
