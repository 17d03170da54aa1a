"""A stranger finds the measurement for a question, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import TOPICS, listing, main, names, summary


def test_every_measurement_stands_once_under_a_question_with_what_it_measures() -> None:
    listed = [name for members in TOPICS.values() for name in members]
    assert sorted(listed) == names()
    words = " ".join(listing().split())
    assert all(f"{name} {summary(name)}" in words and len(summary(name)) > 20 for name in listed)


def test_help_is_the_list_and_an_unknown_name_is_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    assert listing() in capsys.readouterr().out
    assert main(["qualty"]) == 2
    assert "quality" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quality", "published", "lengths", "kernels"])
def test_help_of_a_measurement_is_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert summary(name) in said
    assert "--quick" in said


def test_the_last_line_and_the_file_are_the_same_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lengths", "--quick", "--out", str(tmp_path / "lengths.json")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "lengths.json").read_text(encoding="utf-8") == last + "\n"
    record = json.loads(last)
    assert (record["bench"], record["command"]) == ("lengths", "lengths --quick --out lengths.json")
    assert record["rows"]
