"""One HSTU layer: LayerNorm → U, V, Q, K → SiLU → attention → LayerNorm ⊙ U → projection, residual, dropout.

Source: Zhai et al., "Actions Speak Louder than Words", ICML 2024, equations 1-3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels.attention import hstu_attention
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.check import check_bias, check_counts, check_norm, check_offsets, check_times
from kernels.backend import choose
from kernels.dispatch import load
from kernels.layer import reference
from kernels.layer.params import LayerParams
from kernels.layer.tail import Tail

__all__ = ["LayerParams", "Tail", "hstu_layer", "hstu_layer_history", "hstu_layer_output", "hstu_layer_project"]


def _check_input(x_TM: Tensor, params: LayerParams, num_heads: int) -> None:
    model, _, _ = params.widths(num_heads)
    if x_TM.dim() != 2 or x_TM.shape[1] != model:
        raise ValueError(f"x_TM: expected (T, {model}), got {tuple(x_TM.shape)}")
    if not x_TM.is_floating_point():
        raise ValueError(f"x_TM: expected a float tensor, got {x_TM.dtype}")


def hstu_layer(
    x_TM: Tensor,
    params: LayerParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    pos_bias_GP: Tensor | None = None,
    time_bias_GK: Tensor | None = None,
    time_buckets: TimeBuckets | None = None,
    query_time_T: Tensor | None = None,
    key_time_T: Tensor | None = None,
    num_context_B: Tensor | None = None,
    num_targets_B: Tensor | None = None,
    bucket_cache: BucketCache | None = None,
    tail: Tail | None = None,
    only_tail: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """y = x + dropout((LayerNorm(A V) ⊙ U) W2 + b2), with U, V, Q, K = split(SiLU(LayerNorm(x) W1 + b1)).

    ``x_TM`` (T, M); see `LayerParams` for the weights and `kernels.hstu_attention` for the bias, time and mask
    arguments. The dropout mask is a function of (``seed``, token, column): see `kernels.layer.dropout`. Gradients: x,
    every tensor of ``params`` and both biases. Returns (T, M) in x's dtype.

    ``tail``: the tokens whose outputs are needed; for the others only keys and values are computed. Returns the tail's
    rows (S, M) if ``only_tail``; else all (T, M), of which only the tail's take gradients. Not with
    ``num_context_B``. A GPU computes all rows in any case.

    Raises ValueError (shapes, dtypes, offsets, dropout outside [0, 1)), `KernelUnavailable`.
    """
    _check_input(x_TM, params, num_heads)
    if tail is not None and num_context_B is not None:
        raise ValueError("tail: expected no num_context_B with it, got one; leave one of them out")
    check_offsets(offsets_B1, x_TM.shape[0])
    check_norm(norm_len)
    check_bias(pos_bias_GP, num_heads, "pos_bias_GP")
    check_bias(time_bias_GK, num_heads, "time_bias_GK")
    check_times(time_bias_GK, time_buckets, query_time_T, key_time_T, x_TM.shape[0], x_TM.shape[0])
    check_counts(num_context_B, offsets_B1, "num_context_B")
    check_counts(num_targets_B, offsets_B1, "num_targets_B")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: expected a fraction in [0, 1), got {dropout}")
    chosen = choose(backend, x_TM.device)
    pairs: dict[str, Any] = {
        "pos_bias_GP": pos_bias_GP,
        "time_bias_GK": time_bias_GK,
        "time_buckets": time_buckets,
        "query_time_T": query_time_T,
        "key_time_T": key_time_T,
        "num_context_B": num_context_B,
        "num_targets_B": num_targets_B,
    }
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "norm_len": norm_len,
        "dropout": dropout,
        "seed": seed,
        "eps": eps,
    }
    if chosen == "cpp":
        outputs = None if tail is None else (tail, only_tail)
        y: Tensor = load("layer", chosen).layer(
            x_TM, params, offsets_B1, **options, **pairs, bucket_cache=bucket_cache, outputs=outputs
        )
        return y
    if chosen == "reference":
        y = reference.layer(x_TM, params, offsets_B1, **options, **pairs)
    else:
        y = load("layer", chosen).layer(x_TM, params, offsets_B1, **options, **pairs, bucket_cache=bucket_cache)
    if tail is None:
        return y
    return tail.of(y) if only_tail else tail.alone_varies(y)


def hstu_layer_history(
    x_TM: Tensor,
    params: LayerParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets,
    query_time_T: Tensor,
    key_time_T: Tensor,
    bucket_cache: BucketCache | None = None,
    tail: Tail | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`hstu_layer` for cached inference: y (T, M), or the tail's rows of it (S, M), and the keys (T, H, D) and values
    (T, H, E) of all tokens.

    ``tail``: with at least one token of each user. No dropout and no gradients. In C++ each user goes through the
    whole layer at once, so that U, Q and the attention's output do not go through memory.

    Raises ValueError (shapes, dtypes, offsets, a user without outputs), `KernelUnavailable`.
    """
    _check_input(x_TM, params, num_heads)
    check_offsets(offsets_B1, x_TM.shape[0])
    check_norm(norm_len)
    check_bias(pos_bias_GP, num_heads, "pos_bias_GP")
    check_bias(time_bias_GK, num_heads, "time_bias_GK")
    check_times(time_bias_GK, time_buckets, query_time_T, key_time_T, x_TM.shape[0], x_TM.shape[0])
    if tail is not None and bool(((tail.num_silent_B > 0) & (tail.offsets_B1.diff() == 0)).any()):
        raise ValueError("tail: expected an output for each user, got users of whom all tokens are silent")
    pairs: dict[str, Any] = {
        "norm_len": norm_len, "pos_bias_GP": pos_bias_GP, "time_bias_GK": time_bias_GK, "time_buckets": time_buckets,
        "query_time_T": query_time_T, "key_time_T": key_time_T, "bucket_cache": bucket_cache,
    }  # fmt: skip
    chosen = choose(backend, x_TM.device)
    if chosen == "cpp":
        found: tuple[Tensor, Tensor, Tensor] = load("layer", chosen).history(
            x_TM, params, offsets_B1, num_heads=num_heads, tail=tail, eps=eps, **pairs
        )
        return found
    u, v, q, k = hstu_layer_project(x_TM, params, num_heads=num_heads, eps=eps, backend=backend)
    attended = hstu_attention(q, k, v, offsets_B1, backend=backend, **pairs)
    y = hstu_layer_output(x_TM, attended, u, params, eps=eps, backend=backend)
    return y if tail is None else tail.of(y), k, v


def hstu_layer_project(
    x_TM: Tensor, params: LayerParams, *, num_heads: int, eps: float = 1e-6, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layer's first half: (u_THE, v_THE, q_THD, k_THD) of x (T, M), for cached inference.

    Only the reference has gradients; the C++ version returns views of one tensor.
    """
    _check_input(x_TM, params, num_heads)
    chosen = choose(backend, x_TM.device)
    if chosen == "reference":
        return reference.project(x_TM, params, num_heads=num_heads, eps=eps)
    halves: tuple[Tensor, Tensor, Tensor, Tensor] = load("layer", chosen).project(
        x_TM, params, num_heads=num_heads, eps=eps
    )
    return halves


def hstu_layer_output(
    x_TM: Tensor, attended_THE: Tensor, u_THE: Tensor, params: LayerParams, *, eps: float = 1e-6, backend: str = "auto"
) -> Tensor:
    """The layer's second half: y (T, M) from x, the attention's output and U; for cached inference.

    No dropout; only the reference has gradients.
    """
    _check_input(x_TM, params, u_THE.shape[1])
    chosen = choose(backend, x_TM.device)
    if chosen == "reference":
        return reference.output(x_TM, attended_THE, u_THE, params, dropout=0.0, seed=0, eps=eps)
    y: Tensor = load("layer", chosen).output(x_TM, attended_THE, u_THE, params, eps=eps)
    return y
