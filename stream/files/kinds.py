"""Which kinds of action a file may have: those that the worker is configured for, or any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stream.files.cells import BadCell
from stream.files.columns import RATING_KINDS
from wire.config import ActionConfig


class _EveryKind(dict[str, int]):
    def get(self, kind: str, default: Any = None) -> Any:
        return 1 if kind else default


class AnyKind(ActionConfig):
    """Default configuration, for callers that decide on the kinds later."""

    @property
    def bit_of(self) -> Mapping[str, int]:
        """Any name counts as a kind."""
        return _EveryKind()


def check_row(kinds: Sequence[str], config: ActionConfig) -> None:
    """Raise `BadCell` if a row has a kind that ``config`` does not."""
    unknown = [kind for kind in kinds if not config.bit_of.get(kind)]
    if unknown:
        raise BadCell(unknown_kinds(unknown, config))


def unknown_kinds(unknown: Sequence[str], config: ActionConfig) -> str:
    """What is wrong with these kinds, and what to do."""
    joined = next((kind for kind in unknown if "," in kind), None)
    if joined is not None:
        apart = "|".join(name.strip(" []\"'") for name in joined.split(","))
        return f"expected one kind, or several separated by |, got {joined!r}; write it as {apart!r}"
    is_ratings = set(unknown) <= set(RATING_KINDS)
    wanted = RATING_KINDS if is_ratings else (*config.kinds, *unknown)
    window = " and HEADRACE_SEQUENCE__JOIN_WINDOW_S=0 (a rating is complete when it arrives)" if is_ratings else ""
    return (
        f"expected actions among {', '.join(config.kinds)}, got {', '.join(unknown)}, which the worker would refuse; "
        f"set HEADRACE_ACTION__KINDS={','.join(wanted)}{window} for every process, or the same in their file"
    )
