# mypy: allow-untyped-calls
"""The trainer's own single pass on the GPU: predict, count, learn, over synthetic users and without Kafka."""

from __future__ import annotations

import cProfile
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.on_gpu.report import Clock, Row, guarded, row
from bench.on_gpu.step import described, shares
from kernels.memory.reference import EVENTS_PER_GROUPED

SEGMENT_LEN, NUM_ITEMS = 16, 3706
GROUP = 128
"""How many events the memory predicts together if it is on the GPU."""

WAYS = ((2, GROUP), (2, 1), (1, GROUP), (0, 1))
"""How a trainer computes a step: the number of CUDA graphs (one for both passes, two, or none), the memory's group."""


SMALLER_GROUP = (1, 32)
"""What a single pass tries as well: its steps have hundreds of events."""
Rates = dict[tuple[int, int], float]
"""Events a second by way."""


def config_of(device: str, graphs: int, group: int) -> Any:
    """A trainer's configuration for one of `WAYS`."""
    from trainer.config import TrainerConfig

    return TrainerConfig(
        device=device, metric_share=0.1, exclude_seen=False, cuda_graphs=graphs > 0, graph_gradients=graphs == 1,
        memory_group=group,
    )  # fmt: skip


def item_hashes(number: Any) -> Any:
    """The keys of items by their numbers, from 1."""
    return number * 7919 + 1


def described_way(graphs: int, group: int) -> str:
    """A way in words, for a row's name."""
    there = f", memory on the GPU in groups of {group}" if group > 1 else ""
    return f"{('', ', one CUDA graph', ', CUDA graphs')[graphs]}{there}"


def best_way(name: str, rates: Rates) -> Iterator[Row]:
    """Which of the ways is the fastest, and what it is worth over launches with the memory on the host."""
    if (0, 1) in rates:
        best = max(rates, key=lambda way: rates[way])
        said = {way: (described_way(*way) or ", launches")[2:] for way in rates}
        note = f"{said[best]}; of " + "; ".join(f"{said[way]} {rate:,.0f}/s" for way, rate in rates.items())
        yield row(f"  fastest way, {name}", rates[best] / rates[0, 1], "x", note=note)


def synthetic_examples(num_users: int, num_items: int, mean_length: int, num_new: int, longest: int) -> Iterator[Any]:
    """Users' histories in chunks of ``num_new``, users taking turns, as in a single pass over a file."""
    from wire.example import Example, Interactions, rows_of

    generator = np.random.Generator(np.random.Philox(3))
    lengths = np.minimum((mean_length * generator.lognormal(-0.3, 0.8, num_users)).astype(int) + 4, longest)

    @cache
    def life(user: int) -> tuple[Any, Any, Any]:
        own = np.random.Generator(np.random.Philox(key=[user, 9]))
        item = item_hashes((num_items ** own.random(int(lengths[user]))).astype(np.int64))
        gap = (10 ** (own.random(int(lengths[user])) * 7)).astype(np.int64)
        return item, own.integers(1, 8, int(lengths[user])).astype(np.uint32), 10**12 + np.cumsum(gap)

    def interactions(user: int, start: int, stop: int) -> Interactions:
        item, bits, time_ms = (each[start:stop] for each in life(user))
        count = stop - start
        return Interactions(
            item, bits, time_ms, np.zeros(count, np.int64), np.full(count, np.nan, np.float32),
            np.zeros((count, 0), np.int64),
        )  # fmt: skip

    number = 0
    nothing = np.zeros(0, np.int64)
    for start in range(0, int(lengths.max()), num_new):
        for user in np.flatnonzero(lengths > start).tolist():
            stop = min(start + num_new, int(lengths[user]))
            newest = int(interactions(user, stop - 1, stop).timestamp_ms[-1])
            for segment in range(start // SEGMENT_LEN, (stop - 1) // SEGMENT_LEN + 1):
                first, last = segment * SEGMENT_LEN, min(stop, (segment + 1) * SEGMENT_LEN)
                yield Example(
                    user=str(user), partition=0, writer_epoch=1, number=number, segment=segment,
                    segment_len=SEGMENT_LEN, rows=rows_of(interactions(user, first, last)),
                    num_new=last - max(first, start), feedback_index=nothing, feedback_bits=np.zeros(0, np.uint32),
                    session_hash=np.zeros(last - first, np.int64), action_ids=nothing, user_feature_hash=nothing,
                    user_offset=number, user_index=0, applied_offset=number, resume_from_offset=number + 1,
                    newest_event_ms=newest, newest_record_ms=newest,
                )  # fmt: skip
                number += 1


def live_batches(num_users: int, num_items: int, before: int, num: int) -> tuple[list[Any], list[list[Any]]]:
    """Examples with each user's first ``before`` interactions, and ``num`` batches of one new interaction of each user,
    as in live traffic."""
    examples = synthetic_examples(num_users, num_items, 100 * before, 1, 10 * before)
    earlier = list(islice(examples, num_users * before))
    return earlier, [list(islice(examples, num_users)) for _ in range(num)]


def build_library() -> None:
    """Replace the trainer's id map, which is C++ and not compiled on a GPU machine without our environment."""
    subprocess.run([sys.executable, "-m", "kernels.build"], check=True, timeout=180)


def single_pass(clock: Clock) -> Iterator[Row]:
    """The trainer's own step over MovieLens-sized and over long synthetic users."""
    build_library()
    from model.config import ModelConfig

    plans = {
        "MovieLens-sized (6,040 users, 3,706 items, 2 layers, d 64)": (
            (6040, 3706, 165, 32, 2000), ModelConfig(), 64, 300
        ),
        "long users (256 users of up to 4,096, 100,000 items, 4 layers, d 256)": (
            (256, 100_000, 2000, 256, 4096),
            ModelConfig(num_layers=4, model_width=256, num_heads=4, qk_width=64, value_width=64, item_width=128,
                        max_context=2048, num_positions=4096, norm_len=1024.0), 16, 60,
        ),
    }  # fmt: skip
    if clock.rehearsal:
        tiny = ModelConfig(num_layers=1, model_width=16, num_heads=1, qk_width=16, value_width=16, item_width=16,
                           num_positions=32, num_time_buckets=8, max_context=8)  # fmt: skip
        plans = dict.fromkeys(plans, ((3, 20, 8, 4, 12), tiny, 2, 2))
    for name, (world, model, size, most) in plans.items():
        examples = synthetic_examples(*world)
        wanted = (2 if clock.compiles_only else most) + 6
        batches = [batch for _ in range(wanted) if (batch := list(islice(examples, size)))]
        rates = Rates()
        for way in WAYS if clock.rehearsal else (*WAYS, SMALLER_GROUP):
            torch.set_float32_matmul_precision("high")  # as `trainer.device` does
            how = f"{name}{described_way(*way)}"
            goals = (1e6, 30) if "MovieLens" in name else (None, 10)
            for each in guarded(clock, f"single pass, {how}", _pass(clock, how, model, way, batches, goals)):
                if each["unit"] == "events/s":
                    rates[way] = each["value"]
                yield each
        yield from best_way(f"single pass, {name.partition(' (')[0]}", rates)


def _pass(
    clock: Clock, name: str, model: Any, way: tuple[int, int], batches: list[list[Any]], goals: tuple[Any, int]
) -> Iterator[Row]:
    from trainer.learner.step import Learner

    learner = Learner(model, config_of(clock.device, *way), clock.device)
    warm = min(3, len(batches) - 1)
    for each in batches[:warm]:
        learner.step(each)
    measured = batches[warm:-3] if len(batches) > 6 else batches[warm:]
    seconds, reports = _timed(clock, learner, measured, max(2.0, min(5.0, clock.left_s / 40)))
    rate = median(each.num_targets / s for each, s in zip(reports, seconds, strict=True))
    all_in_all = sum(each.num_targets for each in reports) / sum(seconds)
    tokens, step_ms = median(each.num_tokens for each in reports), median(seconds) * 1e3
    note = f"{len(seconds)} steps of {tokens:,.0f} tokens, {step_ms:.1f} ms each; {all_in_all:,.0f} with captures"
    yield row(f"single pass, {name}", rate, "events/s", goals[0], note)
    # A step of a new size captures its graph, which keeps the GPU busy: the median of three.
    profiled = [shares(clock, partial(learner.step, each)) for each in batches[-3:]]
    by_kind, _, longest = sorted(profiled, key=lambda found: sum(found[0].values()))[len(profiled) // 2]
    idle = 100 * max(0.0, 1 - sum(by_kind.values()) / step_ms)
    kernels = "; ".join(f"{kernel} {ms:.2f}" for kernel, ms in longest[:5])
    yield row("  GPU idle share", idle, "%", goals[1], f"{described(by_kind)}; longest (ms): {kernels}", at_most=True)


def _timed(clock: Clock, learner: Any, batches: list[list[Any]], limit_s: float) -> tuple[list[float], list[Any]]:
    """Seconds and reports of steps, at least one, until the limit. Their medians leave out the steps in which graphs of
    new sizes are captured: a stream meets them once, a measurement of seconds all the time."""
    seconds, reports = list[float](), list[Any]()
    _synchronize(clock)
    until = time.perf_counter() + limit_s
    for each in batches:
        began = time.perf_counter()
        reports.append(learner.step(each))
        seconds.append(time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return seconds, reports


def prepare(learner: Any, earlier: list[Any], num_items: int) -> None:
    """Let the learner know its users and all items, and its memory be that of an old stream: each item has as many
    neighbours as fit, and events are predicted in whole groups."""
    for example in earlier:
        learner.histories.fold(example)
    row = learner.items.insert(item_hashes(np.arange(1, num_items + 1)), 10**12, 0)
    learner.memory.grow(learner.items.num_rows)
    memory = learner.memory.arrays
    num = min(memory.width, num_items // 2)
    memory.clock[0] = EVENTS_PER_GROUPED * GROUP
    memory.first[row] = memory.last[row] = 0
    memory.seen[row], memory.num_neighbours[row] = 10.0, num
    memory.neighbour_row[row, :num] = 1 + (row[:, None] + 7 * np.arange(num)) % num_items
    for counts in (memory.after, memory.before, memory.direct):
        counts[row, :num] = 1.0


def host_profile(clock: Clock, learner: Any, batches: list[list[Any]]) -> Row:
    """Where the host's time goes, by function, of a few steps."""
    profile = cProfile.Profile()
    profile.runcall(lambda: [learner.step(each) for each in batches])
    _synchronize(clock)
    entries = sorted(profile.getstats(), key=lambda entry: -entry.inlinetime)[:12]
    longest = "; ".join(f"{_named(each.code)} {each.inlinetime / len(batches) * 1e3:.2f}" for each in entries)
    total_ms = sum(each.inlinetime for each in profile.getstats()) / len(batches) * 1e3
    return row("  host, profiled", total_ms, "ms", note=f"by function, without what it calls: {longest}")


def _named(code: Any) -> str:
    return code if isinstance(code, str) else f"{Path(code.co_filename).stem}.{code.co_name}"


def _synchronize(clock: Clock) -> None:
    if not clock.rehearsal:
        torch.cuda.synchronize()


def live_steps(clock: Clock) -> Iterator[Row]:
    """Steps of live traffic: one target each of few users, predicted, counted and learned."""
    build_library()
    from model.config import ModelConfig

    model, before = ModelConfig(), 200
    if clock.rehearsal:
        model, before = ModelConfig(num_layers=1, model_width=16, num_heads=1, qk_width=16, value_width=16,
                                    item_width=16, num_positions=32, num_time_buckets=8, max_context=8), 2  # fmt: skip
    torch.set_float32_matmul_precision("high")
    few, num_items = clock.rehearsal or clock.compiles_only, 20 if clock.rehearsal else NUM_ITEMS
    for users, goal in ((2, None),) if clock.rehearsal else ((32, None), (256, 100_000.0)):
        earlier, batches = live_batches(users, num_items, before, 3 if few else 60)
        name, rates = f"live step, {users} targets of {users} users, 200 before each, d 64, 2 layers", Rates()
        for way in WAYS:
            how = f"{name}{described_way(*way)}"
            made = (model, config_of(clock.device, *way), earlier, num_items)
            for each in guarded(clock, how, _live(clock, how, way, made, batches, few=few)):
                if each["unit"] == "ms" and each["name"] == how:
                    rates[way] = users / each["value"] * 1e3
                    if goal and way[0]:
                        yield row("  interactions a second", rates[way], "1/s", goal)
                yield each
        yield from best_way(f"live step of {users}", rates)


def _live(
    clock: Clock, name: str, way: tuple[int, int], made: tuple[Any, ...], batches: list[list[Any]], *, few: bool
) -> Iterator[Row]:
    from trainer.learner.step import Learner

    model, config, earlier, num_items = made
    learner = Learner(model, config, clock.device)
    prepare(learner, earlier, num_items)
    for each in batches[: 1 if few else 15]:
        learner.step(each)
    seconds, _ = _timed(clock, learner, batches[1:2] if few else batches[15:50], 5.0)
    ms, users = median(seconds) * 1e3, len(batches[0])
    most = 1.5 if users == 32 and way[0] else None
    yield row(name, ms, "ms", most, f"{users / ms * 1e3:,.0f} interactions/s", at_most=True)
    last = batches[2 if few else 50]
    by_kind, _, longest = shares(clock, lambda: learner.step(last))
    kernels = "; ".join(f"{kernel} {took:.3f}" for kernel, took in longest[:5])
    yield row("  of it the GPU is busy", sum(by_kind.values()), "ms", note=f"{described(by_kind)}; longest: {kernels}")
    if way[0] == 1 or clock.rehearsal:
        yield host_profile(clock, learner, batches[-1:] if few else batches[51:])
