"""Compiling and interpreting every kernel takes minutes together: not for the quick set."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def triton_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for this run and all its processes; nothing compiled by another checkout is taken for this one's."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of this folder as slow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
