"""Tables in files (`trainer.tables_folder`), and a limit on address space, change nothing of what is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.growing import keep_in
from tests.trainer.samples import SAMPLED, assert_same_arrays, taught, twin
from tests.trainer.stage import Stage
from trainer.checkpoint.snapshot import learner_arrays
from trainer.learner.step import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def in_memory_afterwards() -> Iterator[None]:
    yield
    keep_in("")


def num_mapped(folder: Path) -> int:
    """How many bytes of files in a folder this process has mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in lines))


def test_what_is_learned_has_the_same_bits_in_files_and_in_memory(tmp_path: Path) -> None:
    (inside, world), (outside, same_world) = taught(SAMPLED), taught(replace(SAMPLED, tables_folder=str(tmp_path)))
    assert num_mapped(tmp_path) > 2 * inside.items.weight.nbytes
    for _ in range(6):
        inside.step(world.examples(8))
        outside.step(same_world.examples(8))
    assert_same_arrays(learner_arrays(outside), learner_arrays(inside))
    resumed = twin(outside, Learner)
    examples = world.examples(8)
    for learner in (inside, outside, resumed):
        learner.step(examples)
    for learner in (outside, resumed):
        assert_same_arrays(learner_arrays(learner), learner_arrays(inside))
    assert not list(tmp_path.iterdir())


def test_a_trainer_with_little_address_space_learns_the_same(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.feed(60)
    made.start(broken=("may_have_a_gibibyte_more",))
    made.feed(40)
    made.finish()
