"""A server that may open no more files says which limit it has reached, and what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.open_files import FileWatch, OpenFiles


@contextlib.contextmanager
def at_most(most: int) -> Iterator[None]:
    """A limit on this process's open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_files_are_counted_at_the_limit_too() -> None:
    before = OpenFiles.count()
    with Path(os.devnull).open():
        assert OpenFiles.count().num == before.num + 1
    with at_most(before.num):
        found = OpenFiles.count()
    assert found == OpenFiles(before.num, before.num), "counting takes a file itself"


def test_a_server_near_its_limit_names_it_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    watch, num = FileWatch(), OpenFiles.count().num
    with caplog.at_level(logging.ERROR):
        with at_most(num + 200):
            watch.look(7)
        assert not caplog.records
        with at_most(num + 10):
            watch.look(7)
            watch.look(7)
    (record,) = caplog.records
    assert f"of at most {num + 10} are open, 7 of them connections of clients" in record.message
    assert "LimitNOFILE" in record.message
