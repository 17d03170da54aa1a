"""The C++ sources: which files a unit is made of, and the digest that a compiled library carries.

The build puts `digest` into the library, and `kernels.compiled` compares it before the first call: a library built from
other sources may lay out its arguments differently, and would crash the process.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
_COMMENT = re.compile(rb"[ \t]*//[^\n]*")
_INCLUDE = re.compile(rb'^#include "([^"]+)"', re.MULTILINE)


def digest(folder: Path = SOURCES) -> str:
    """Hexadecimal; changes with the code of any source or header below ``folder``, not with its comments."""
    return digest_of(sorted([*folder.rglob("*.cpp"), *folder.rglob("*.h")]), folder)


def digest_of(paths: Iterable[Path], folder: Path) -> str:
    """Hexadecimal; changes with the code of these files, or with their places below ``folder``."""
    found = hashlib.sha256()
    for path in paths:
        lines = _COMMENT.sub(b"", path.read_bytes()).split(b"\n")
        found.update(path.relative_to(folder).as_posix().encode() + b"\n")
        found.update(b"\n".join(line for line in lines if line.strip()))
    return found.hexdigest()


def included(source: Path, folder: Path = SOURCES) -> list[Path]:
    """The source, and every file below ``folder`` that it includes, directly or not; sorted."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_bytes()):
            beside, below = path.parent / name.decode(), folder / name.decode()
            waiting += [each for each in (beside, below) if each.exists()][:1]
    return sorted(found)
