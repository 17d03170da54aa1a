"""What commands say in whole sentences: broken between words on a terminal, one line for scripts and logs."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction of the text after it."""


def say(text: str, *, is_error: bool = False, has_lines: bool = False) -> None:
    """Print it; an error on stderr, as one line, whatever it quotes from a file or a path. ``has_lines``: it quotes
    lines, such as the end of a log, which stay lines."""
    stream = sys.stderr if is_error else sys.stdout
    if is_error:
        text = "".join(repr(each)[1:-1] if _is_control(each) and not (has_lines and each == "\n") else each
                       for each in text)  # fmt: skip
    if stream.isatty() and not has_lines:
        text = textwrap.fill(
            text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False,
            replace_whitespace=False,
        )  # fmt: skip
    print(text, file=stream, flush=True)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or character in _TURNS
