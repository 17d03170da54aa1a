"""Tests that need an NVIDIA GPU: `make test-gpu`. Without one they are skipped with that reason."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    here = [item for item in items if "gpu" in item.path.parts or item.path.parent.name == "gpu"]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
