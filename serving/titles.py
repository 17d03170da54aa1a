"""Titles of items, from a file of ``id<TAB>title`` lines that is read once at startup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wire.errors import ConfigError


class Titles:
    """Canonical item key → title."""

    def __init__(self, titles: dict[str, str] | None = None) -> None:
        self._titles = titles or {}

    def __len__(self) -> int:
        return len(self._titles)

    def get(self, item: str) -> str | None:
        """The title, or None."""
        return self._titles.get(item)

    @staticmethod
    def text_of(titles: Mapping[str, str]) -> str:
        """The contents of a file of these titles, each on one line. Ids that a line cannot hold are left out."""
        return "".join(
            f"{item}\t{' '.join(title.split())}\n"
            for item, title in titles.items()
            if item == item.strip() and not set(item) & set("\t\r\n")
        )

    @staticmethod
    def read(path: str) -> Titles:
        """The titles in a file; none if ``path`` is empty. Raises `ConfigError`."""
        if not path:
            return Titles()
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"serving.titles_file: expected a UTF-8 file of ID<TAB>TITLE lines, got {path!r} ({error}); "
                "correct the path, or leave it out"
            ) from None
        titles: dict[str, str] = {}
        for number, line in enumerate(text.split("\n"), 1):
            item, divided, title = line.partition("\t")
            if not divided and line.strip():
                raise ConfigError(
                    f"serving.titles_file: expected ID<TAB>TITLE, got {line[:60]!r} in line {number} of {path}; fix it"
                )
            titles[item.strip()] = title.strip()[:500]
        return Titles(titles)
