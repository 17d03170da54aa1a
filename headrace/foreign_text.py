"""Text that others wrote (ids, dead letters, names of processes), made safe to show on a terminal."""

from __future__ import annotations

from rich.text import Text


def foreign(text: str, style: str = "") -> Text:
    """The text without rich's markup and emoji codes, and with U+FFFD for control characters."""
    shown = "".join(each if each.isprintable() or each in " \n\t" else "\ufffd" for each in text)
    return Text(shown, style=style)
