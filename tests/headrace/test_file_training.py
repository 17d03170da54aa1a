"""`headrace train --file`: what cannot be read twice is trained on once, without checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.file_source import FileSource
from tests.brokers import REPOSITORY
from tests.trainer.samples import MODEL, START_MS, TRAINER
from trainer.learner.step import Learner
from wire.config import ActionConfig, SequenceConfig
from wire.moment import MS_PER_DAY

RATINGS = "".join(f"{n % 7}::{n % 11}::{n % 5 + 1}::{978300000 + n}\n" for n in range(120))


def train(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    small = {"MODEL_WIDTH": "8", "QK_WIDTH": "4", "VALUE_WIDTH": "4", "ITEM_WIDTH": "8", "NUM_LAYERS": "1"}
    environment = {**os.environ, **{f"HEADRACE_MODEL__{name}": value for name, value in small.items()}}
    return subprocess.run(
        [sys.executable, "-m", "headrace", "train", "--file", str(path), *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_an_item_that_comes_back_in_a_file_has_its_name() -> None:
    rng, actions = np.random.default_rng(0), list[dict[str, str | int]]()
    for n in range(1600):
        item, time_ms = f"item {rng.zipf(1.25) % 100}", START_MS + n * MS_PER_DAY // 5
        actions.append({"user": f"u{n}", "item": item, "action": "click", "timestamp": time_ms})
    action = ActionConfig(min_timestamp_ms=0)
    source = FileSource(actions, action, SequenceConfig(join_window_s=0.0), take=64)
    model = replace(MODEL, num_features=0, num_user_features=0, kinds=tuple(action.kinds))
    learner = Learner(model, replace(TRAINER, evict_after_days=4.0, evict_every_steps=1))
    while not source.exhausted:
        examples = source.poll(0)
        for first in range(0, len(examples), 10):
            learner.step(examples[first : first + 10])
            assert set(learner.items.keys_of(learner.items.live_rows()).tolist()) <= learner.names.all.keys()
    assert len(learner.names.all) < 40


@pytest.mark.slow
def test_a_pipe_is_trained_on_once_and_not_resumed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_text(RATINGS), daemon=True).start()
    done = train(pipe)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("120 interactions")
    refused = train(pipe, "--checkpoint-dir", str(tmp_path / "checkpoints"))
    assert refused.returncode == 1
    assert "can be read again after a restart" in refused.stderr.splitlines()[-1]
