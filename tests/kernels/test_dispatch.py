"""Which kernel runs: the one that was asked for, or a clear error; never silently another one."""

from __future__ import annotations

import subprocess
import sys
from ctypes import c_int, c_int64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import KernelUnavailable, compiled, library
from kernels.dispatch import load


def test_every_level_of_the_machine_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    best = library.machine_level()
    for level in library.LEVELS[: library.LEVELS.index(best) + 1]:
        monkeypatch.setenv("HEADRACE_CPU_LEVEL", level)
        assert library.level() == level


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", "avx1024")
    with pytest.raises(ValueError, match="expected one of portable, avx2, avx512, amx, got 'avx1024'"):
        library.level()


def test_a_level_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "machine_level", lambda: "portable")
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", "avx2")
    with pytest.raises(KernelUnavailable, match="expected at most 'portable'"):
        library.level()


def test_levels_differ_in_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for level in ("portable", library.machine_level()):
        monkeypatch.setenv("HEADRACE_CPU_LEVEL", level)
        found.add(id(library.function("attention_forward")))
    assert len(found) == (1 if library.machine_level() == "portable" else 2)


@pytest.mark.skipif(library.machine_level() != "amx", reason="needs AMX")
def test_float32_is_two_bfloat16_terms_only_where_pytorch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(dtype: torch.dtype) -> str:
        return str(library.function("attention_forward", dtype).__name__)

    monkeypatch.setenv("HEADRACE_CPU_LEVEL", "amx")
    for precision, expected in (("highest", "avx512"), ("high", "amx"), ("medium", "amx")):
        torch.set_float32_matmul_precision(precision)
        assert version(torch.float32) == f"attention_forward_{expected}"
        assert version(torch.bfloat16) == "attention_forward_amx"


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(KernelUnavailable, match=r"run `python -m kernels\.build`"):
        library.open_library(tmp_path / "nowhere.so")


def test_a_missing_kernel_module_is_named() -> None:
    with pytest.raises(KernelUnavailable, match=r"needs kernels\.nothing"):
        load("nothing", "cpp")


def test_every_public_name_exists() -> None:
    assert all(getattr(kernels, name) is not None for name in kernels.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'softmin'"):
        kernels.softmin  # noqa: B018


def test_importing_kernels_needs_neither_the_library_nor_a_compiler() -> None:
    code = "import sys, kernels, kernels.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_triton_refuses_cpu_tensors() -> None:
    q = torch.zeros(2, 1, 16)
    with pytest.raises((KernelUnavailable, ValueError)):
        kernels.hstu_attention(q, q, q, torch.tensor([0, 2]), norm_len=1.0, backend="triton")


@pytest.mark.parametrize("dtype", ["u1", "<f4", "<i8", np.dtype([("item", "<i8"), ("features", "<i8", (2,))])])
def test_the_address_of_an_array_is_that_of_its_data(dtype: Any) -> None:
    whole = np.zeros((6, 4), dtype)
    for array in (whole, whole[2:5], whole[1], whole[6:], np.zeros(0, dtype), whole.reshape(-1)[3:].view()):
        assert library.pointer(array) == array.ctypes.data


def test_an_array_that_is_not_contiguous_has_no_address() -> None:
    with pytest.raises(AssertionError, match="expected a contiguous array"):
        library.pointer(np.zeros((4, 2))[:, 0])


def test_an_interpreter_whose_arrays_are_laid_out_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "pointer", lambda array: array.ctypes.data + 8)
    with pytest.raises(KernelUnavailable, match="expected CPython"):
        compiled._check_pointer()


def test_functions_that_are_declared_differently_do_not_share_their_types() -> None:
    plain, declared = (compiled.baseline("headrace_cpu_level", result=each) for each in (c_int, c_int64))
    assert (plain.restype, declared.restype) == (c_int, c_int64)
