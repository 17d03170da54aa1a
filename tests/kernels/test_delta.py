"""Delta attention: only the new rows of full attention; no gradient flows into the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import BucketCache, delta_attention, hstu_attention
from kernels.attention import cpp as attention_cpp
from tests.kernels.jagged import Batch, make_batch
from tests.kernels.yardstick import force, forward_limit, levels, relative_error

CACHED = {"some": [40, 0, 7, 1, 63], "nothing": [0, 0, 0, 0, 0], "all but one": [89, 4, 8, 5, 65]}
LENGTHS = [90, 5, 9, 6, 66]


def split(batch: Batch, cached: list[int]) -> tuple[Tensor, Tensor]:
    """(indices of the new tokens, offsets of the new tokens)."""
    starts = batch.offsets[:-1].tolist()
    new = [torch.arange(s + c, s + n) for s, c, n in zip(starts, cached, LENGTHS, strict=True)]
    return torch.cat(new), torch.tensor([0, *(len(part) for part in new)]).cumsum(0)


def delta(
    batch: Batch, cached: list[int], dtype: torch.dtype, backend: str, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    index, offsets = split(batch, cached)
    leaves = {name: getattr(batch, name)[index].to(dtype, copy=True).requires_grad_() for name in ("q", "k", "v")}
    table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    assert batch.pos is not None
    assert batch.time is not None
    leaves |= {name: getattr(batch, name).to(table_dtype, copy=True).requires_grad_() for name in ("pos", "time")}
    cache_k, cache_v = batch.k.to(dtype, copy=True).requires_grad_(), batch.v.to(dtype, copy=True).requires_grad_()
    out = delta_attention(
        leaves["q"], leaves["k"], leaves["v"], offsets, cache_k, cache_v, batch.offsets[:-1], torch.tensor(cached),
        norm_len=batch.norm_len, pos_bias_GP=leaves["pos"], time_bias_GK=leaves["time"], time_buckets=batch.buckets,
        query_time_S=batch.query_time[index], key_time_S=batch.key_time[index], cache_time_C=batch.key_time,
        backend=backend, **options,
    )  # fmt: skip
    out.backward(batch.grad[index].to(dtype))
    assert cache_k.grad is None
    assert cache_v.grad is None
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("cached", CACHED)
@pytest.mark.parametrize("targets", [0, 3])
def test_output_and_gradients_are_those_of_the_definition(
    cached: str, targets: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    batch = make_batch(LENGTHS)
    new = split(batch, CACHED[cached])[1].diff()
    options = {"num_targets_B": new.clamp(max=targets)} if targets else {}
    expected, gradients = delta(batch, CACHED[cached], torch.float64, "reference", **options)
    out, got = delta(batch, CACHED[cached], torch.float32, "cpp", **options)
    assert relative_error(out, expected) <= forward_limit()
    for name, gradient in gradients.items():
        assert relative_error(got[name], gradient) <= 1e-4, name


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("cached", CACHED)
def test_new_rows_are_those_of_full_attention(cached: str, backend: str) -> None:
    batch = make_batch(LENGTHS)
    index, _ = split(batch, CACHED[cached])
    assert batch.pos is not None
    assert batch.time is not None
    full = hstu_attention(
        batch.q.float(), batch.k.float(), batch.v.float(), batch.offsets, norm_len=batch.norm_len,
        pos_bias_GP=batch.pos.float(), time_bias_GK=batch.time.float(), time_buckets=batch.buckets,
        query_time_T=batch.query_time, key_time_T=batch.key_time, backend=backend,
    )  # fmt: skip
    out, _ = delta(batch, CACHED[cached], torch.float32, backend)
    assert relative_error(out, full[index]) < 1e-6


def test_users_may_share_a_cache_and_the_cache_may_have_any_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(20, 2, 40, generator=generator)
    cache_k, cache_v = wide[:, :, 3:11], wide[:, :, 20:32]
    q, k, v = (torch.randn(4, 2, width, generator=generator) for width in (8, 8, 12))
    arguments = (torch.tensor([0, 2, 4]), torch.tensor([5, 5]), torch.tensor([10, 10]))
    shared = delta_attention(q, k, v, arguments[0], cache_k, cache_v, *arguments[1:], norm_len=9.0)
    expected = delta_attention(
        q, k, v, arguments[0], cache_k, cache_v, *arguments[1:], norm_len=9.0, backend="reference"
    )
    assert relative_error(shared, expected) < 1e-6


def test_bfloat16_reads_a_bfloat16_cache() -> None:
    batch = make_batch(LENGTHS)
    expected, _ = delta(batch, CACHED["some"], torch.float64, "reference")
    out, _ = delta(batch, CACHED["some"], torch.bfloat16, "cpp")
    assert relative_error(out, expected) < 1e-2


def test_layers_share_the_buckets_of_a_batch_and_of_that_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = attention_cpp.make_buckets
    monkeypatch.setattr(attention_cpp, "make_buckets", lambda *inputs: [made.append(1), make(*inputs)][1])
    batch, bucket_cache = make_batch(LENGTHS), BucketCache()
    index, offsets = split(batch, CACHED["some"])
    start, length = batch.offsets[:-1], torch.tensor(CACHED["some"])
    times = [batch.query_time[index], batch.key_time[index]]

    def attend(cache: BucketCache | None) -> Tensor:
        q, k, v = (getattr(batch, name).float()[index] for name in ("q", "k", "v"))
        assert batch.time is not None
        return delta_attention(
            q, k, v, offsets, batch.k.float(), batch.v.float(), start, length, norm_len=batch.norm_len,
            time_bias_GK=batch.time.float(), time_buckets=batch.buckets, query_time_S=times[0], key_time_S=times[1],
            cache_time_C=batch.key_time, bucket_cache=cache, backend="cpp",
        )  # fmt: skip

    first, second = attend(bucket_cache), attend(bucket_cache)
    assert len(made) == 1
    assert torch.equal(first, second)
    times[0] = times[0] + 10**9
    assert torch.equal(attend(bucket_cache), attend(None)), "other times, other buckets"
    assert not torch.equal(attend(None), first)


def test_a_range_outside_the_cache_is_refused() -> None:
    q = torch.zeros(2, 1, 4)
    cache = torch.zeros(3, 1, 4)
    offsets = torch.tensor([0, 2])
    for start, length in ((1, 3), (-1, 2), (0, -1)):
        with pytest.raises(ValueError, match="expected ranges within the 3 cached rows"):
            delta_attention(q, q, q, offsets, cache, cache, torch.tensor([start]), torch.tensor([length]), norm_len=1.0)
