"""Streams of `tests.kernels.triton.elsewhere`: work is queued when it is given, and done as late as CUDA allows.

Work is done when the host waits for it, and then only what must be before it: what the same stream was given earlier,
and what that stream was told to wait for. Of these, other streams' work comes first. With a ``seed`` some of the work
that may be done is done at any moment, in an order drawn by chance. So what nobody waits for is not there when it is
read, and work that no event puts into an order comes in the order that nobody expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes


class Work:
    """Something that a stream was given; ``after``: what is done before it."""

    def __init__(self, do: Callable[[], Any], after: list[Work]) -> None:
        self._do: Callable[[], Any] | None = do
        self._after = after

    @property
    def is_done(self) -> bool:
        """Whether it has been done."""
        return self._do is None

    def missing(self) -> Work | None:
        """What has to be done before it next."""
        return next((each for each in self._after if not each.is_done), None)

    def do(self) -> None:
        """Do it."""
        assert self._do is not None, "work is done once"
        do, self._do, self._after = self._do, None, []
        # What runs before a capture reads gradients that nobody has written yet.
        with _disable_current_modes(), torch.no_grad(), np.errstate(invalid="ignore", over="ignore"):
            do()

    def finish(self) -> None:
        """Do it, and before it what it comes after."""
        stack = [self]
        while stack:
            before = stack[-1].missing()
            if before is not None:
                stack.append(before)
            else:
                last = stack.pop()
                if not last.is_done:
                    last.do()


class Event:
    """A `torch.cuda.Event`."""

    def __init__(self, queues: Queues, **_: Any) -> None:
        self._queues = queues
        self.work: Work | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Note what the stream has been given so far."""
        self.work = (stream or self._queues.current).last

    def wait(self, stream: Stream | None = None) -> None:
        """Have a stream wait for it."""
        (stream or self._queues.current).wait_event(self)

    def synchronize(self) -> None:
        """Wait for it."""
        if self.work is not None:
            self.work.finish()

    def query(self) -> bool:
        """Whether it is done."""
        return self.work is None or self.work.is_done


class Stream:
    """A `torch.cuda.Stream`."""

    def __init__(self, queues: Queues, **_: Any) -> None:
        self._queues = queues
        self._awaited: list[Work] = []
        self.last: Work | None = None
        queues.streams.append(self)

    def give(self, do: Callable[[], Any]) -> Work:
        """Have something done after all that came before."""
        self.last = Work(do, [*self._awaited, *([self.last] if self.last is not None else [])])
        self._awaited = []
        return self.last

    def wait_event(self, event: Event) -> None:
        """What comes next is done after the event."""
        if event.work is not None:
            self._awaited.append(event.work)

    def wait_stream(self, stream: Stream) -> None:
        """What comes next is done after what the other stream has been given so far."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """An event that stands for all that it has been given so far."""
        event = event or Event(self._queues)
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Wait for all that it has been given."""
        for each in (*self._awaited, self.last):
            if each is not None:
                each.finish()


class Queues:
    """All streams. ``seed``: see the module."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = Random(seed) if seed is not None else None
        self.streams: list[Stream] = []
        self.current = Stream(self)

    def give(self, do: Callable[[], Any]) -> Work:
        """Have something done by the current stream."""
        work = self.current.give(do)
        while self._random is not None and self._random.random() < 0.5:
            self._do_one(self._random.choice(self.streams).last)
        return work

    def synchronize(self, _device: Any = None) -> None:
        """Wait for all streams, the newest first."""
        for stream in reversed(self.streams):
            stream.synchronize()

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """`torch.cuda.stream`."""
        before, self.current = self.current, stream or self.current
        try:
            yield
        finally:
            self.current = before

    @staticmethod
    def _do_one(work: Work | None) -> None:
        """Do the first of what a stream still has to do."""
        if work is not None and not work.is_done:
            while (before := work.missing()) is not None:
                work = before
            work.do()
