"""Delta attention of candidates: new tokens that all see one history, asked about at one moment, and themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import TimeBuckets, delta_attention
from tests.kernels.yardstick import force, forward_limit, levels, relative_error

WIDTHS = {"whole vectors": (16, 32), "odd": (10, 23)}
HISTORIES = {"long": [90, 70], "none": [0, 33], "one": [1, 64]}
NUM_CANDIDATES = [57, 131]
HEADS = 2


class Candidates:
    """Random candidates of two users with histories; times in ascending order, one moment for all candidates."""

    def __init__(self, history: list[int], widths: tuple[int, int], num_buckets: int) -> None:
        generator, (qk, value) = torch.Generator().manual_seed(1), widths

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        num, cached = sum(NUM_CANDIDATES), sum(history)
        self.q, self.k, self.v = normal(num, HEADS, qk) * 0.7, normal(num, HEADS, qk) * 0.7, normal(num, HEADS, value)
        self.cache_k, self.cache_v = normal(cached, HEADS, qk) * 0.7, normal(cached, HEADS, value)
        self.offsets = torch.tensor([0, *NUM_CANDIDATES]).cumsum(0)
        self.length = torch.tensor(history)
        self.start = torch.tensor([0, history[0]])
        self.time_bias = normal(HEADS, num_buckets) * 0.5
        self.buckets = TimeBuckets(torch.arange(1, num_buckets) * 10)
        self.cache_time = torch.arange(cached) * 10
        moment = torch.tensor([cached * 10 + 5, cached * 10 + 9])
        self.query_time = moment.repeat_interleave(torch.tensor(NUM_CANDIDATES))

    def attend(self, dtype: torch.dtype, backend: str, *, own_time: Tensor | None = None) -> Tensor:
        return delta_attention(
            self.q.to(dtype), self.k.to(dtype), self.v.to(dtype), self.offsets, self.cache_k.to(dtype),
            self.cache_v.to(dtype), self.start, self.length, norm_len=41.0,
            time_bias_GK=self.time_bias.to(torch.float32 if dtype == torch.bfloat16 else dtype),
            time_buckets=self.buckets, query_time_S=self.query_time,
            key_time_S=self.query_time if own_time is None else own_time, cache_time_C=self.cache_time,
            num_targets_B=self.offsets.diff(), backend=backend,
        )  # fmt: skip


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("num_buckets", [40, 300])
def test_candidates_get_the_definitions_outputs(
    history: str, widths: str, num_buckets: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    candidates = Candidates(HISTORIES[history], WIDTHS[widths], num_buckets)
    expected = candidates.attend(torch.float64, "reference")
    out = candidates.attend(torch.float32, "cpp")
    assert relative_error(out, expected) <= forward_limit()
    size = expected.norm(dim=(1, 2))  # a lone key whose score is almost 0 leaves almost nothing, by a difference
    worst = (out.double() - expected).norm(dim=(1, 2)) / size.clamp(min=float(size.median()) / 10)
    assert float(worst.max()) <= 10 * forward_limit(), "no candidate may be wrong, whatever the norm of all says"


def test_a_key_time_of_its_own_gives_each_candidate_its_own_bias() -> None:
    candidates = Candidates(HISTORIES["long"], WIDTHS["odd"], 40)
    ascending = candidates.query_time - 250 + torch.cat([torch.arange(num) for num in NUM_CANDIDATES])
    ascending = torch.maximum(ascending, candidates.cache_time.max())
    expected = candidates.attend(torch.float64, "reference", own_time=ascending)
    assert relative_error(candidates.attend(torch.float32, "cpp", own_time=ascending), expected) <= 1e-5
    assert relative_error(candidates.attend(torch.float32, "cpp"), expected) > 1e-3


def test_scores_beyond_the_range_of_exponentials_stay_finite() -> None:
    candidates = Candidates(HISTORIES["long"], WIDTHS["odd"], 40)
    candidates.q *= 100
    expected = candidates.attend(torch.float64, "reference")
    assert relative_error(candidates.attend(torch.float32, "cpp"), expected) <= 1e-5


def test_a_candidates_output_does_not_depend_on_its_place() -> None:
    candidates = Candidates([90, 90], WIDTHS["odd"], 40)
    place = torch.randperm(NUM_CANDIDATES[0], generator=torch.Generator().manual_seed(2))
    out = candidates.attend(torch.float32, "cpp")
    for name in ("q", "k", "v"):
        getattr(candidates, name)[: NUM_CANDIDATES[0]] = getattr(candidates, name)[place]
    assert torch.equal(candidates.attend(torch.float32, "cpp")[: NUM_CANDIDATES[0]], out[place])


def test_bfloat16_candidates_read_a_bfloat16_history() -> None:
    candidates = Candidates(HISTORIES["long"], WIDTHS["odd"], 40)
    expected = candidates.attend(torch.float64, "reference")
    assert relative_error(candidates.attend(torch.bfloat16, "cpp"), expected) < 1e-2
