"""The processes that train together (`torchrun`): their messages, and sums that have the same bits on all of them.

Rank 0 has the learner; the others compute what it gives them (`trainer.ranks.replica`). Messages are pickles between
processes of one build, which `trainer.ranks.agreement` checks. A sum is taken as a balanced binary tree over ranks:
each adds up one slice of all vectors, then all exchange their slices, so a rank sends twice (N - 1) / N of a vector.
Two ranks exchange their vectors instead, which is as many bytes in one round.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trainer.errors import RanksError
from trainer.ranks.shards import added
from wire.errors import ConfigError

FOR_EVER = timedelta(days=1000)
"""How long a rank waits for something to do: rank 0 may be a standby, or have nothing to learn."""

INLINE_BYTES, _LENGTH_BYTES = 32 << 10, 8
"""A message up to this size, as in a live step, is sent together with its length: each round takes milliseconds."""


class Ranks:
    """This process's place among ``size`` ranks. Anything that fails between them raises `RanksError`.

    ``num_bytes``: what has been sent, by purpose: messages and rows by this rank, sums by the one that sends most.
    """

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self.rank, self.size, self._timeout_s = rank, size, timeout_s
        self.num_bytes = {"messages": 0, "sums": 0, "rows": 0}
        self._sent = list[tuple[dist.Work, Tensor]]()
        self._sum: Callable[[], Tensor] | None = None
        self._is_asked = False

    @property
    def others(self) -> range:
        """The ranks that have no learner."""
        return range(1, self.size)

    def give(self, messages: Sequence[Any]) -> None:
        """Rank 0: send each other rank its message; returns before they have it.

        A sum that nobody has waited for ends first, since the others read no message before.
        """
        if self._sum is not None:
            self.summed()
        with self._told("gave the others something to do"):
            self._flush()
            for rank, message in zip(self.others, messages, strict=True):
                self._send(message, rank)

    def ask(self, messages: Sequence[Any]) -> None:
        """Rank 0: `give` each other rank what it answers (`answers`)."""
        self.give(messages)
        self._is_asked = True

    def settle(self) -> None:
        """Rank 0: end what a step that has failed left under way, before anything that takes long.

        Others may be in the middle of a sum, which does not end without this rank, and an answer that nobody takes
        would pass for that to the next question. Afterwards they wait for something to do, however long that takes.
        """
        if self._is_asked:
            self.answers()
        if self._sum is not None:
            self.summed()

    def take(self) -> Any:
        """Another rank: the next message of rank 0, however long that takes."""
        with self._told("waited for rank 0"):
            return self._receive(0, FOR_EVER)

    def answer(self, message: Any) -> None:
        """Another rank: send rank 0 something."""
        with self._told("answered rank 0"):
            self._flush()
            self._send(message, 0)

    def answers(self) -> list[Any]:
        """Rank 0: what each other rank has sent."""
        self._is_asked = False
        with self._told("waited for the others' answers"):
            return [self._receive(rank, timedelta(seconds=self._timeout_s)) for rank in self.others]

    def start_sum(self, flat: Tensor, givers: Sequence[int]) -> None:
        """Begin to add up the vectors of the ranks ``givers``, whose length is a multiple of `size`. The others' are
        overwritten, and only their length counts."""
        with self._told("added up gradients"):
            if len(givers) == 1:
                self._sum = self._from_one(flat, givers[0])
            else:
                self._sum = self._exchanged(flat) if self.size == 2 else self._by_slices(flat, givers)

    def summed(self) -> Tensor:
        """The sum that was begun last, once it is there; the same bits everywhere."""
        assert self._sum is not None, "a sum was begun"
        wait, self._sum = self._sum, None
        with self._told("added up gradients"):
            return wait()

    def _from_one(self, flat: Tensor, giver: int) -> Callable[[], Tensor]:
        self.num_bytes["sums"] += flat.nbytes * (self.size - 1)
        work = dist.broadcast(flat, giver, async_op=True)
        return lambda: _waited(work, flat)

    def _exchanged(self, flat: Tensor) -> Callable[[], Tensor]:
        self.num_bytes["sums"] += flat.nbytes
        both = flat.new_empty(self.size * len(flat))
        work = dist.all_gather_into_tensor(both, flat, async_op=True)
        return lambda: added(_waited(work, both).view(self.size, -1), range(self.size))

    def _by_slices(self, flat: Tensor, givers: Sequence[int]) -> Callable[[], Tensor]:
        self.num_bytes["sums"] += 2 * flat.nbytes * (self.size - 1) // self.size
        theirs, whole = torch.empty_like(flat), torch.empty_like(flat)
        work = dist.all_to_all_single(theirs, flat, async_op=True)

        def wait() -> Tensor:
            mine = added(_waited(work, theirs).view(self.size, -1), givers)
            dist.all_gather_into_tensor(whole, mine.contiguous())
            return whole

        return wait

    def swapped(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Send each rank its vector; returns what each has sent, of these lengths."""
        with self._told("exchanged rows"):
            sent = torch.cat(list(parts))
            got = sent.new_empty(sum(lengths))
            dist.all_to_all_single(got, sent, list(lengths), [len(part) for part in parts])
        self.num_bytes["rows"] += sent.nbytes - parts[self.rank].nbytes
        return list(torch.split(got, list(lengths)))

    @staticmethod
    def expected() -> int:
        """How many processes torchrun has started; 1 without it."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def leave(self) -> None:
        """Close the connections, once everything has been sent."""
        with suppress(RuntimeError):  # if the others have left already
            self._flush()
        dist.destroy_process_group()

    def close(self) -> None:
        """Leave the others. Rank 0 ends them first."""
        with suppress(RanksError):
            if self.rank == 0:
                self.give([None] * len(self.others))
        self.leave()

    def _send(self, message: Any, rank: int) -> None:
        content = np.frombuffer(pickle.dumps(message, protocol=5), np.uint8)
        head = torch.zeros(_LENGTH_BYTES + INLINE_BYTES, dtype=torch.uint8)
        head[:_LENGTH_BYTES] = torch.tensor([len(content)]).view(torch.uint8)
        inline = min(len(content), INLINE_BYTES)
        head[_LENGTH_BYTES : _LENGTH_BYTES + inline] = torch.from_numpy(content[:inline].copy())
        for tensor in (head, torch.from_numpy(content[inline:].copy())):
            if len(tensor):
                work = dist.isend(tensor, rank)
                assert work is not None
                self._sent.append((work, tensor))
        self.num_bytes["messages"] += len(head) + len(content) - inline

    def _flush(self) -> None:
        for work, _ in self._sent:
            work.wait()
        self._sent = []

    def _receive(self, rank: int, timeout: timedelta) -> Any:
        head = torch.empty(_LENGTH_BYTES + INLINE_BYTES, dtype=torch.uint8)
        self._wait(head, rank, timeout)
        length = int(head[:_LENGTH_BYTES].view(torch.int64))
        content = head[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if length > INLINE_BYTES:
            rest = torch.empty(length - INLINE_BYTES, dtype=torch.uint8)
            self._wait(rest, rank, timedelta(seconds=self._timeout_s))
            content = torch.cat([content, rest])
        return pickle.loads(content.numpy().data)  # noqa: S301  (torch does the same)

    @staticmethod
    def _wait(tensor: Tensor, rank: int, timeout: timedelta) -> None:
        work = dist.irecv(tensor, rank)
        assert work is not None
        work.wait(timeout)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RanksError(
                f"rank {self.rank} of {self.size}: lost the other ranks while it {doing} ({_reason(error)}). One of "
                f"them has ended, or has not answered for trainer.rank_timeout_s ({self._timeout_s:g} s); the last "
                "line of its log says why. torchrun restarts all of them from the checkpoint (--max-restarts)"
            ) from error


def join(timeout_s: float, device: torch.device | None = None) -> Ranks | None:
    """Join the processes that torchrun has started this one with; None if it is alone. Raises `RanksError`, and
    `ConfigError` if there are fewer GPUs than ranks here.

    Messages and sums of CPU tensors go by gloo; sums of tensors on GPUs by NCCL, a GPU for each of a machine's ranks.
    """
    size = Ranks.expected()
    if size <= 1:
        return None
    rank, backend = int(os.environ.get("RANK", "0")), "gloo"
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(own_gpu(torch.cuda.device_count()))
        backend = "cpu:gloo,cuda:nccl"
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(backend, store=PrefixStore(_life(), store), rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RanksError(
            f"rank {rank} of {size}: cannot reach the others by way of {where} within trainer.rank_timeout_s "
            f"({timeout_s:g} s): {_reason(error)}. Check that {size} processes were started, that this address can be "
            "reached, and on machines with several networks that GLOO_SOCKET_IFNAME names the right one"
        ) from error
    return Ranks(rank, size, timeout_s)


def own_gpu(num: int) -> int:
    """Which of the machine's ``num`` GPUs is this rank's. Raises `ConfigError` if there is none for it."""
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= num:
        raise ConfigError(
            f"trainer.device: expected a GPU for each of this machine's ranks, got {num} for rank {place + 1} of them; "
            'start fewer (--nproc-per-node), or use "cpu"'
        )
    return place


def _waited(work: dist.Work | None, result: Tensor) -> Tensor:
    assert work is not None
    work.wait()
    return result


def _life() -> str:
    """A name for this start of all ranks.

    On one machine torchrun may keep its store across a restart, so ranks could find their predecessors' addresses. On
    several machines it has a new store each time, but each machine may count restarts differently.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return f"headrace/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if is_one_machine else '-'}"


def _reason(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its sources."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^(\[\S+\] )+", "", line).partition(". ")[0].strip().rstrip(".")
