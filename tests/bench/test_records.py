"""A comparison that is made in pieces is the one that is made at once."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.output.chart import draw
from bench.output.comparison import rows_of
from bench.output.records import append, best_setting, interval, read, spoken
from bench.quality import command
from tests.bench.samples import chain


def _record(who: str, setting: str, seed: int, hr10: float) -> dict[str, Any]:
    gains = {"hr1": 0.0, "hr10": hr10, "hr50": hr10, "ndcg10": hr10, "mrr": hr10}
    return {"stream": "s", "num_actions": 10, "task": "retrieval", "who": who, "setting": setting, "seed": seed,
            "num": 10, "seconds": 1.0, "lately": gains, "windows": [hr10, hr10], **gains}  # fmt: skip


def _file(folder: Path) -> Path:
    path = folder / "actions.jsonl"
    path.write_text("".join(json.dumps(action) + "\n" for action in chain(num=120)), encoding="utf-8")
    return path


def test_a_pass_that_is_there_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--file", str(_file(tmp_path)), "--first-settings", "--out", str(tmp_path / "out.jsonl")]
    for only in ("Headrace", "co-occurrence", "constant"):
        assert command([*words, "--only", only]) == 0
    before = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert command([*words, "--only", "Headrace", "--only", "co-occurrence"]) == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == before
    shown = json.loads(capfd.readouterr().out.splitlines()[-1])
    names = [row["name"] for row in shown["rows"]]
    assert {"actions: Headrace", "actions: co-occurrence", "actions: constant"} <= set(names)
    assert shown["rows"][0]["target"] == pytest.approx(1.1 * shown["rows"][3]["value"], abs=1e-3)


def test_one_pass_twice_is_the_same_but_for_its_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = ["--file", str(_file(tmp_path)), "--first-settings", "--only", "Headrace", "--only", "GRU4Rec"]
        assert command([*words, "--out", str(tmp_path / name)]) == 0
    one, two = (
        [{k: v for k, v in r.items() if k not in ("seconds", "interactions_per_s", "command")} for r in read([path])]
        for path in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_the_frontier_has_quality_and_speed_by_targets_a_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(["--file", str(_file(tmp_path)), "--steps"]) == 0
    rows = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    assert [row["name"] for row in rows if row["unit"] == "HR@10"] == [
        f"actions: {size} a step" for size in (16, 32, 64, 128, 256)
    ]
    assert all(row["interactions_per_s"] > 0 for row in rows if row["unit"] == "HR@10")


def test_a_setting_is_chosen_by_the_seeds_that_all_settings_share() -> None:
    records = [_record("x", "a", 1, 0.2), _record("x", "b", 1, 0.3), _record("x", "b", 2, 0.0)]
    assert best_setting(records) == "b"


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert interval([1.0]) == (1.0, 0.0)


def test_of_two_records_of_one_pass_the_later_counts(tmp_path: Path) -> None:
    append(tmp_path / "a", _record("x", "", 1, 0.1))
    append(tmp_path / "a", _record("x", "", 1, 0.2))
    assert [record["hr10"] for record in read([tmp_path / "a"])] == [0.2]


def test_the_target_is_a_tenth_above_the_best_rival() -> None:
    records = [_record("Headrace", "", 1, 0.2201), _record("x", "", 1, 0.1), _record("y", "", 1, 0.2)]
    row = rows_of(records, frontier=False)[0]
    assert (row["target"], row["met"]) == (0.22, True)
    assert "best rival: y" in row["note"]


def test_the_picture_is_sound_and_names_everybody() -> None:
    records = [_record("Headrace", "", 1, 0.22), _record("a <rival>", "", 1, 0.1)]
    texts = [each.text for each in ET.fromstring(draw(records)).iter() if each.text and each.text.strip()]
    assert {"Headrace", "a <rival>", "0.2200"} <= set(texts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "expected some of ml-100k"),
        (["--only", "nobody"], "expected some of Headrace"),
        (["--share", "2"], "at most 1"),
        (["--seeds", "0"], "1 or more"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(words)
    assert said in capfd.readouterr().err


def test_a_record_names_files_and_not_where_they_were() -> None:
    told = spoken("quality", ["ml-100k", "--data", "/some/where/data", "--out", "here/q.jsonl", "--seeds", "3"])
    assert told == "quality ml-100k --data data --out q.jsonl --seeds 3"
