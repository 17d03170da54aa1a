"""The content of a file: read whole, decompressed and decoded; or refused with one line before any of it is used.

Compression is recognised by the file's first bytes, not by its name: gzip, zstandard, bzip2, xz, also one inside
another. Text is UTF-8, or UTF-16 if a byte order mark says so; lines end at a newline (``\\n`` or ``\\r\\n``) and
nowhere else.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import select
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from stream.errors import FileError

PIPE_WAIT_S = 10.0
"""How long to wait for a writer on a named pipe."""
GZIP, ZSTD, BZIP2, XZ, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00", b"PAR1"
_OTHERS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"SQLite format": "a SQLite file", b"ORC": "an ORC file", b"Obj\x01": "an Avro file",
    b"ARROW1": "an Arrow file", b"\xd0\xcf\x11\xe0": "a spreadsheet", b"PK\x05\x06": "an empty zip archive",
    b"\x04\x22\x4d\x18": "an lz4 file", b"\xff\x06\x00\x00sNaPpY": "a snappy file", b"\x1f\x9d": "a .Z file",
    b"Rar!": "a RAR archive", b"%PDF": "a PDF", b"<!DOCTYPE": "a web page", b"<html": "a web page",
    b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file", b"\x80\x04\x95": "a pickle",
    b"version https://git-lfs": "a pointer of Git LFS", b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32",
}  # fmt: skip
_MOST_LAYERS = 3
_TAR_AT = 257
_SKIPPABLE = tuple(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))
"""The start of a zstandard frame without content; parallel compressors write one first."""
_LARGEST_WINDOW = 1 << 31
"""The largest window of zstandard (``--long=31``)."""
_IN_MEMORY = 8
"""A file's actions take at least this many times its bytes (measured: JSON 9, ratings.dat 14, csv 18)."""
_PIECE_BYTES = 4096
"""How much is decompressed at a time: gzip makes at most 4 MB of it, zstandard 0.2 GB (128 KiB of four bytes)."""
_MOST_AT_ONCE = 16 << 20
"""How much bzip2 and xz, which make 46 MB of forty bytes, give at a time."""


def read_bytes(path: Path) -> bytes:
    """All of the file, decompressed. Raises `FileError`."""
    content = _read(path)
    try:
        for _ in range(_MOST_LAYERS):
            unpacked = _decompress(path, content)
            if unpacked is content:
                break
            content = unpacked
    except ImportError:
        raise FileError(f"{path}: expected the package zstandard, which is missing; install it") from None
    except (EOFError, ValueError, OSError, lzma.LZMAError, zlib.error, _Truncated) as error:
        raise FileError(
            f"{path}: expected {_name_of(content)} data, got a damaged file ({error}); fetch it again"
        ) from None
    return content


def read_text(path: Path, content: bytes | None = None) -> str:
    """The text of a file; ``content``: its bytes, if the caller has read them. Raises `FileError`."""
    content = read_bytes(path) if content is None else content
    other = next((name for magic, name in _OTHERS.items() if content.startswith(magic)), "")
    other = "a tar archive" if content[_TAR_AT : _TAR_AT + 5] == b"ustar" else other
    if other:
        raise FileError(f"{path}: expected text, got {other}; unpack or export it first, as text in UTF-8")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise FileError(_not_utf8(path, content, error)) from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise FileError(
            f"{path}:{number}: expected text, got a NUL byte; if it is UTF-16 without a mark, convert it to UTF-8"
        )
    text = text.replace("\n\ufeff", "\n")  # concatenated files, each with a byte order mark
    return text if "\n" in text else text.replace("\r", "\n")  # as Macs wrote them before 2001


def lines_of(text: str) -> list[str]:
    """The lines of a text, without line ends. Unlike in `str.splitlines`, U+2028, NEL and the like end none."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _read(path: Path) -> bytes:
    try:
        kind = path.stat().st_mode
        if stat.S_ISFIFO(kind):
            return _read_pipe(path)
        if not stat.S_ISREG(kind):
            wanted = "a folder" if stat.S_ISDIR(kind) else "a device or a socket"
            raise FileError(f"{path}: expected a file, got {wanted}; name the file itself")
        check_size(path, path.stat().st_size)
        return path.read_bytes()
    except FileNotFoundError:
        remedy = "name standard input /dev/stdin" if str(path) == "-" else "check the path"
        raise FileError(f"{path}: expected a file, but there is none; {remedy}") from None
    except OSError as error:
        raise FileError(f"{path}: expected a readable file, got {error.strerror}; check its permissions") from None


def check_size(path: Path, num_bytes: int, most_bytes: float | None = None) -> None:
    """Refuse what memory cannot hold: the kernel would kill this process without a word, or a trainer beside it.

    ``most_bytes``: what it can; None: as much as the system says. Raises `FileError`."""
    most_bytes = _most_bytes() if most_bytes is None else most_bytes
    if num_bytes > most_bytes:
        raise FileError(
            f"{path}: expected a file that fits into memory, got {num_bytes / 1e9:.3g} GB or more, whose actions take "
            f"at least {num_bytes * _IN_MEMORY / 1e9:.3g} GB of {most_bytes * _IN_MEMORY / 1e9:.3g} GB available; "
            "split it by time"
        )


def _most_bytes() -> float:
    available = available_bytes()
    return math.inf if available is None else available / _IN_MEMORY


def available_bytes() -> int | None:
    """How much memory the system can still give; None if it does not say."""
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    return None


def _read_pipe(path: Path) -> bytes:
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(pipe, "rb") as stream:
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        if not waiting.poll(PIPE_WAIT_S * 1000):
            raise FileError(f"{path}: expected a writer at the other end of the pipe, got none in {PIPE_WAIT_S:g} s")
        os.set_blocking(pipe, True)
        return stream.read()


class _Truncated(Exception):
    pass


def _decompress(path: Path, content: bytes) -> bytes:
    if content.startswith(GZIP):
        return _all_members(path, content, GZIP, lambda: zlib.decompressobj(wbits=31))
    if content.startswith(BZIP2):
        return _all_members(path, content, BZIP2, bz2.BZ2Decompressor, _MOST_AT_ONCE)
    if content.startswith(XZ):
        return _all_members(path, content, XZ, lzma.LZMADecompressor, _MOST_AT_ONCE)
    if content.startswith((ZSTD, *_SKIPPABLE)):
        import zstandard

        try:
            unpack = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj
            return _all_members(path, content, (ZSTD, *_SKIPPABLE), unpack)
        except zstandard.ZstdError as error:
            raise _Truncated(str(error)) from None
    return content


def _all_members(path: Path, content: bytes, magic: bytes | tuple[bytes, ...], make: Any, *most: int) -> bytes:
    """A file may be a series of compressed members; each must be complete. Decompressed piece by piece, so that a small
    file with more content than memory can hold is refused before it has taken that memory."""
    found, num_bytes, most_bytes, at = list[bytes](), 0, _most_bytes(), 0
    while at < len(content):
        if not content.startswith(magic, at):
            raise _Truncated(f"{len(content) - at} stray bytes after its end")
        member = make()
        while not member.eof:
            takes_more = getattr(member, "needs_input", True)
            piece = content[at : at + _PIECE_BYTES] if takes_more else b""
            if takes_more and not piece:
                raise _Truncated("it is truncated")
            found.append(member.decompress(piece, *most))
            at += len(piece)
            num_bytes += len(found[-1])
            check_size(path, num_bytes, most_bytes)
        at -= len(member.unused_data)
        if content.startswith(b"\0", at):  # tapes and some tools pad with zeros
            at = len(content) - len(content[at:].lstrip(b"\0"))
    return b"".join(found)


def _name_of(content: bytes) -> str:
    names = {GZIP: "gzip", ZSTD: "zstandard", BZIP2: "bzip2", XZ: "xz"}
    return next((name for magic, name in names.items() if content.startswith(magic)), "zstandard")


def _not_utf8(path: Path, content: bytes, error: UnicodeDecodeError) -> str:
    number = content.count(b"\n", 0, error.start) + 1
    if error.encoding == "utf-16" or b"\0" in content[:1000]:
        return f"{path}: expected text in UTF-8 or UTF-16, got other bytes; is it the right file?"
    line = content[content.rfind(b"\n", 0, error.start) + 1 :][:60]
    return (
        f"{path}:{number}: expected text in UTF-8, got {line!r}; if it is Latin-1, convert it: iconv -f latin1 -t utf-8"
    )
