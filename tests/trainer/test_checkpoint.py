"""A checkpoint is complete: what resumes from it equals an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from headrace.file_source import FileSource
from model.config import ModelConfig
from tests.trainer.samples import KINDS, MODEL, SAMPLED, TRAINER, World, assert_same_arrays, taught
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.journal import Journal, read_journal
from trainer.checkpoint.reading import Checkpoint, read_checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner, weights_snapshot
from trainer.checkpointing import Checkpointing
from trainer.config import TrainerConfig
from trainer.copies.rows import Arrays
from trainer.errors import CheckpointError
from trainer.learner.step import Learner
from trainer.loop import Trainer
from trainer.set_aside import SetAside
from trainer.versions.election import Claimant
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example

pytestmark = pytest.mark.usefixtures("one_thread")
EVERYTHING = replace(
    SAMPLED,
    dropout=0.1,
    stochastic_length_alpha=1.5,
    metric_share=0.7,
    admit_after=2,
    evict_after_days=0.001,
    evict_every_steps=3,
    weight_decay=0.01,
    schedule="wsa",
    warmup_steps=3,
    stable_steps=3,
    anneal_steps=4,
)


def checkpoint_of(learner: Learner) -> Checkpoint:
    meta = {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}
    return Checkpoint(learner.num_steps, learner_arrays(learner), meta)


def continued(
    config: TrainerConfig,
    folder: CheckpointFolder,
    num_before: int,
    num_after: int,
    restore: Callable[[Learner, Checkpoint], None] = restore_learner,
) -> tuple[Learner, Learner]:
    """A learner that continued, and one that continued from a checkpoint of the first."""
    world = World(5)
    whole, told = Learner(MODEL, config), list[Example]()
    for number in range(num_before):
        if number == 2:
            weights_snapshot(whole, everything=True)
        told += (batch := world.examples(6))
        whole.step(batch)
    folder.write(checkpoint_of(whole))
    resumed, kept = Learner(MODEL, config), folder.load()
    assert kept is not None
    restore(resumed, kept)
    assert_same_arrays(learner_arrays(whole), learner_arrays(resumed))
    for each in told:  # as a trainer's source does
        resumed.histories.restore(each)
    for batch in [world.examples(6) for _ in range(num_after)]:
        for learner in (whole, resumed):
            learner.step(batch)
    return whole, resumed


@pytest.mark.parametrize("num_before", [0, 1, 7])
@pytest.mark.parametrize(
    "config",
    [TRAINER, EVERYTHING, replace(TRAINER, row_precision="float16"), replace(EVERYTHING, row_precision="bfloat16")],
    ids=["plain", "everything on", "float16", "everything on, bfloat16"],
)
def test_going_on_from_a_checkpoint_is_going_on(
    config: TrainerConfig, num_before: int, folder: CheckpointFolder
) -> None:
    whole, resumed = continued(config, folder, num_before, 6)
    assert_same_arrays(learner_arrays(whole), learner_arrays(resumed))
    assert whole.metrics.summary() == resumed.metrics.summary()
    assert whole.names.all == resumed.names.all
    assert whole.names.unpublished == resumed.names.unpublished


PARTS = [
    "optimiser.mean", "optimiser.num_steps", "frequency.count", "metrics.ranks", "metrics.rank_window",
    "metrics.first_done", "rates.kept_log", "rates.kept_count", "rates.arrivals_key",
    "popularity.count", "rates.gain_FK", "items.state", "items.dirty", "items.map.last_seen_ms", "learner.num_steps",
    "features.weight", "names.unpublished",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_finds_a_checkpoint_without(part: str, folder: CheckpointFolder) -> None:
    def forgetful(learner: Learner, checkpoint: Checkpoint) -> None:
        fresh = learner_arrays(Learner(MODEL, learner.config))[part]
        kept = checkpoint.arrays[part]
        lost = np.zeros_like(kept) if kept.shape != fresh.shape and not part.startswith("names") else fresh
        restore_learner(learner, replace(checkpoint, arrays={**checkpoint.arrays, part: lost}))

    with pytest.raises(AssertionError, match="different"):
        continued(TRAINER, folder, 60, 0, forgetful)  # so many that the odds have begun to learn


def test_a_checkpoint_of_another_configuration_is_refused(folder: CheckpointFolder) -> None:
    kept = checkpoint_of(Learner(MODEL, TRAINER))
    with pytest.raises(CheckpointError, match=r"trainer\.table_lr: the checkpoint was trained with 0\.2, .* 0\.5"):
        restore_learner(Learner(MODEL, replace(TRAINER, table_lr=0.5)), kept)
    with pytest.raises(CheckpointError, match=r"model\.norm_len: .* name an empty trainer\.checkpoint_dir"):
        restore_learner(Learner(replace(MODEL, norm_len=9.0), TRAINER), kept)
    restore_learner(Learner(MODEL, replace(TRAINER, publish_every_s=9.0, metric_share=0.5)), kept)


OTHERS: dict[str, object] = {
    "feedback": "reversal", "schedule": "wsa", "exclude_seen": "always", "float32_matmul_precision": "medium",
    "stochastic_length_alpha": 1.5, "on_gap": "skip", "chunk_bytes": 1_000, "publish_precision": "exact",
    "kind_weights": {"click": 2.0}, "row_precision": "bfloat16",
}  # fmt: skip
BY_MACHINE = {"device", "backend", "cuda_graphs", "graph_gradients", "deterministic", "num_threads"}
"""Where and by which kernels a step is computed: a checkpoint may move to another machine."""


def changed(name: str) -> TrainerConfig:
    """`TRAINER` with another value of one setting."""
    now = getattr(TRAINER, name)
    other = OTHERS.get(name) or (
        not now if isinstance(now, bool) else now + 1 if isinstance(now, int) else now / 2 or 0.25
        if isinstance(now, float) else f"{now}-other"
    )  # fmt: skip
    more = {"warmup_steps": 5} if name == "schedule" else {}
    return replace(TRAINER, **{name: other}, **more)


@pytest.mark.parametrize("name", sorted(TRAINER.learning_dict()))
def test_every_setting_that_decides_the_weights_is_compared(name: str) -> None:
    kept = checkpoint_of(Learner(MODEL, TRAINER))
    other = {**kept.meta["trainer"], name: getattr(changed(name), name)}
    with pytest.raises(CheckpointError, match=rf"trainer\.{name}: the checkpoint was trained with "):
        restore_learner(Learner(MODEL, TRAINER), replace(kept, meta={**kept.meta, "trainer": other}))


OTHER_SETTINGS = {each.name for each in fields(TrainerConfig)} - set(TRAINER.learning_dict()) - BY_MACHINE


@pytest.mark.parametrize("name", sorted(OTHER_SETTINGS))
def test_a_setting_that_is_not_compared_changes_no_weight(name: str) -> None:
    world, ours, theirs = World(5), Learner(MODEL, TRAINER), Learner(MODEL, changed(name))
    for _ in range(4):
        batch = world.examples(6)
        ours.step(batch)
        theirs.step(batch)
    arrays = [
        {key: array for key, array in learner_arrays(learner).items() if not key.startswith("metrics.")}
        for learner in (ours, theirs)
    ]
    assert_same_arrays(*arrays)


# The folder


def write(folder: CheckpointFolder, *steps: int) -> None:
    for step in steps:
        arrays: Arrays = {"a": np.arange(1000) + step}
        folder.write(Checkpoint(step, arrays, {"lineage": str(step)}))


def test_the_newest_two_are_kept_and_the_newest_is_loaded(folder: CheckpointFolder) -> None:
    assert folder.load() is None
    write(folder, 1, 20, 3000)
    assert folder.steps() == [20, 3000]
    kept = folder.load()
    assert kept is not None
    assert (kept.step, kept.meta["lineage"]) == (3000, "3000")
    np.testing.assert_array_equal(kept.arrays["a"], np.arange(1000) + 3000)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("file", ["arrays.safetensors", "meta.json"])
@pytest.mark.parametrize("hurt", [flip, shorten, empty, remove])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_aloud(
    hurt: Callable[[Path], None], file: str, folder: CheckpointFolder, damage: list[str]
) -> None:
    write(folder, 1, 2)
    hurt(folder.path / "checkpoint-000000000002" / file)
    kept = folder.load()
    assert kept is not None
    assert kept.step == 1
    assert len(damage) == 1
    assert "checkpoint-000000000002" in damage[0]
    assert damage[0].endswith("falling back to the previous one")


def test_when_all_are_damaged_it_says_so_instead_of_starting_anew(folder: CheckpointFolder, damage: list[str]) -> None:
    write(folder, 1, 2)
    for step in (1, 2):
        flip(folder.path / f"checkpoint-{step:012d}" / "arrays.safetensors")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints can be read; restore one, or name"):
        folder.load()
    assert len(damage) == 2


def test_checkpoints_that_disappear_under_a_trainer_are_one_line(folder: CheckpointFolder) -> None:
    write(folder, 1)
    assert folder.present_steps() == [1]
    shutil.rmtree(folder.path / "checkpoint-000000000001")
    with pytest.raises(CheckpointError, match=r"expected this trainer's checkpoints, they are gone; .* --from-publ"):
        folder.present_steps()


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"a/b\n\0"])
def test_a_damaged_name_of_the_folder_is_replaced(damaged: bytes, tmp_path: Path) -> None:
    first = Claimant.on(tmp_path)
    assert Claimant.on(tmp_path).place == first.place
    (tmp_path / "identity").write_bytes(damaged)
    second = Claimant.on(tmp_path)
    assert second.place != first.place
    assert Claimant.on(tmp_path).is_earlier_life(second.name)


def test_a_checkpoint_of_another_format_says_which(folder: CheckpointFolder) -> None:
    write(folder, 1)
    path = folder.path / "checkpoint-000000000001"
    meta = json.loads((path / "meta.json").read_bytes().split(b"\n")[0])
    text = json.dumps({**meta, "format": 99}).encode()
    (path / "meta.json").write_bytes(text + b"\n" + xxhash.xxh3_128_hexdigest(text).encode() + b"\n")
    with pytest.raises(CheckpointError, match="expected format 3, got 99"):
        read_checkpoint(path)


def test_a_checkpoint_of_a_build_before_the_odds_kept_inputs_is_refused_in_words() -> None:
    learner = Learner(MODEL, TRAINER)
    checkpoint = checkpoint_of(learner)
    older = {name: array for name, array in checkpoint.arrays.items() if not name.startswith("rates.")}
    with pytest.raises(CheckpointError, match=r"rates: expected .* got a checkpoint of a build before that"):
        restore_learner(Learner(MODEL, TRAINER), replace(checkpoint, arrays={**older, "rates.shown": np.zeros(3)}))


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path, damage: list[str]) -> None:
    (tmp_path / "tmp-000000000009").mkdir()
    (tmp_path / "tmp-000000000009" / "arrays.safetensors").write_bytes(b"half")
    (tmp_path / "tmp-journal").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path, damage.append).open()
    assert folder.load() is None
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]
    folder.close()


def test_a_folder_is_one_trainers(folder: CheckpointFolder) -> None:
    with pytest.raises(CheckpointError, match="another trainer is using it"):
        CheckpointFolder(folder.path, print).open()
    folder.close()
    CheckpointFolder(folder.path, print).open().close()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot be used .*name a folder that this user may write"):
        CheckpointFolder(tmp_path / "file" / "below", print).open()


def to_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to disk from now on, and what is renamed and removed, in order; folders with a slash."""
    told, sync, rename, unlink = list[str](), os.fsync, Path.rename, Path.unlink

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        told.append(f"{path.name}/" if path.is_dir() else path.name)
        sync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        told.append(f"{path.name} becomes {to.name}")
        return rename(path, to)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        told.append(f"{path.name} goes")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    return told


def test_what_a_name_stands_for_is_on_disk_before_the_name(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, draft = to_disk(monkeypatch), folder.draft(None)
    folder.write(Checkpoint(1, {"a": np.arange(10)}, {}), draft)
    assert told == [
        "arrays.safetensors", "tmp-rows", "tmp-rows becomes rows.log", "meta.json", "tmp-000000000001/",
        "tmp-000000000001 becomes checkpoint-000000000001", "kept/",
    ]  # fmt: skip


@pytest.mark.parametrize("fsync", [True, False])
def test_a_journal_that_begins_is_on_disk_before_its_name_and_its_name_before_later_ones_go(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    journal = Journal(folder.path, fsync=fsync)
    journal.start(7)
    told = to_disk(monkeypatch)
    journal.start(5, [[(0, 1, 2)]])
    journal.close()
    whole = ["tmp-journal", "tmp-journal becomes journal-000000000005", "kept/", "journal-000000000007 goes", "kept/"]
    assert told == (whole if fsync else [whole[1], whole[3]])


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint
from trainer.errors import TrainerError
from trainer.checkpoint.journal import Journal
folder = CheckpointFolder(Path(sys.argv[1]), print).open()
folder.write(Checkpoint(1, {"a": np.arange(10)}, {}))
journal = Journal(folder.path)
journal.start(1)
journal.append(1, [(0, 0, 0)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    folder.write(Checkpoint(2, {"a": np.arange(100_000)}, {}))
except TrainerError as error:
    print("refused:", error)
try:
    for step in range(2, 5000):
        journal.append(step, [(0, step, step)])
except TrainerError as error:
    print("refused:", error)
"""


def test_a_full_disk_is_a_clear_error_and_leaves_what_there_was(tmp_path: Path, damage: list[str]) -> None:
    from trainer.checkpoint.journal import read_journal

    ran = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert first.startswith("refused: checkpoint ")
    assert "cannot be written (File too large); free some space" in first
    assert "the previous checkpoint is intact" in first
    assert second.startswith("refused: journal ")
    folder = CheckpointFolder(tmp_path, damage.append).open()
    kept = folder.load()
    assert kept is not None
    assert kept.step == 1
    assert damage == []
    assert not list(tmp_path.glob("tmp-*"))
    steps = read_journal(tmp_path, 1).steps
    assert len(steps) > 100
    assert steps == [[(0, 0, 0)], *([(0, step, step)] for step in range(2, len(steps) + 1))]
    folder.close()


def test_what_somebody_else_puts_beside_the_checkpoints_is_passed_over(folder: CheckpointFolder) -> None:
    learner = Learner(MODEL, TRAINER)
    folder.write(checkpoint_of(learner))
    for name in ("checkpoint-old", "checkpoint-000000000000.bak", "journal-copy", "checkpoint-7"):
        (folder.path / name).mkdir()
    assert folder.steps() == [0]
    folder.write(Checkpoint(5, learner_arrays(learner), checkpoint_of(learner).meta))
    folder.write(Checkpoint(6, learner_arrays(learner), checkpoint_of(learner).meta))
    assert folder.steps() == [5, 6]
    assert (folder.path / "checkpoint-old").exists()
    journal = Journal(folder.path)
    journal.start(6)
    journal.close()
    assert read_journal(folder.path, 6).steps == []


def test_rows_that_are_not_finite_are_told_also_if_the_next_checkpoint_is_due(tmp_path: Path) -> None:
    learner, _ = taught()
    checkpoints = Checkpointing(tmp_path, replace(TRAINER, checkpoint_every_steps=1))
    checkpoints.folder.open()
    checkpoints.cut(learner, {}, [], SetAside(), None)
    assert checkpoints.saver.wait() is None
    learner.items.weight[1] = torch.nan
    learner.items.touch(np.array([1]))
    learner.num_steps += 1
    checkpoints.begin_if_due(learner)
    checkpoints.cut(learner, {}, [], SetAside(), None)
    learner.num_steps += 1
    checkpoints.begin_if_due(learner)
    problem = checkpoints.saver.check()
    assert problem is not None
    assert problem.what == "weight of rows of items"
    checkpoints.close()


# The loop on a file


def actions() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        {"user": int(rng.integers(5)), "item": int(rng.integers(20)), "action": KINDS[int(rng.integers(3))],
         "timestamp": 1_700_000_000_000 + 40_000 * place}
        for place in range(300)
    ]  # fmt: skip


def trainer_on_file(path: Path | None, *, every_steps: int = 4) -> Trainer:
    config = replace(TRAINER, checkpoint_every_steps=every_steps, max_step_targets=16, file_take=32)
    model = ModelConfig(kinds=KINDS, num_layers=1, model_width=16, num_heads=2, qk_width=8, value_width=8, item_width=9)
    action, sequence = ActionConfig(kinds=KINDS), SequenceConfig(join_window_s=60)
    return Trainer(
        model,
        config,
        lambda positions: FileSource(actions(), action, sequence, config.file_take, positions),
        checkpoint_dir=path,
    )


def abandon(abandoned: Trainer) -> None:
    """Leave a trainer as a kill would: nothing is finished, only the operating system's locks are released."""
    abandoned.close()


def test_a_file_trainer_that_is_abandoned_at_any_step_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole = trainer_on_file(None)
    whole.run()
    num_steps = whole.learner.num_steps
    assert num_steps > 12
    for stop_after in (1, 4, 6, 9):
        path = tmp_path / str(stop_after)
        for _ in range(2):
            part = trainer_on_file(path)
            part.start()
            for _ in range(stop_after):
                part.turn()
            abandon(part)
        resumed = trainer_on_file(path)
        resumed.run()
        assert_same_arrays(learner_arrays(whole.learner), learner_arrays(resumed.learner))
        assert resumed.learner.metrics.summary() == whole.learner.metrics.summary()


def test_a_file_trainer_that_comes_back_to_a_finished_file_changes_nothing(tmp_path: Path) -> None:
    first = trainer_on_file(tmp_path)
    first.run()
    again = trainer_on_file(tmp_path)
    again.run()
    assert_same_arrays(learner_arrays(first.learner), learner_arrays(again.learner))
