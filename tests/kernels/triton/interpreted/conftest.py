"""Adds to Triton's interpreter what the tests in this folder need, and removes what only costs time."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from bench import quick_interpreter
    from tests.kernels.triton import bfloat16

    bfloat16.install()
    quick_interpreter.install()
