"""The rooms are this checkout's: other projects ship packages that import under the same names."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "headrace", "kernels", "serving", "state", "stream", "trainer")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_this_checkouts(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__file__ is not None, f"{room}/__init__.py is missing: an empty folder imports as a namespace package"
    assert Path(module.__file__).resolve().parent == ROOT / room
