"""Adds what the interpreter lacks, for the tests in this folder."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.kernels.triton import bfloat16

    bfloat16.install()
