"""FBGEMM's CPU embedding, in its own process and environment: its wheel needs the torch version it was built with.

`FbgemmWorker` runs this module as a script with that environment's Python. For each line on stdin, the script does one
backward pass with the fused row-wise Adagrad update and prints the processor seconds it took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "fbgemm"
PACKAGES = ("fbgemm-gpu-cpu==1.9.0", "torch==2.14.*", "numpy", "setuptools")


def _install() -> str:
    """Create the environment (3 GB, minutes) if it is missing; returns what went wrong, or ''."""
    python = ENVIRONMENT / "bin" / "python"
    if python.exists():
        return ""
    for command in (
        [sys.executable, "-m", "venv", str(ENVIRONMENT)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"FBGEMM could not be installed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    return ""


class FbgemmWorker:
    """A context manager around the process; `available` says whether it runs, and `why_not` why it does not."""

    def __init__(self, process: subprocess.Popen[str] | None, why_not: str) -> None:
        self._process = process
        self.why_not = why_not

    @classmethod
    def start(cls, num_rows: int, width: int, num: int, *, install: bool) -> FbgemmWorker:
        """Start the process; first create the environment, if asked to and necessary."""
        python = ENVIRONMENT / "bin" / "python"
        why_not = _install() if install else "" if python.exists() else "not installed; run without --quick"
        if why_not:
            return cls(None, why_not)
        process = subprocess.Popen(
            [str(python), __file__, str(num_rows), str(width), str(num)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            process.wait()
            return cls(None, f"FBGEMM's process ended with code {process.returncode}")
        return cls(process, "")

    @property
    def available(self) -> bool:
        """Whether the process runs."""
        return self._process is not None

    def backward_seconds(self) -> float:
        """One backward pass with its update."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> FbgemmWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()


def serve(num_rows: int, width: int, num: int) -> None:
    """The process's work."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(num_rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        eps=1e-8,
        pooling_mode=PoolingMode.SUM,  # its backward is 4x faster than of NONE; equal for bags of one
    )
    rows_N, offsets, grad_ND = torch.randint(0, num_rows, (num,)), torch.arange(num + 1), torch.randn(num, width)
    print("ready", flush=True)
    for _ in sys.stdin:
        out_ND = table(rows_N, offsets)
        began = time.process_time()
        out_ND.backward(grad_ND)
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
