"""Compiling and interpreting all kernels takes minutes: not part of the quick set."""

import os
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "triton"


@pytest.fixture
def triton_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all processes and runs of this checkout, unless ``TRITON_CACHE_DIR`` names another.

    What is found there is what would be compiled: its key is a checksum of the kernel's source and of all that it
    calls, of the options, of the target, and of the compiler itself.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", os.environ.get("TRITON_CACHE_DIR", str(CACHE)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests in this folder as slow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
