"""Kernels compiled for absent GPUs: registers, spills, shared memory and matrix instructions within budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton comes with torch on Linux")

from tests.kernels.triton import budget
from tests.kernels.triton.compiling import Report
from tests.kernels.triton.variants import HOPPER, Variant, variants

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"), pytest.mark.usefixtures("triton_cache")
]  # fmt: skip
CASES = [(variant, architecture) for variant in variants() for architecture in variant.architectures]


@pytest.mark.parametrize(("variant", "architecture"), CASES, ids=[f"{v.name} sm_{a}" for v, a in CASES])
def test_compiled_kernel_stays_within_its_budget(variant: Variant, architecture: int) -> None:
    limits = budget.read().get(budget.version_key())
    if limits is None:
        pytest.skip(f"no budget for Triton {budget.version_key()}; run python -m tests.kernels.triton.budget")
    report = budget.report_of(variant, architecture)
    worse = budget.exceeded(report, limits[f"{variant.name} sm_{architecture}"])
    assert not worse, f"{worse}; if that is meant, run python -m tests.kernels.triton.budget and say why in the commit"


def test_on_hopper_attention_multiplies_with_wgmma_and_loads_wide() -> None:
    for name, limits in budget.read().get(budget.version_key(), {}).items():
        if name.endswith(f"sm_{HOPPER}") and name.split()[0] in ("forward", "queries", "keys", "softmax"):
            assert limits["wgmma"] > 0, name
            assert limits["mma"] <= 4, name  # sums by distance of a tile of 64 x 32 are half of what wgmma takes
            assert limits["waits"] * 3 <= limits["wgmma"], f"{name}: products wait for each other"
            assert limits["wide_loads"] > 0, name


def test_a_budget_notices_each_thing_that_gets_worse() -> None:
    limits = {
        "registers": 100,
        "stack": 0,
        "shared": 1000,
        "spills": 0,
        "wgmma": 8,
        "waits": 2,
        "mma": 0,
        "wide_loads": 4,
        "barriers": 9,
    }
    good = Report(**limits)
    assert budget.exceeded(good, limits) == []
    worse = {
        "registers": 101,
        "stack": 8,
        "spills": 1,
        "shared": 1001,
        "wgmma": 7,
        "waits": 3,
        "wide_loads": 3,
        "barriers": 10,
    }
    for key, value in worse.items():
        assert len(budget.exceeded(replace(good, **{key: value}), limits)) == 1
