"""Ranks with a GPU each, on the stand-in: what the device sums is exchanged once it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from tests.brokers import free_port
from tests.kernels.triton.interpreted import rank_main

WAITS = [
    "_local_scalar_dense at sharding.py", "_to_copy from the GPU at replica.py", "_to_copy from the GPU at sharding.py",
    "_to_copy to the GPU at replica.py",
]  # fmt: skip
"""For whether gradients are finite, for the digest of the weights, for new rows, and with the others' predictions."""


@pytest.mark.parametrize("most", [100, 5], ids=["exact loss", "sampled loss"])
def test_two_ranks_on_gpus_learn_what_one_learns_to_the_bit(most: int, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.kernels.triton.interpreted.rank_main", str(most), str(out)]
    children = [
        subprocess.Popen(command, env=os.environ | where | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    expected = rank_main.trained(most)
    for child in children:
        _, log = child.communicate(timeout=300)
        assert child.returncode == 0, log[-3000:]
    found = json.loads(out.read_text())
    assert found["losses"] == expected["losses"]
    assert found["waits"] == WAITS
