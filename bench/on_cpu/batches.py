"""The batches on which kernels are measured: lengths and bursty times like those of MovieLens-1M's users."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Users:
    """A jagged batch; ``padded`` is the length to which a padding peer extends every user."""

    lengths: list[int]
    offsets: Tensor
    times: Tensor
    padded: int

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.offsets[-1])

    @property
    def num_pairs(self) -> int:
        """Visible (query, key) pairs."""
        return sum(length * (length + 1) // 2 for length in self.lengths)

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, …) → (B, padded, …), with zeros at the end."""
        out = tokens.new_zeros(len(self.lengths), self.padded, *tokens.shape[1:])
        for user, part in enumerate(torch.split(tokens, self.lengths)):
            out[user, : len(part)] = part
        return out


def bursty_times(length: int, generator: torch.Generator) -> Tensor:
    """Times in seconds: half of the events have the previous event's time; sessions are hours to months apart."""
    draw = torch.rand(length, generator=generator)
    within = torch.randint(1, 90, (length,), generator=generator)
    between = torch.randint(3600, 3600 * 24 * 60, (length,), generator=generator)
    gap = torch.where(draw < 0.5, 0, torch.where(draw < 0.975, within, between))
    return 10**9 + gap.cumsum(0)


def make_users(lengths: list[int], padded: int) -> Users:
    """A batch of users with these lengths."""
    generator = torch.Generator().manual_seed(0)
    times = torch.cat([bursty_times(length, generator) for length in lengths])
    return Users(lengths, torch.tensor([0, *lengths]).cumsum(0), times, padded)


def full_batch() -> Users:
    """128 users of mean length 164, at most 200."""
    generator = torch.Generator().manual_seed(1)
    lengths = (174 + 40 * torch.randn(128, generator=generator)).clamp(20, 200).long()
    while float(lengths.double().mean()) < 164:
        lengths = (lengths + 1).clamp(max=200)
    return make_users(lengths.tolist(), 200)


def long_tail_batch() -> Users:
    """32 users of mean length 44, the longest 1,035."""
    generator = torch.Generator().manual_seed(2)
    short = (-12 * torch.rand(31, generator=generator).log()).clamp(2, 60).long()
    return make_users([1035, *short.tolist()], 1035)
