"""Whether the processes that torchrun has started can train together: one configuration, one build, one arithmetic."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

from kernels.library import level
from kernels.sources import digest
from model.config import ModelConfig
from model.device import choose_device
from trainer.config import TrainerConfig
from trainer.errors import RanksError
from trainer.ranks.messages import Ranks, join
from wire.checks import expect

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kernels", "model", "trainer", "wire")
"""The rooms whose code affects what a rank computes."""
BUILD, TORCH, MACHINE, LEVEL = "the build", "torch", "the kind of machine", "the instruction set"
GPU = "the GPU"
REMEDIES = {
    BUILD: "install the same build everywhere",
    TORCH: "install the same version everywhere",
    MACHINE: "run all processes on x86-64, or all on arm64",
    LEVEL: "set HEADRACE_CPU_LEVEL to the lower one everywhere",
    GPU: 'run all processes on GPUs of one kind, or set trainer.device = "cpu" everywhere',
}
"""What to do if ranks differ in something other than a setting."""


def join_ranks(model: ModelConfig, config: TrainerConfig) -> Ranks | None:
    """Join the other processes if torchrun has started this one; None if it is alone.

    Raises ConfigError if this many processes cannot train this model, `RanksError` if they cannot be reached or differ.
    """
    size = Ranks.expected()
    if size <= 1:
        return None
    expect(
        config.shards % size == 0,
        "trainer.shards",
        f"a multiple of the number of processes, {size}",
        config.shards,
        "start 1, 2, 4, … processes, at most as many as there are shards. The number of shards is chosen before the "
        "first step, and never changes",
    )
    ranks = join(config.rank_timeout_s, choose_device(config.device, "trainer.device"))
    if ranks is not None:
        agree(ranks, facts_of(model, config))
    return ranks


def facts_of(model: ModelConfig, config: TrainerConfig) -> dict[str, Any]:
    """What must be the same on all ranks, by the name that errors give it."""
    return {
        **{f"model.{key}": value for key, value in model.as_dict().items()},
        **{f"trainer.{key}": value for key, value in config.learning_dict().items()},
        "trainer.backend": config.backend,
        BUILD: build_digest(),
        TORCH: torch.__version__,
        MACHINE: platform.machine(),
        LEVEL: level() if config.backend == "auto" else "",
        GPU: torch.cuda.get_device_name() if choose_device(config.device, "trainer.device").type == "cuda" else "none",
    }


def build_digest() -> str:
    """A digest of the code that affects what a rank computes."""
    found = hashlib.sha256(digest().encode())
    for path in sorted(each for room in SOURCES for each in (ROOT / room).rglob("*.py")):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\n" + path.read_bytes())
    return found.hexdigest()[:12]


def agree(ranks: Ranks, facts: dict[str, Any]) -> None:
    """Raise `RanksError` on every rank if one of them differs from rank 0."""
    if ranks.rank > 0:
        ranks.answer(facts)
        problem = ranks.take()
    else:
        theirs = zip(ranks.others, ranks.answers(), strict=True)
        problems = [found for rank, each in theirs if (found := _difference(rank, each, facts))]
        problem = problems[0] if problems else ""
        ranks.give([problem] * len(ranks.others))
    if problem:
        ranks.leave()
        raise RanksError(problem)


def _difference(rank: int, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first thing in which a rank differs from rank 0; empty if there is none."""
    for name in (BUILD, TORCH, MACHINE, GPU, LEVEL, *ours):
        if theirs.get(name) != ours[name]:
            remedy = REMEDIES.get(name, "give all of them the same configuration")
            return f"{name}: rank 0 has {ours[name]!r}, rank {rank} has {theirs.get(name)!r}; {remedy}"
    return ""
