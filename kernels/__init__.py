"""Fused ops of an HSTU recommender, each beside its plain PyTorch definition.

Shape legend for the whole project (suffixes of tensor names):

    B  users in a jagged batch          T  tokens of all users, packed without padding
    H  heads                            D  width of a query/key head, or of an embedding row
    E  width of a value head            M  model width
    G  bias heads (1 = shared, or H)    P  relative positions in a bias    K  time buckets
    R  query rows of a loss             S  negatives, or new tokens        U, V  rows of a table
    C  cached tokens
    offsets_B1  (B+1,) int64, offsets_B1[b]:offsets_B1[b+1] are user b's tokens; offsets_B1[0] == 0, [-1] == T

Every op takes ``backend``: ``"auto"`` (C++ for CPU tensors, Triton for CUDA tensors), ``"cpp"``, ``"triton"`` or
``"reference"``. A missing kernel raises `KernelUnavailable`; nothing falls back silently.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.adagrad import Dither, rowwise_adagrad_
    from kernels.attention import BucketCache, TimeBuckets, hstu_attention
    from kernels.backend import KernelUnavailable
    from kernels.delta import delta_attention
    from kernels.id_map import IdMap
    from kernels.layer import (
        LayerParams,
        Tail,
        hstu_layer,
        hstu_layer_history,
        hstu_layer_output,
        hstu_layer_project,
    )
    from kernels.length import kept_length, stochastic_length
    from kernels.softmax import full_softmax, rank_of_target, sampled_softmax, top_k

_HOMES = {
    "Dither": "adagrad",
    "BucketCache": "attention",
    "TimeBuckets": "attention",
    "hstu_attention": "attention",
    "KernelUnavailable": "backend",
    "delta_attention": "delta",
    "IdMap": "id_map",
    "LayerParams": "layer",
    "Tail": "layer",
    "hstu_layer": "layer",
    "hstu_layer_history": "layer",
    "hstu_layer_output": "layer",
    "hstu_layer_project": "layer",
    "kept_length": "length",
    "stochastic_length": "length",
    "rowwise_adagrad_": "adagrad",
    "full_softmax": "softmax",
    "rank_of_target": "softmax",
    "sampled_softmax": "softmax",
    "top_k": "softmax",
}

__all__ = [
    "BucketCache",
    "Dither",
    "IdMap",
    "KernelUnavailable",
    "LayerParams",
    "Tail",
    "TimeBuckets",
    "delta_attention",
    "full_softmax",
    "hstu_attention",
    "hstu_layer",
    "hstu_layer_history",
    "hstu_layer_output",
    "hstu_layer_project",
    "kept_length",
    "rank_of_target",
    "rowwise_adagrad_",
    "sampled_softmax",
    "stochastic_length",
    "top_k",
]


def __getattr__(name: str) -> Any:
    # Each op's module is imported at first use: `python -m kernels.build` must not need the library that it builds.
    if name not in _HOMES:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(import_module(f"kernels.{_HOMES[name]}"), name)
