"""A sentence is broken between words on a terminal, and stays one line for scripts."""

from __future__ import annotations

import io

import pytest

from headrace.sentences import say

LONG = "user u17: removed from the worker's store and the servers; actions of `kafka.prefix` stay until retention ends"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_no_word_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for stream, is_error in (("sys.stdout", False), ("sys.stderr", True)):
        monkeypatch.setattr(stream, shown := Terminal())
        say(LONG, is_error=is_error)
        lines = shown.getvalue().splitlines()
        assert max(map(len, lines)) <= 40
        assert " ".join(lines) == LONG


def test_for_scripts_a_sentence_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(LONG)
    say(LONG, is_error=True)
    assert capsys.readouterr() == (LONG + "\n", LONG + "\n")


def test_an_error_is_one_line_without_control_codes_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb.csv: expected text, got \x1b[31mred\r; in café, 日本", is_error=True)
    assert capsys.readouterr().err == "a\\nb.csv: expected text, got \\x1b[31mred\\r; in café, 日本\n"


def test_the_lines_of_a_quoted_log_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("the worker ended; the end of its log:\n    line\x1b[0m one\n    line two", is_error=True, has_lines=True)
    assert capsys.readouterr().err == "the worker ended; the end of its log:\n    line\\x1b[0m one\n    line two\n"
