"""Text that others wrote (ids, dead letters, names of processes), for a terminal: shown as it is, never obeyed."""

from __future__ import annotations

from rich.text import Text


def foreign(text: str, style: str = "") -> Text:
    """The text without rich's markup and emoji codes; control characters, which a terminal would obey, as U+FFFD."""
    shown = "".join(each if each.isprintable() or each in " \n\t" else "\ufffd" for each in text)
    return Text(shown, style=style)
