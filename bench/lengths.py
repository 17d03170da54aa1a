"""Stochastic length: how many tokens it leaves out, beside what HSTU's authors published.

Sparsity is the share of tokens that are not computed, in a batch of users whose contexts are N tokens long.
Both rules at α = 1.6: thinned always (`trainer.stochastic_length_alpha`), and as in the paper with probability 1 -
(kept / N)². The published numbers are of the authors' users, of whom some have shorter contexts. What it costs in
quality: `python -m bench systems --only "HSTU, 200 of context" --only "the same, stochastic length 1.6"`.
"""

from __future__ import annotations

import torch

from bench.timing import Row, row
from kernels import kept_length, stochastic_length

ALPHA = 1.6
PUBLISHED: dict[int, float | None] = {1024: 0.715, 2048: None, 4096: None, 8192: 0.844}
"""Tokens → sparsity (Zhai et al., ICML 2024, on stochastic length)."""


def sparsity(num_tokens: int, *, sometimes_whole: bool, num_users: int) -> float:
    """Of a batch of users with contexts of ``num_tokens`` each."""
    offsets_B1 = torch.arange(num_users + 1) * num_tokens
    kept_T, _ = stochastic_length(
        offsets_B1, torch.arange(num_users), max_kept=kept_length(num_tokens, ALPHA), sometimes_whole=sometimes_whole
    )
    return 1.0 - len(kept_T) / (num_users * num_tokens)


def run(*, quick: bool = False) -> list[Row]:
    """Two rows for each length."""
    rows, num_users = list[Row](), 100 if quick else 1_000
    for num, published in PUBLISHED.items():
        for sometimes_whole in (False, True):
            rule = "as in the paper" if sometimes_whole else "always"
            found = sparsity(num, sometimes_whole=sometimes_whole, num_users=num_users)
            note = "" if published is None else f"published {published:.3f}"
            rows.append(row(f"contexts of {num:,} tokens, thinned {rule}", found, "of the tokens left out", note=note))
    return rows
