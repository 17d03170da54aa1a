"""One version's model as a server computes it: new tokens on top of cached keys and values (M-FALCON).

The formulas are the trainer's (`model.hstu.HSTU`) and the kernels'; this module orders the work so that caching is
possible. "Actions Speak Louder than Words" (Zhai et al., ICML 2024), section 3.4: the keys and values of a history are
computed once, and many candidates are scored against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import BucketCache, Tail, TimeBuckets, top_k
from kernels.windows import unpack_kinds
from model.config import ModelConfig
from model.hstu import HSTU
from model.layers import FuxiLayer, Layer
from model.tokens import ITEMS, side_inputs
from serving.model.columns import Columns
from serving.model.tables import Derive, TableSet, tensor_of
from wire.weights import Manifest

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class KeysValues:
    """Keys and values of C tokens in every layer: ``k`` (C, H, D) and ``v`` (C, H, E) each, and their times (C,)."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    times: Tensor

    def __len__(self) -> int:
        return len(self.times)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(tensor.nbytes for tensor in (*self.k, *self.v, self.times))

    def narrow(self, start: int, stop: int, *, copy: bool = False) -> KeysValues:
        """Tokens start … stop - 1; with ``copy``, in their own memory."""

        def cut(x: Tensor) -> Tensor:
            return x[start:stop].clone() if copy else x[start:stop]

        return KeysValues(tuple(map(cut, self.k)), tuple(map(cut, self.v)), cut(self.times))

    @staticmethod
    def cat(parts: Sequence[KeysValues]) -> KeysValues:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        k = tuple(torch.cat(layer) for layer in zip(*(part.k for part in parts), strict=True))
        v = tuple(torch.cat(layer) for layer in zip(*(part.v for part in parts), strict=True))
        return KeysValues(k, v, torch.cat([part.times for part in parts]))


class Network:
    """The dense weights of one version, ready to compute with. Never changed after `build`."""

    def __init__(self, model: HSTU, device: torch.device, backend: str) -> None:
        self.config, self.model, self.device, self.backend = model.config, model, device, backend
        self.derived: dict[str, Derive] = {ITEMS: model.retrieval_table}
        self._layers = [layer for layer in model.layers if isinstance(layer, Layer | FuxiLayer)]

    @staticmethod
    def build(manifest: Manifest, dense: Mapping[str, NDArray[Any]], device: torch.device, backend: str) -> Network:
        """A version's network. Raises ConfigError or RuntimeError if weights and configuration do not fit together."""
        model = HSTU(ModelConfig.from_dict(manifest.model_config))
        state = {name: tensor_of(array, device).float() for name, array in dense.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return Network(model.requires_grad_(requires_grad=False), device, backend)

    @torch.inference_mode()
    def warm(self) -> None:
        """Compute something small, so that no request pays for what the kernels load at their first call (seconds)."""
        x_SM, one = torch.zeros((1, self.config.model_width), device=self.device), torch.ones(1, dtype=torch.int64)
        zero, bounds = self.tensor(np.zeros(1, np.int64)), self.tensor(np.arange(2))
        y_BM, _ = self.extend(x_SM, one.to(self.device), one.to(self.device), bounds, self.nothing(), zero, zero)
        query_RD = self.model.retrieval_query(y_BM)
        top_k(
            query_RD, torch.zeros((1, query_RD.shape[1]), device=self.device), 1, normalize=False, backend=self.backend
        )

    def nothing(self) -> KeysValues:
        """Keys and values of no tokens."""
        c = self.config
        k = tuple(torch.zeros((0, c.num_heads, c.qk_width), device=self.device) for _ in self._layers)
        v = tuple(torch.zeros((0, c.num_heads, c.value_width), device=self.device) for _ in self._layers)
        return KeysValues(k, v, torch.zeros(0, dtype=torch.int64, device=self.device))

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array on this network's device."""
        return tensor_of(np.ascontiguousarray(array), self.device)

    def item_tokens(self, tables: TableSet, columns: Columns) -> Tensor:
        """(n, M) the item tokens of n interactions, or of candidates."""
        rows_nD = tables[ITEMS].rows[self.tensor(tables[ITEMS].lookup(columns.item_n))]
        return self.model.item_inputs(rows_nD, self._side(tables, columns))

    def action_tokens(self, item_nM: Tensor, columns: Columns) -> Tensor:
        """(n, M) the action tokens of n interactions."""
        kinds_nK = self.tensor(unpack_kinds(columns.bits_n, len(self.config.kinds)))
        return self.model.action_inputs(item_nM, kinds_nK, self.tensor(columns.value_n))

    def _side(self, tables: TableSet, columns: Columns) -> Tensor | None:
        """(n, M) the sum of domain and feature rows; None if there are none."""

        def sum_rows(name: str, keys_nF: Int64) -> Tensor | None:
            if name not in tables or tables[name].num_rows <= 1:
                return None
            rows = tables[name].lookup(np.ascontiguousarray(keys_nF.reshape(-1))).reshape(keys_nF.shape)
            return tables[name].rows[self.tensor(rows)].sum(dim=1)

        domain_n = columns.domain_n if self.config.use_domain else None
        return side_inputs(domain_n, columns.features, columns.user_features, sum_rows)

    def extend(self, x_SM: Tensor, query_time_S: Tensor, key_time_S: Tensor, offsets_B1: Tensor, past: KeysValues,
               past_start_B: Tensor, past_len_B: Tensor) -> tuple[Tensor, KeysValues]:  # fmt: skip
        """Put new tokens of B users through all layers, each after its user's past: the outputs (B, M) of each user's
        last one, and the keys and values of all.

        User b's past is ``past_len_B[b]`` tokens of ``past`` from ``past_start_B[b]`` on (users may share them). At
        least one token each is new. Nobody reads the other tokens' outputs of the last layer, so where no user has a
        past (what costs most) they are not computed.
        """
        if isinstance(self._layers[0], Layer) and not bool(past_len_B.any()):
            return self._whole(x_SM, query_time_S, key_time_S, offsets_B1)
        kept_k, kept_v, cache = [], [], BucketCache()
        for index, layer in enumerate(self._layers):
            pos_bias_GP, time_bias_GK = layer.biases()
            x_SM, k, v = self._through(
                index, x_SM, past, offsets_B1, past_start_B, past_len_B, pos_bias_GP=pos_bias_GP,
                time_bias_GK=time_bias_GK, time_buckets=self.model.time_buckets, query_time_S=query_time_S,
                key_time_S=key_time_S, cache_time_C=past.times, bucket_cache=cache,
            )  # fmt: skip
            kept_k.append(k)
            kept_v.append(v)
        return x_SM[offsets_B1[1:] - 1], KeysValues(tuple(kept_k), tuple(kept_v), key_time_S)

    def _whole(
        self, x_TM: Tensor, query_time_T: Tensor, key_time_T: Tensor, offsets_B1: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """`extend` for users without a past."""
        kept_k, kept_v, cache = [], [], BucketCache()
        tail = Tail.behind((offsets_B1[1:] - offsets_B1[:-1] - 1).cpu(), offsets_B1.cpu())
        for layer in self._layers:
            assert isinstance(layer, Layer)
            x_TM, k, v = layer.history(
                x_TM, offsets_B1, time_buckets=self.model.time_buckets, query_time_T=query_time_T,
                key_time_T=key_time_T, bucket_cache=cache, tail=tail if layer is self._layers[-1] else None,
                backend=self.backend,
            )  # fmt: skip
            kept_k.append(k)
            kept_v.append(v)
        return x_TM, KeysValues(tuple(kept_k), tuple(kept_v), key_time_T)

    def score_candidates(self, x_CM: Tensor, now_ms: int, past: KeysValues) -> Tensor:
        """Put C candidates through all layers: outputs (C, M).

        Each comes right after ``past``, is asked about at ``now_ms``, and sees the past and itself. Tokens of one
        sequence have different positions, but all candidates must have the same one. So the biases of position and time
        are added up as a function of how far back a key is, and passed to the kernel as its time bias.
        """
        num, length = len(x_CM), len(past)
        back = torch.arange(length + 1, device=self.device)
        times = torch.cat([past.times, past.times.new_full((1,), now_ms)]).flip(0)
        bucket = self.model.time_buckets.bucket(now_ms - times)
        one = torch.full((1,), length, dtype=torch.int64, device=self.device)
        here = one.expand(num).contiguous()
        # The same tensor objects for every layer: the bucket cache recognises them by identity.
        offsets, start, everyone = self.tensor(np.array([0, num])), torch.zeros_like(one), torch.full_like(one, num)
        key_back, cache = back[:-1], BucketCache(in_order=True)
        buckets = TimeBuckets(torch.arange(1, length + 1))
        for index, layer in enumerate(self._layers):
            pos_bias_GP, time_bias_GK = layer.biases()
            place = back.clamp(max=pos_bias_GP.shape[1] - 1)
            x_CM, _, _ = self._through(
                index, x_CM, past, offsets, start, one, pos_bias_GP=None,
                time_bias_GK=pos_bias_GP[:, place] + time_bias_GK[:, bucket],
                time_buckets=buckets, query_time_S=here, key_time_S=here, cache_time_C=key_back,
                num_targets_B=everyone, bucket_cache=cache,
            )  # fmt: skip
        return x_CM

    def _through(self, index: int, x_SM: Tensor, past: KeysValues, offsets_B1: Tensor, past_start_B: Tensor,
                 past_len_B: Tensor, **pairs: Any) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Put new tokens through one layer: (S, M), and their keys and values. ``pairs``: biases, times and masks."""
        layer = self._layers[index]
        u, v, q, k = layer.project(x_SM, self.backend)
        attended = layer.attend(
            q, k, v, offsets_B1, past.k[index], past.v[index], past_start_B, past_len_B, backend=self.backend, **pairs
        )
        return layer.output(x_SM, attended, u, self.backend), k, v
