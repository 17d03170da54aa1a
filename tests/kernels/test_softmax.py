"""The softmax losses against their definition in float64: values, every gradient, any level, any number of threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import KernelUnavailable, full_softmax, sampled_softmax
from kernels.softmax import cpp_loss
from tests.kernels.yardstick import assert_same_bits, force, levels, relative_error

KINDS = ("shared", "in_batch", "per_row", "full")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass
class Case:
    query_RD: Tensor
    table_UD: Tensor
    target_R: Tensor
    negatives: Tensor | None
    log_q: tuple[Tensor, Tensor] | None
    valid_V: Tensor | None
    weight_R: Tensor
    temperature: float
    normalize: bool

    def run(self, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        query_RD = self.query_RD.detach().to(dtype, copy=True).requires_grad_()
        table_UD = self.table_UD.detach().to(dtype, copy=True).requires_grad_()
        scale = {"temperature": self.temperature, "normalize": self.normalize, "backend": backend}
        if self.negatives is None:
            loss_R = full_softmax(query_RD, table_UD, self.target_R, valid_V=self.valid_V, **scale)
        else:
            log_q = self.log_q or (None, None)
            loss_R = sampled_softmax(
                query_RD, table_UD, self.target_R, self.negatives,
                log_q_target_R=log_q[0], log_q_negatives=log_q[1], **scale,
            )  # fmt: skip
        (loss_R * self.weight_R.to(loss_R.dtype)).sum().backward()
        assert query_RD.grad is not None
        assert table_UD.grad is not None
        return loss_R.detach(), query_RD.grad, table_UD.grad


def make_case(
    kind: str, num_queries: int, num_rows: int, width: int, num_negatives: int, *, seed: int = 0, alike: bool = True,
    normalize: bool = True, log_q: bool = False,
) -> Case:  # fmt: skip
    torch.manual_seed(seed)
    target_R = torch.randint(0, num_rows, (num_queries,))
    negatives = {
        "shared": torch.randint(-1, num_rows, (num_negatives,)),
        "in_batch": target_R,
        "per_row": torch.randint(-1, num_rows, (num_queries, num_negatives)),
        "full": None,
    }[kind]
    return Case(
        torch.randn(num_queries, width),
        torch.randn(num_rows, width),
        target_R,
        negatives,
        (torch.randn(num_queries), torch.randn(negatives.shape)) if log_q and negatives is not None else None,
        torch.rand(num_rows) < 0.7 if kind == "full" else None,
        torch.full((num_queries,), 1.0 / max(1, num_queries)) if alike else torch.rand(num_queries),
        0.07 if normalize else 3.0,
        normalize,
    )


def assert_close(case: Case) -> None:
    exact = case.run(torch.float64, "reference")
    result = case.run(torch.float32, "cpp")
    assert relative_error(result[0], exact[0]) < 1e-5
    assert relative_error(result[1], exact[1]) < 1e-4
    assert relative_error(result[2], exact[2]) < 1e-4


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 5, 2, 9), (70, 50, 50, 33), (129, 200, 64, 128), (17, 90, 130, 65)])
def test_losses_and_gradients_are_those_of_float64(
    monkeypatch: pytest.MonkeyPatch, level: str, kind: str, shape: tuple[int, int, int, int]
) -> None:
    force(monkeypatch, level)
    for alike, normalize, log_q in ((True, True, False), (False, True, True), (True, False, True)):
        assert_close(make_case(kind, *shape, alike=alike, normalize=normalize, log_q=log_q))


@pytest.mark.parametrize("level", levels())
def test_many_negatives_of_the_cached_kind_and_rows_of_any_size(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    force(monkeypatch, level)
    assert_close(make_case("shared", 97, 700, 24, 1100, alike=False, log_q=True))
    case = make_case("shared", 97, 300, 50, 70, log_q=True)
    case.query_RD *= 10 ** torch.empty(97, 1).uniform_(-3, 3)
    case.table_UD *= 10 ** torch.empty(300, 1).uniform_(-3, 3)
    assert_close(case)
    case.temperature = 0.01
    assert_close(case)


def test_the_gradient_of_a_mean_stays_the_same_when_asked_for_again() -> None:
    case = make_case("shared", 70, 50, 50, 33)
    query_RD = case.query_RD.clone().requires_grad_()
    assert case.negatives is not None
    loss = sampled_softmax(query_RD, case.table_UD, case.target_R, case.negatives).mean()
    loss.backward(retain_graph=True)
    assert query_RD.grad is not None
    first = query_RD.grad.clone()
    query_RD.grad.zero_()
    loss.backward()
    assert torch.equal(query_RD.grad, first)
    scaled = torch.autograd.grad(
        3 * sampled_softmax(query_RD, case.table_UD, case.target_R, case.negatives).mean(), query_RD
    )
    torch.testing.assert_close(scaled[0], 3 * first)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("kind", ["shared", "full"])
def test_more_negatives_than_fit_the_cache_are_taken_in_chunks(kind: str, alike: bool) -> None:
    num = cpp_loss.SMALL + 77
    assert_close(make_case(kind, 70, num, 24, num, alike=alike, log_q=True))


@given(
    kind=st.sampled_from(KINDS), num_queries=st.integers(1, 70), num_rows=st.integers(2, 60), width=st.integers(2, 40),
    num_negatives=st.integers(1, 70), alike=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape_is_close(
    kind: str, num_queries: int, num_rows: int, width: int, num_negatives: int, alike: bool, seed: int
) -> None:
    case = make_case(kind, num_queries, num_rows, width, num_negatives, seed=seed, alike=alike, normalize=False)
    exact = case.run(torch.float64, "reference")
    result = case.run(torch.float32, "cpp")
    for left, right in zip(result, exact, strict=True):
        # Rounding errors of terms that cancel (a loss of nearly 0) are compared with the size of the terms.
        torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=1e-5)


def test_zeros_fail_the_yardstick() -> None:
    exact = make_case("shared", 70, 50, 50, 33).run(torch.float64, "reference")
    for right in exact:
        assert relative_error(torch.zeros_like(right), right) > 0.9


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, level: str, kind: str, alike: bool, dtype: torch.dtype
) -> None:
    force(monkeypatch, level)
    case = make_case(kind, 300, 80, 40, 90, alike=alike, log_q=True)
    assert_same_bits(lambda: case.run(dtype, "cpp"), (1, 2, 3, 5))


def test_bits_that_depend_on_the_number_of_threads_are_caught() -> None:
    with pytest.raises(AssertionError, match="0 on 2 threads"):
        assert_same_bits(lambda: [torch.tensor(1.0 / torch.get_num_threads())], (1, 2))


def test_many_negatives_give_the_same_bits_on_any_number_of_threads() -> None:
    case = make_case("shared", 200, 5000, 16, cpp_loss.SMALL + 100, alike=False)
    assert_same_bits(lambda: case.run(torch.float32, "cpp"), (1, 3))


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_errs_at_most_twice_as_much_as_pytorch_does(
    monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    force(monkeypatch, level)
    case = make_case(kind, 150, 90, 50, 64, log_q=True)
    case.query_RD, case.table_UD = case.query_RD.bfloat16(), case.table_UD.bfloat16()
    exact = case.run(torch.float64, "reference")
    plain = naive_bfloat16(case)
    result = case.run(torch.bfloat16, "cpp")
    for ours, theirs, right in zip(result, plain, exact, strict=True):
        assert relative_error(ours, right) <= 2 * relative_error(theirs, right)


def naive_bfloat16(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The formula with every intermediate in bfloat16, as PyTorch computes it."""
    query_RD, table_UD = case.query_RD.clone().requires_grad_(), case.table_UD.clone().requires_grad_()
    unit_RD = torch.nn.functional.normalize(query_RD, dim=-1)
    unit_UD = torch.nn.functional.normalize(table_UD, dim=-1)
    negatives = torch.arange(len(table_UD)) if case.negatives is None else case.negatives
    score_RS = unit_RD @ unit_UD.T / case.temperature
    target_R = score_RS.gather(1, case.target_R[:, None])[:, 0]
    lists_RS = negatives.expand(len(query_RD), -1) if negatives.dim() == 1 else negatives
    score_RS = score_RS.gather(1, lists_RS.clamp(min=0))
    if case.log_q is not None:
        target_R = target_R - case.log_q[0].bfloat16()
        score_RS = score_RS - case.log_q[1].bfloat16()
    masked = (lists_RS < 0) | (lists_RS == case.target_R[:, None])
    if case.valid_V is not None:
        masked |= ~case.valid_V
    score_RS = score_RS.masked_fill(masked, float("-inf"))
    loss_R = torch.logsumexp(torch.cat([target_R[:, None], score_RS], 1), 1) - target_R
    (loss_R * case.weight_R.bfloat16()).sum().backward()
    assert query_RD.grad is not None
    assert table_UD.grad is not None
    return loss_R.detach(), query_RD.grad, table_UD.grad


@pytest.mark.parametrize("kind", KINDS)
def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def poisoned(self: cpp_loss.Problem, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"))

    monkeypatch.setattr(cpp_loss.Problem, "new", poisoned)
    for alike in (True, False):
        for result in make_case(kind, 67, 45, 50, 31, alike=alike).run(torch.float32, "cpp"):
            assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("kind", KINDS)
def test_no_queries_give_no_losses_and_a_table_gradient_of_zeros(kind: str) -> None:
    loss_R, grad_query_RD, grad_table_UD = make_case(kind, 0, 9, 6, 5).run(torch.float32, "cpp")
    assert loss_R.shape == (0,)
    assert grad_query_RD.shape == (0, 6)
    assert torch.equal(grad_table_UD, torch.zeros(9, 6))


@pytest.mark.parametrize("shape", [(0,), (4, 0)])
def test_without_negatives_there_is_no_loss(shape: tuple[int, ...]) -> None:
    query_RD, table_UD = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    loss_R = sampled_softmax(query_RD, table_UD, torch.arange(4), torch.empty(shape, dtype=torch.int64))
    loss_R.sum().backward()
    assert torch.equal(loss_R, torch.zeros(4))
    assert torch.equal(query_RD.grad, torch.zeros(4, 6))
    assert torch.equal(table_UD.grad, torch.zeros(9, 6))


def test_a_negative_equal_to_the_target_does_not_compete_unless_asked() -> None:
    query_RD, table_UD, target_R = torch.randn(5, 8), torch.randn(9, 8), torch.tensor([3, 3, 4, 8, 0])
    alone = sampled_softmax(query_RD, table_UD, target_R, target_R[:, None].repeat(1, 3))
    assert torch.equal(alone, torch.zeros(5))
    counted = sampled_softmax(query_RD, table_UD, target_R, target_R[:, None].repeat(1, 3), mask_hits=False)
    torch.testing.assert_close(counted, torch.full((5,), 4.0).log())


def test_rows_of_zeros_and_huge_scores_stay_finite() -> None:
    for kind in KINDS:
        case = make_case(kind, 20, 15, 6, 10)
        case.query_RD[3] = 0
        case.table_UD[:4] = 0
        case.query_RD[5] *= 1e15
        case.temperature = 1e-3
        for result in case.run(torch.float32, "cpp"):
            assert bool(torch.isfinite(result).all())


def test_a_nan_is_not_hidden() -> None:
    for kind in KINDS:
        case = make_case(kind, 20, 15, 6, 10)
        case.query_RD[3, 2] = float("nan")
        assert bool(case.run(torch.float32, "cpp")[0][3].isnan())


def test_only_the_gradients_asked_for_are_made() -> None:
    for kind in KINDS:
        case = make_case(kind, 20, 15, 6, 10)
        exact = case.run(torch.float32, "cpp")
        query_RD = case.query_RD.clone().requires_grad_()
        arguments = (case.target_R,) if case.negatives is None else (case.target_R, case.negatives)
        op = full_softmax if case.negatives is None else sampled_softmax
        more = {"valid_V": case.valid_V} if case.negatives is None else {}
        op(query_RD, case.table_UD, *arguments, temperature=case.temperature, **more).mean().backward()
        torch.testing.assert_close(query_RD.grad, exact[1])
        table_UD = case.table_UD.clone().requires_grad_()
        op(case.query_RD, table_UD, *arguments, temperature=case.temperature, **more).mean().backward()
        torch.testing.assert_close(table_UD.grad, exact[2])


MEASURE = """
import resource, torch
from kernels import sampled_softmax
torch.set_num_threads(1)
def step(num):
    query_RD = torch.randn(num, 64, requires_grad=True)
    table_UD = torch.randn(num, 64, requires_grad=True)
    rows = torch.arange(num)
    sampled_softmax(query_RD, table_UD, rows, rows).mean().backward()
step(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(4000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_below_the_logits() -> None:
    # 4,000 queries x 4,000 negatives are 64 MB of logits, (R, S, D) 4 GB.
    measured = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    assert int(measured.stdout) < 4000 * 4000 * 4


def test_bad_arguments_say_what_was_expected() -> None:
    query_RD, table_UD, target_R = torch.randn(4, 6), torch.randn(9, 6), torch.arange(4)
    with pytest.raises(ValueError, match=r"expected \(R, D\) and \(rows, D\)"):
        sampled_softmax(query_RD, torch.randn(9, 5), target_R, target_R)
    with pytest.raises(ValueError, match="expected the same dtype"):
        sampled_softmax(query_RD, table_UD.half(), target_R, target_R)
    with pytest.raises(ValueError, match=r"target_R: expected shape \(4,\), got \(3,\)"):
        sampled_softmax(query_RD, table_UD, target_R[:3], target_R)
    with pytest.raises(ValueError, match="negatives: expected int64"):
        sampled_softmax(query_RD, table_UD, target_R, target_R.int())
    with pytest.raises(ValueError, match=r"negatives: expected \(S,\) or \(R, S\)"):
        sampled_softmax(query_RD, table_UD, target_R, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(IndexError, match="target_R: expected rows 0 to 8, got 0 to 9"):
        sampled_softmax(query_RD, table_UD, torch.tensor([0, 1, 2, 9]), target_R)
    with pytest.raises(IndexError, match="negatives: expected rows -1 to 8, got -2 to 3"):
        sampled_softmax(query_RD, table_UD, target_R, torch.tensor([-2, 3]))
    for wrong in (-2, 9, 2**40, -(2**63)):
        lists = torch.tensor([[0, 1], [2, 3], [-1, 8], [4, wrong]])
        with pytest.raises(
            IndexError, match=f"negatives: expected rows -1 to 8, got {min(-1, wrong)} to {max(8, wrong)}"
        ):
            sampled_softmax(query_RD, table_UD, target_R, lists)
    with pytest.raises(ValueError, match="expected both or neither"):
        sampled_softmax(query_RD, table_UD, target_R, target_R, log_q_target_R=torch.zeros(4))
    with pytest.raises(ValueError, match="temperature: expected above 0"):
        full_softmax(query_RD, table_UD, target_R, temperature=0.0)
    with pytest.raises(ValueError, match="valid_V: expected bool"):
        full_softmax(query_RD, table_UD, target_R, valid_V=torch.ones(9))
    with pytest.raises(ValueError, match="backend: expected one of"):
        full_softmax(query_RD, table_UD, target_R, backend="cuda")
    with pytest.raises(KernelUnavailable, match="float32 and bfloat16"):
        full_softmax(query_RD.double(), table_UD.double(), target_R)
