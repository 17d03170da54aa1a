"""AdamW in one call against its definition, step after step."""

from __future__ import annotations

import pytest
import torch

from kernels.adamw import AdamWRules, AdamWState, adamw_
from tests.kernels.yardstick import force, levels, relative_error

PLAIN = AdamWRules(beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.0, clip_norm=0.0)
CLIPPED = AdamWRules(beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1, clip_norm=0.5)


def make_state(num: int, dtype: torch.dtype = torch.float64) -> AdamWState:
    generator = torch.Generator().manual_seed(num)
    weight = torch.randn(num, generator=generator, dtype=torch.float64)
    return AdamWState(weight.to(dtype), *(torch.zeros(num, dtype=dtype) for _ in range(3)))


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rules", [PLAIN, CLIPPED], ids=["plain", "clipped and decayed"])
@pytest.mark.parametrize("num", [1, 15, 16, 10_007])
def test_steps_are_the_definitions(num: int, rules: AdamWRules, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    generator = torch.Generator().manual_seed(1)
    exact, ours = make_state(num), make_state(num, torch.float32)
    begun = exact.weight.clone()
    for step in range(1, 6):
        gradient = torch.randn(num, generator=generator, dtype=torch.float64)
        exact.gradient.copy_(gradient)
        ours.gradient.copy_(gradient)
        adamw_(exact, rules, 0.01, step, backend="reference")
        adamw_(ours, rules, 0.01, step)
        assert not ours.gradient.any()
    assert relative_error(ours.weight - begun, exact.weight - begun) < 1e-5
    assert relative_error(ours.mean, exact.mean) < 1e-6
    assert relative_error(ours.square, exact.square) < 1e-6


def test_a_gradient_that_is_no_number_spoils_the_weights_for_all_to_see() -> None:
    state = make_state(20, torch.float32)
    state.gradient[3] = torch.nan
    adamw_(state, CLIPPED, 0.01, 1)
    assert torch.isnan(state.weight).all()


def test_vectors_of_several_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="expected vectors of one length"):
        adamw_(AdamWState(*(torch.zeros(num) for num in (3, 3, 3, 4))), PLAIN, 0.01, 1)
