"""What commands say in whole sentences: broken between words on a terminal, one line for scripts and logs."""

from __future__ import annotations

import shutil
import sys
import textwrap


def say(text: str, *, is_error: bool = False) -> None:
    """Print it; an error on stderr, as one line, whatever it quotes from a file or a path."""
    stream = sys.stderr if is_error else sys.stdout
    if is_error:
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    if stream.isatty():
        text = textwrap.fill(
            text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False,
            replace_whitespace=False,
        )  # fmt: skip
    print(text, file=stream, flush=True)
