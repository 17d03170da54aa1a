"""Files of ratings and actions are recognised, ordered by time, and refused with the line that is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zstandard

from stream.errors import FileError
from stream.files import RATING_KINDS, rating_kinds, read_actions
from wire.action import Action, decode_record
from wire.config import ActionConfig

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_700_000_000_000
DAT = "1::10::5::978300760\n2::11::3::978300700\n1::12::4::978300760\n"
EXPECTED = [(2, 11, ["rate"], 978300700000, 3), (1, 10, ["rate", "like", "love"], 978300760000, 5),
            (1, 12, ["rate", "like"], 978300760000, 4)]  # fmt: skip


def json_lines(num: int) -> str:
    return "".join(
        json.dumps({"user": f"u{n}", "item": n * 7919 % 1000, "action": "see", "timestamp": NOW + n}) + "\n"
        for n in range(num)
    )


def read(path: Path) -> list[tuple[object, ...]]:
    return [(a["user"], a["item"], a["action"], a["timestamp"], a["value"]) for a in read_actions(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.dat", DAT),
        ("u.data", DAT.replace("::", "\t")),
        ("ratings.csv", "userId,movieId,rating,timestamp\n" + DAT.replace("::", ",")),
        ("quoted.csv", '"userId","movieId","rating","timestamp"\r\n' + DAT.replace("::", ",").replace("\n", "\r\n")),
        ("a.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + DAT.replace("::", "\t")),
        ("other.csv", "timestamp,item,user,rating\n978300760,10,1,5.0\n978300700,11,2,3.0\n978300760,12,1,4.0\n"),
        ("ms.csv", "user,item,rating,timestamp\n" + DAT.replace("::", ",").replace("\n", "000\n")),
    ],
)
def test_ratings_are_read_whatever_their_layout(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path / name) == EXPECTED


DAMAGED_PARQUET = r"a\.parquet: expected a Parquet file, got .*; fetch or write it again"
COMPRESS = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_whatever_it_is_called(suffix: str, tmp_path: Path) -> None:
    for name in (f"r.dat.{suffix}", "r.dat"):
        (tmp_path / name).write_bytes(COMPRESS[suffix](DAT.encode()))
        assert read(tmp_path / name) == EXPECTED


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_of_several_compressed_parts_is_read_to_its_end(suffix: str, tmp_path: Path) -> None:
    parts = [COMPRESS[suffix](line.encode()) for line in DAT.splitlines(keepends=True)]
    (tmp_path / "r.dat").write_bytes(b"".join(parts))
    assert read(tmp_path / "r.dat") == EXPECTED


@pytest.mark.parametrize("outer", COMPRESS)
def test_a_file_that_was_compressed_twice_is_read(outer: str, tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(COMPRESS[outer](gzip.compress(DAT.encode())))
    assert read(tmp_path / "r.dat") == EXPECTED


def test_zstandard_of_other_tools_is_read(tmp_path: Path) -> None:
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    compress = zstandard.ZstdCompressor(compression_params=long).compressobj()
    (tmp_path / "long.zst").write_bytes(compress.compress(DAT.encode()) + compress.flush())
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"more"
    (tmp_path / "parallel.zst").write_bytes(skipped + zstandard.compress(DAT.encode()) + skipped)
    for name in ("long.zst", "parallel.zst"):
        assert read(tmp_path / name) == EXPECTED


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_or_damaged_compressed_file_is_refused(suffix: str, tmp_path: Path) -> None:
    whole = COMPRESS[suffix](json_lines(200).encode())
    middle = len(whole) // 2
    damaged = (whole[:-3], whole[:middle], whole[:middle] + b"damage" + whole[middle + 6 :], whole + b"behind it")
    for number, content in enumerate(damaged):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(FileError, match=r"a\.jsonl: expected \w+ data, got a damaged file .*; fetch it again"):
            read_actions(tmp_path / "a.jsonl"), number


def test_parquet_is_read_if_pyarrow_is_installed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({
        "item_id": [10, 11, 12], "user_id": [1, 2, 1], "rating": [5, 3, 4],
        "timestamp": [978300760, 978300700, 978300760],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet") == EXPECTED


def test_json_lines_are_actions_as_they_are_in_the_order_of_time(tmp_path: Path) -> None:
    times = (NOW + 5, NOW + 3, NOW + 5, NOW + 1)
    actions = [{"user": "u", "item": n, "action": "see", "timestamp": time} for n, time in enumerate(times)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, actions)) + "\n\n")
    assert [action["item"] for action in read_actions(tmp_path / "a.jsonl")] == [3, 1, 0, 2]


def test_a_rating_is_an_action_of_the_schema(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_text(DAT)
    for action in read_actions(tmp_path / "r.dat"):
        (decoded,) = decode_record(json.dumps(action).encode(), 10**12, ActionConfig(kinds=RATING_KINDS))
        assert isinstance(decoded, Action)


def test_keys_stay_what_they_are_as_text(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_text("007::B00X::2.5::978300760\n")
    assert read(tmp_path / "r.dat") == [("007", "B00X", ["rate"], 978300760000, 2.5)]


@pytest.mark.parametrize(("rating", "num_kinds"), [(0.5, 1), (3.5, 1), (4, 2), (4.5, 2), (5, 3)])
def test_a_high_rating_is_a_like_and_the_highest_a_love(rating: float, num_kinds: int) -> None:
    assert rating_kinds(rating) == list(RATING_KINDS[:num_kinds])


ACTION = {"user": "u", "item": "i", "action": "see", "timestamp": NOW}


def line(**changed: object) -> str:
    return json.dumps({**ACTION, **changed}, ensure_ascii=False)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_a_newline_ends_a_line(mark: str, tmp_path: Path) -> None:
    item = f"Song{mark}Title"
    # JSON requires ASCII controls to be escaped; tables do not.
    escaped = json.dumps({**ACTION, "item": item}, ensure_ascii=ord(mark) < 0x20)
    (tmp_path / "a.jsonl").write_text(escaped + "\n" + line() + "\n")
    assert [action["item"] for action in read_actions(tmp_path / "a.jsonl")] == [item, "i"]
    (tmp_path / "r.dat").write_text(f"1::{item}::5::978300760\n")
    (tmp_path / "r.csv").write_text(f"user,item,rating,timestamp\n1,{item},5,978300760\n")
    (tmp_path / "u.data").write_text(f"1\t{item}\t5\t978300760\n")
    for name in ("r.dat", "r.csv", "u.data"):
        assert [action["item"] for action in read_actions(tmp_path / name)] == [item]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::"])
def test_a_table_is_read_with_any_separator_line_end_and_encoding(
    separator: str, encoding: str, ending: str, tmp_path: Path
) -> None:
    rows = [
        ["rating", "Timestamp", "userId", "movieId"],
        ["4.0", "978300760", "zoë", "10"],
        ["5", "978300761", "2", "11"],
    ]
    text = "".join(separator.join(row) + ending for row in rows)
    (tmp_path / "r.csv").write_bytes(text.encode(encoding))
    assert read(tmp_path / "r.csv") == [
        ("zoë", 10, ["rate", "like"], 978300760000, 4), (2, 11, ["rate", "like", "love"], 978300761000, 5),
    ]  # fmt: skip
    without_last_end = text.removesuffix(ending)
    (tmp_path / "r.csv").write_bytes(without_last_end.encode(encoding))
    assert len(read(tmp_path / "r.csv")) == 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_quoted_cells_hold_separators_quotes_and_newlines(separator: str, tmp_path: Path) -> None:
    items = [f"Film{separator} The", 'a "b" c', "two\nlines", "", "plain"]
    quoted = [f'"{item.replace(chr(34), chr(34) * 2)}"' for item in items if item]
    rows = [separator.join(['"user_id"', '"item_id"', '"rating"', '"timestamp"'])]
    rows += [separator.join(['"u1"', item, '"4.0"', f'"{978300760 + n}"']) for n, item in enumerate(quoted)]
    (tmp_path / "r.csv").write_text("\n".join(rows) + "\n")
    assert [action["item"] for action in read_actions(tmp_path / "r.csv")] == [item for item in items if item]


def test_an_error_after_a_quoted_newline_still_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('user,item,rating,timestamp\n1,"a\nb",5,978300760\n\n1,2,x,978300760\n')
    with pytest.raises(FileError, match=r"r\.csv:5: rating: expected a finite number, got 'x'"):
        read_actions(tmp_path / "r.csv")


def test_a_table_of_actions_keeps_all_that_an_action_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "event,ts,Session,user_id,item_id,value,genre,user_features.Land,id,other,propensity\n"
        f"click|like,{NOW},s1,u1,i1,2.5,jazz,li,e1,x,0.25\n"
        f"see,{NOW + 1},,u1,i2,,,,,,\n"
    )
    config = ActionConfig(kinds=("see", "click", "like"), features=("genre",), user_features=("land",))
    assert list(read_actions(tmp_path / "a.csv", config)) == [
        {"user": "u1", "item": "i1", "action": ["click", "like"], "timestamp": NOW, "value": 2.5, "id": "e1",
         "session": "s1", "propensity": 0.25, "features": {"genre": "jazz"}, "user_features": {"land": "li"}},
        {"user": "u1", "item": "i2", "action": ["see"], "timestamp": NOW + 1},
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text(f"event,ts,user_id,item_id,propensity\nsee,{NOW},u1,i1,1.5\n")
    with pytest.raises(FileError, match=r"a\.csv:2: propensity: expected a probability above 0 and up to 1, got 1\.5"):
        read_actions(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "cells",
    [
        ("978300760", "978300761"), ("978300760000", "978300761000"), ("978300760000000", "978300761000000"),
        ("978300760000000000", "978300761000000000"), ("978300760.0", "978300761.0"), ("9.7830076e8", "9.78300761e8"),
        ("2000-12-31T22:12:40Z", "2000-12-31T22:12:41Z"), ("2000-12-31 22:12:40", "2000-12-31 22:12:41"),
        ("2001-01-01T00:12:40+02:00", "2000-12-31T22:12:41.000000+00:00"),
        ("2000-12-31 22:12:40 UTC", "2000-12-31 22:12:41 GMT"), ("2000-12-31t22:12:40z", "2000-12-31 20:12:41 -0200"),
        ("2000-12-31T22:12:40.000000001Z", "2000-12-31 22:12:41.000"),
    ],
)  # fmt: skip
def test_times_of_a_table_are_read_in_their_own_unit(cells: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f"user,item,rating,timestamp\n1,10,5,{cells[0]}\n1,11,3,{cells[1]}\n")
    assert [action["timestamp"] for action in read_actions(tmp_path / "r.csv")] == [978300760000, 978300761000]


def test_a_day_alone_is_its_midnight(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user,item,rating,date\n1,10,5,2001-01-01\n")
    assert [action["timestamp"] for action in read_actions(tmp_path / "r.csv")] == [978307200000]


def test_one_list_of_actions_is_read_like_lines_of_them(tmp_path: Path) -> None:
    actions = [json.loads(line(timestamp=NOW + n, item=n)) for n in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(actions, indent=2))
    (tmp_path / "b.json").write_text(json.dumps(actions))
    (tmp_path / "c.json").write_text(json.dumps(actions[:2]) + "\n" + json.dumps(actions[2:]) + "\n")
    for name in ("a.json", "b.json", "c.json"):
        assert list(read_actions(tmp_path / name)) == actions


def test_files_with_a_byte_order_mark_each_may_be_joined(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    (tmp_path / "r.dat").write_bytes(b"".join(mark + row.encode() for row in DAT.splitlines(keepends=True)))
    assert read(tmp_path / "r.dat") == EXPECTED
    (tmp_path / "a.jsonl").write_bytes(2 * (mark + line().encode() + b"\n"))
    assert list(read_actions(tmp_path / "a.jsonl")) == [ACTION, ACTION]


def test_a_table_of_ratings_keeps_all_that_an_action_may_have(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        "user,item,rating,timestamp,domain,session,genre,land,id\nu,i,4,978300760,food,s1,jazz,li,r1\n"
        "u,j,3,978300761,,,,,\n"
    )
    config = ActionConfig(kinds=RATING_KINDS, features=("genre",), user_features=("land",))
    plain = {"user": "u", "item": "j", "action": ["rate"], "timestamp": 978300761000, "value": 3.0}
    more = {"domain": "food", "session": "s1", "id": "r1", "features": {"genre": "jazz"},
            "user_features": {"land": "li"}}  # fmt: skip
    rated = {"user": "u", "item": "i", "action": ["rate", "like"], "timestamp": 978300760000, "value": 4.0}
    assert list(read_actions(tmp_path / "r.csv", config)) == [rated | more, plain]


def test_a_list_may_be_longer_than_a_record_may(tmp_path: Path) -> None:
    actions = [json.loads(line(timestamp=NOW + n, item=n)) for n in range(2_500)]
    (tmp_path / "one.json").write_text(json.dumps(actions))
    (tmp_path / "lines.json").write_text(json.dumps(actions[:2_000]) + "\n" + json.dumps(actions[2_000:]) + "\n")
    for name in ("one.json", "lines.json"):
        assert list(read_actions(tmp_path / name)) == actions


@pytest.mark.parametrize(
    "names",
    [
        "userId,itemId,eventType,eventTime", "user-id,item-id,event-type,event-time", "User ID,Item ID,Event,Time",
        "USER_ID,ITEM_ID,EVENT_TYPE,TIMESTAMP", " uid , iid , kind , ts ",
    ],
)  # fmt: skip
def test_a_column_is_known_however_its_name_is_spelled(names: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{names}\nu,i,see,{NOW}\n")
    assert list(read_actions(tmp_path / "a.csv")) == [{"user": "u", "item": "i", "action": ["see"], "timestamp": NOW}]


def test_spaces_around_a_cell_are_no_part_of_an_id(tmp_path: Path) -> None:
    rows = f" u1 ,two words , see , {NOW} \n5 ,i,see,{NOW}\n"
    (tmp_path / "a.csv").write_text("user , item , action , timestamp\n" + rows)
    found = [(each["user"], each["item"]) for each in read_actions(tmp_path / "a.csv")]
    assert found == [("u1", "two words"), (5, "i")]


def test_whole_numbers_written_as_fractions_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line(user=5.0, item=-7) + "\n")
    (tmp_path / "r.csv").write_text("user,item,rating,timestamp\n5.0,-7.0,5,978300760\n")
    for name in ("a.jsonl", "r.csv"):
        (action,) = read_actions(tmp_path / name)
        assert (action["user"], action["item"]) == (5, -7)
        assert isinstance(action["user"], int)
    (tmp_path / "t.csv").write_text("user,item,rating,timestamp\n1e10,-0,5,978300760\n")
    (action,) = read_actions(tmp_path / "t.csv")
    assert (action["user"], action["item"]) == ("1e10", "-0"), "text, as hashes may be"


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(DAT))
    writer.start()
    assert read(tmp_path / "pipe") == EXPECTED
    writer.join()


def test_a_pipe_without_a_writer_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.files.content.PIPE_WAIT_S", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="expected a writer at the other end of the pipe, got none"):
        read_actions(tmp_path / "pipe")


def tar_of(content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("r.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


CSV = "user,item,rating,timestamp\n"
GOOD_ROW = "u,i,4,978300760\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dat", b"", "a.dat: expected actions, got an empty file"),
        ("a.dat", b"\n\n \n", "got an empty file"),
        ("a.txt", b"hello\n", "a.txt:1: expected a known format, got a first line of 'hello'; formats: ratings.dat"),
        ("a.dat", b"1::2::3::978300760\n1::2::x::978300760\n", "a.dat:2: rating: expected a finite number, got 'x'"),
        ("a.dat", b"1::2::3::978300760\n1::2\n", "a.dat:2: expected 4 cells separated by '::' as in the"),
        ("a.csv", b"userId,movieId,rating,timestamp\n,2,3,978300760\n", "a.csv:2: user: expected an id, got ''"),
        ("a.csv", b"a,b,c\n1,2,3\n", "a.csv:1: expected a known format"),
        ("a.csv", b"1,2,3.0,978300760\n", "A table needs a header such as user_id"),
        ("a.csv", CSV.encode(), "a.csv: expected actions, got none"),
        ("a.csv", b"user,item,rating\n1,2,3\n", "a.csv:1: expected a column for the timestamp"),
        ("a.csv", b"user,item,timestamp\n1,2,978300760\n", "a.csv:1: expected a column named action or rating"),
        ("a.csv", b"user,user,item,rating,timestamp\n1,2,3,4,978300760\n", "expected one column user, got user, user"),
        ("a.csv", f'{CSV}u,"i,4,978300760\n{GOOD_ROW}'.encode(), "a.csv:2: expected cells .* close the quote"),
        ("a.csv", f'{CSV}u,"i"x,4,978300760\n'.encode(), "a.csv:2: expected cells separated by ','"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,a, b,4,978300760\n".encode(), "a.csv:3: expected 4 cells .* quote the cell"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,i,nan,978300760\n".encode(), "a.csv:3: rating: expected a finite number, got"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,i,inf,978300760\n".encode(), "a.csv:3: rating: expected a finite"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,i,1e39,978300760\n".encode(), "a.csv:3: rating: expected a finite"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,i,,978300760\n".encode(), "a.csv:3: rating: expected a number, got an empty cell"),
        ("a.csv", f"{CSV}{GOOD_ROW}nan,i,4,978300760\n".encode(), "a.csv:3: user: expected an id, got 'nan'"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,NULL,4,978300760\n".encode(), "a.csv:3: item: expected an id, got 'NULL'"),
        ("a.csv", f"{CSV}u,{'i' * 257},4,978300760\n".encode(), "a.csv:2: item: expected at most 256 characters"),
        ("a.csv", f"{CSV}u,{'i' * 2_000_000},4,978300760\n".encode(), "a.csv:2: expected cells .*field larger than"),
        ("a.csv", f"{CSV}u,i,4,inf\n".encode(), "a.csv:2: timestamp: expected a time, got inf"),
        ("a.csv", f"{CSV}u,i,4,nan\n".encode(), "a.csv:2: timestamp: expected a time, got nan"),
        ("a.csv", f"{CSV}u,i,4,\n".encode(), "a.csv:2: timestamp: expected seconds"),
        ("a.csv", f"{CSV}u,i,4,05/06/2020\n".encode(), "a.csv:2: timestamp: expected .* ISO 8601 such as"),
        ("a.csv", f"{CSV}u,i,4,1970\n".encode(), "a.csv:2: timestamp: .* from 1990-01-01 .*1970-01-01 00:32:50"),
        ("a.csv", f"{CSV}u,i,4,20240506\n".encode(), "got 20240506, .*; write the day as 2024-05-06"),
        ("a.csv", f"{CSV}u,i,4,978_300_760\n".encode(), "a.csv:2: timestamp: expected seconds, .* got '978_300_760'"),
        ("a.csv", f"{CSV}u,i,4,4102444799\n".encode(), r"a.csv:2: .*action.max_future_s\), got 4102444799"),
        ("a.csv", f"{CSV}{GOOD_ROW}u,i,4,978300760000\n".encode(), "a.csv:3: .* seconds as .* like milliseconds"),
        ("a.csv", b"user,item,action,timestamp\nu,i,,978300760\n", "a.csv:2: action: expected a kind, got an empty"),
        ("a.csv", b"user,item,action,timestamp\nu,i,see,978300760\nu,i,yawn,978300760\n",
         "a.csv:3: expected actions among see, click, got yawn, .*; set HEADRACE_ACTION__KINDS=see,click,yawn"),
        ("a.csv", f"{CSV}zo\xeb,i,4,978300760\n".encode("latin-1"), "a.csv:2: expected text in UTF-8, .* iconv"),
        ("a.csv", f"{CSV}{GOOD_ROW}".encode("utf-16-le"), "a.csv:1: expected text, got a NUL byte; if it is UTF-16"),
        ("a.dat", b"\xff\xfe\x00", "a.dat: expected text in UTF-8 or UTF-16, got other bytes"),
        ("a.dat", b"1::2::3::978300760\n\0\0\0\0", "a.dat:2: expected text, got a NUL byte"),
        ("a.zip", b"PK\x03\x04junk", "expected text, got a zip archive or a spreadsheet; unpack or export it first"),
        ("a.zip", b"PK\x05\x06" + bytes(18), "expected text, got an empty zip archive"),
        ("a.tgz", gzip.compress(tar_of(GOOD_ROW.encode())), "a.tgz: expected text, got a tar archive; unpack"),
        ("a.lz4", b"\x04\x22\x4d\x18" + bytes(9), "expected text, got an lz4 file"),
        ("a.csv", f"{CSV}{GOOD_ROW}".encode("utf-32"), "expected text, got UTF-32"),
        ("a.csv", b"<!DOCTYPE html><p>404</p>", "expected text, got a web page"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "expected text, got a pointer of Git LFS"),
        ("a.csv", f"{CSV}{GOOD_ROW}\ufeff{CSV}{GOOD_ROW}".encode(), "a.csv:3: expected a row, got the header again"),
        ("a.csv", b"user,item,action,timestamp,genre,genre\nu,i,see,9,a,b\n", "expected one column genre, got several"),
        ("a.dat.gz", b"\x1f\x8bno gzip", "a.dat.gz: expected gzip data, got a damaged file"),
        ("a.dat.zst", b"\x28\xb5\x2f\xfdno zstd", "a.dat.zst: expected zstandard data, got a damaged file"),
        ("a.jsonl", f"{line()}\n{{broken\n".encode(), "a.jsonl:2: expected an action as JSON, got .* line"),
        ("a.jsonl", b'{"user": 1}\n', "a.jsonl:1: item: expected in every action, got none; add it"),
        ("a.jsonl", b'{\n"user": 1}\n', "a.jsonl:1: expected an action as JSON"),
        ("a.jsonl", f"{line()}\n1,2,3,4\n".encode(), "a.jsonl:2: expected"),
        ("a.jsonl", f"{line()}\n[]\n".encode(), "a.jsonl:2: expected at least one action in the list"),
        ("a.jsonl", f"{line()}\n[{line()},{line(user='')}]\n".encode(), "a.jsonl:2: element 2: user: "),
        ("a.json", f"[{line()},\n{line()},\n{line(user=None)}]".encode(), "a.json: element 3: user: expected a string"),
        ("a.json", f"[{line()},\n{line()},\n".encode(), "a.json:.*: expected a list of actions as JSON"),
        ("a.jsonl", b"[]\n", "a.jsonl:1: expected at least one action in the list"),
        ("a.csv", b"user,item,action,timestamp\nu,i,\"see,click\",978300760\n", r"write it as 'see\|click'"),
        ("a.csv", b"user,item,action,timestamp\nu,i,\"['see', 'click']\",978300760\n", r"write it as 'see\|click'"),
        ("a.csv", b"user,item,action,timestamp,features\nu,i,see,9,{}\n", r"each feature \(genre\), got one column"),
        ("a.jsonl", line().encode() + b'\n{"forget": true, "user": "u"}\n',
         "a.jsonl:2: expected an action, got a request to forget user u; use headrace forget"),
        ("a.json", b'[{"forget": true, "item": 5}]', "element 1: expected an action, got a request to forget item 5"),
        ("a.csv", f"{CSV}1.23457E+17,i,4,978300760\n".encode(), "2: user: .* got '1.23457E.17', a float .* rounded"),
        ("a.csv", f"{CSV}u,i,4,9.783E+08\n".encode(), "2: timestamp: .* to the second, got 9.783E.08, whose"),
        ("a.csv", f"{CSV}u,i,4,978300760\nu,i,4,9.78301e8\n".encode(), "3: timestamp: .*to the second"),
        ("a.csv", f"{CSV}u,i,4,1.76E+12\n".encode(), "2: timestamp: .* got 1.76E.12, whose .* whole numbers"),
        ("a.csv", f"{CSV}u,1e+18,4,978300760\n".encode(), "2: item: .* a float that stands for several integers"),
        ("a.csv", f"{CSV}-9007199254740992.0,i,4,978300760\n".encode(), "2: user: .* a float .* several integers"),
        ("a.csv", f"{CSV}9007199254740994.0,i,4,978300760\n".encode(), "2: user: .* a float .* several integers"),
        ("a.csv", f"{CSV}u,i,4,978300760\rv,i,4,978300760\n".encode(),
         r"a.csv:2: .*a carriage return that ends no line\); end lines with a newline"),
        ("a.csv", b"user;item;rating;timestamp\nu;i;4,5;978300760\n", "got '4,5'; use a decimal point"),
        ("a.csv", f"{CSV}u,i,1_0,978300760\n".encode(), "a.csv:2: rating: expected a finite number, got '1_0'"),
        ("a.csv", b"user id,userid,item,rating,timestamp\n1,2,3,4,9\n", "one column user id, got user id, userid"),
        *(
            ("a.jsonl", f"{line()}\n{line(**changed)}\n".encode(), f"a.jsonl:2: {message}")
            for changed, message in [
                ({"user": None}, "user: expected a string or an integer, got null"),
                ({"user": ["u"]}, "user: expected a string or an integer, got a list"),
                ({"user": {"id": 1}}, "user: expected a string or an integer, got an object"),
                ({"user": True}, "user: expected a string or an integer, got a boolean"),
                ({"user": 5.5}, "user: expected a string or an integer, got a number"),
                ({"user": 2.0**53 + 2}, "user: expected .* got 9007199254740994.0, a float that stands for several"),
                ({"item": 1e18}, "item: .* a float that stands for several integers; send the id as text"),
                ({"user": ""}, "user: expected 1 to 256 characters"),
                ({"item": None}, "item: expected a string or an integer, got null"),
                ({"item": False}, "item: expected a string or an integer, got a boolean"),
                ({"item": "i" * 257}, "item: expected 1 to 256 characters"),
                ({"action": {"type": "see"}}, "action: expected a string or a list of strings, got an object"),
                ({"action": []}, "action: expected at least one kind"),
                ({"action": "yawn"}, "expected actions among see, click, got yawn"),
                ({"value": "4"}, "value: expected a number, got a string"),
                ({"value": float("inf")}, "expected an action as JSON, got JSON is malformed"),
                ({"value": True}, "value: expected a number, got a boolean"),
                ({"features": {"genre": []}}, "features.genre: expected a string or an integer, got a list"),
                ({"id": 1.5}, "id: expected a string or an integer, got a number"),
                ({"session": ""}, "session: expected 1 to 256 characters"),
                ({"timestamp": NOW + 0.5}, "timestamp: expected milliseconds .* send whole milliseconds"),
                ({"timestamp": NOW // 1000}, "timestamp: .* looks like seconds; multiply by 1000"),
                ({"timestamp": NOW * 1000}, "timestamp: .* looks like microseconds; divide by 1000"),
                ({"timestamp": NOW * 1000000}, "timestamp: .* looks like nanoseconds; divide by 1000000"),
                ({"timestamp": "2024-05-06T07:08:09Z"}, "timestamp: .* looks like ISO 8601; send the number"),
                ({"timestamp": 4102444799000}, "timestamp: expected at most 300 s after the record's own time"),
                ({"more": "x" * 1_000_001}, "expected at most 1000000 bytes"),
            ]
        ),
        ("missing.dat", None, "there is none; check the path"),
        ("missing.parquet", None, "there is none"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_in_one_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_actions(tmp_path / name, ActionConfig(kinds=("see", "click"), features=("genre",)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_time_with_an_exponent_and_all_its_digits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "numpy.csv"
    times = (
        f"{978300760:.18e}",
        "9.78300760e+08",
        "1.00000000000e9",
        "9.7830076e8",
    )  # as numpy.savetxt writes all numbers
    path.write_text(CSV + "".join(f"u,i,4,{time}\n" for time in times))
    assert [each["timestamp"] for each in read_actions(path)] == [*[978300760000] * 3, 1000000000000]


SMALL = """
import resource, sys
from stream.errors import FileError
from stream.files import read_actions
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    read_actions(sys.argv[1])
except FileError as error:
    print(error)
"""


def test_a_file_that_does_not_fit_into_memory_is_one_line(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    parts = [packer.compress(bytes(32 << 20)) for _ in range(64)]
    (tmp_path / "a.zst").write_bytes(b"".join([*parts, packer.flush()]))
    command = [sys.executable, "-c", SMALL, str(tmp_path / "a.zst")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "a.zst: expected a file that fits into memory, unpacked, got a larger one; split it by time\n"
    )


def test_a_folder_or_a_device_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a file, got a folder; name the file itself"):
        read_actions(tmp_path)
    with pytest.raises(FileError, match="expected a file, got a device or a socket"):
        read_actions("/dev/null")


def test_ratings_are_refused_if_their_kinds_are_not_configured(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_text(DAT)
    with pytest.raises(
        FileError, match=r"got rate, love, .*KINDS=rate,like,love and HEADRACE_SEQUENCE__JOIN_WINDOW_S=0"
    ):
        read_actions(tmp_path / "r.dat", ActionConfig())


def parquet_file(path: Path, **columns: object) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


MOMENT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_parquet_of_actions_is_read_with_its_own_types(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path / "a", user=["u", "v"], item=[1.0, 2.0], action=[["see"], ["see", "click"]], session=["s", None],
        timestamp=[MOMENT, MOMENT], value=[1.5, None],
    )  # fmt: skip
    assert list(read_actions(path, ActionConfig(kinds=("see", "click")))) == [
        {"user": "u", "item": 1, "action": ["see"], "timestamp": NOW, "value": 1.5, "session": "s"},
        {"user": "v", "item": 2, "action": ["see", "click"], "timestamp": NOW},
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": [1, None]}, "a.parquet: row 2: user: expected text or an integer, got an empty cell"),
        ({"user": [1.0, 1.5]}, "row 2: user: expected text or an integer, got 1.5"),
        ({"user": [[1], [2]]}, r"row 1: user: expected text or an integer, got \[1\]"),
        ({"item": [True, False]}, "row 1: item: expected text or an integer, got True"),
        ({"rating": [1.0, float("nan")]}, "row 2: rating: expected a number, got an empty cell"),
        ({"rating": [float("inf"), 1.0]}, "row 1: rating: expected a finite number, got inf"),
        ({"timestamp": [NOW, None]}, "row 2: timestamp: expected a time, got an empty cell"),
        ({"timestamp": [NOW, 5]}, "row 2: timestamp: expected a time from 1990"),
        ({"user": [1.0, 2.0**53 + 2]}, "row 2: user: .* ids were rounded; export the column as integers or as text"),
        ({"user": np.array([1, 2**24 + 1], np.float32)}, "row 2: user: .*got 16777216.0, .* ids were rounded"),
        ({"item": np.array([2049, 1], np.float16)}, "row 1: item: .*got 2048.0, .* ids were rounded"),
        (
            {"timestamp": np.array([1.7e9, 1.7e9], np.float32)},
            "row 1: timestamp: .*got 17.* of a 32-bit column",
        ),
        ({"user": [b"u", b"\xff"]}, r"row 2: user: expected text in UTF-8, got b'\\xff'"),
        ({"user": ["u", "\0v"]}, "row 2: user: expected an id that does not start with NUL"),
        ({"user": [MOMENT, MOMENT]}, "row 1: user: expected text or an integer, got the time 1700000000000 ms"),
        ({"rating": [MOMENT, MOMENT]}, "row 1: rating: expected a finite number, got the time 1700000000000 ms"),
        ({"user": [Decimal(5), Decimal("5.5")]}, "row 2: user: expected text or an integer, got Decimal"),
    ],
)
def test_an_unusable_cell_of_parquet_is_named_by_its_row(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    columns: dict[str, object] = {"user": [1, 2], "item": [3, 4], "rating": [4, 5], "timestamp": [NOW, NOW]}
    path = parquet_file(tmp_path / "a.parquet", **{**columns, **changed})
    with pytest.raises(FileError, match=message):
        read_actions(path)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Vienna"])
def test_times_of_parquet_are_read_in_every_unit(unit: str, zone: str | None, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    a_ms = {"s": 1e-3, "ms": 1, "us": 1000, "ns": 1_000_000}[unit]
    ticks = [round(NOW * a_ms) + (unit == "ns"), round((NOW + 1000) * a_ms)]
    path = parquet_file(
        tmp_path / "a.parquet", user=[Decimal(7), Decimal(8)], item=[3, 4], rating=[4, 5],
        timestamp=arrow.array(ticks, arrow.timestamp(unit, zone)),
    )  # fmt: skip
    assert [(action["user"], action["timestamp"]) for action in read_actions(path)] == [(7, NOW), (8, NOW + 1000)]


def test_columns_of_parquet_that_are_of_no_use_may_be_anything(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    odd = {
        "duration": arrow.array([1], arrow.duration("ns")), "time": arrow.array([1], arrow.time64("ns")),
        "day": arrow.array([(1 << 31) - 1], arrow.date32()),
        "zone": arrow.array([[1]], arrow.list_(arrow.timestamp("us", "Mars/Phobos"))),
    }  # fmt: skip
    columns = {"event_time": arrow.array([NOW]), "user": arrow.array([7]), "rating": arrow.array([4]), **odd,
               "item": arrow.array([3])}  # fmt: skip
    del columns["time"]  # its name would be a time's
    names = [*columns, "again", "again"]
    table = arrow.Table.from_arrays([*columns.values(), odd["time"], odd["time"]], names=names)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [(7, 3, ["rate", "like"], NOW, 4)]
    table = arrow.Table.from_arrays([*columns.values(), columns["user"]], names=[*columns, "user"])
    parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(FileError, match=r"b\.parquet: expected one column user, got user, user; rename or drop"):
        read_actions(tmp_path / "b.parquet")


def test_a_page_of_parquet_that_was_damaged_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"user": ["someone"], "item": ["something"], "rating": [4], "timestamp": [NOW]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="none", write_page_checksum=True,
                        write_statistics=False, store_schema=False)  # fmt: skip
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes().replace(b"someone", b"anybody"))
    with pytest.raises(FileError, match=DAMAGED_PARQUET):
        read_actions(tmp_path / "a.parquet")


def test_a_time_of_parquet_beyond_the_calendar_is_named_by_its_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    times = arrow.array([NOW * 1000, 1 << 62], arrow.timestamp("us"))
    path = parquet_file(tmp_path / "a.parquet", user=[1, 2], item=[3, 4], rating=[4, 5], timestamp=times)
    with pytest.raises(FileError, match="row 2: timestamp: expected a time from 1990"):
        read_actions(path)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "a.parquet", user=[1], item=[2], rating=[3], timestamp=[NOW])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileError, match=DAMAGED_PARQUET) as caught:
        read_actions(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_a_file_that_memory_cannot_hold_is_refused_before_the_kernel_kills_anybody(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(pack(b"1::2::5::1000000000\n" * 1000))
    assert len(list(read_actions(path))) == 1000
    monkeypatch.setattr("stream.files.content.available_bytes", lambda: 100_000)
    with pytest.raises(FileError, match=r"got 2e-05 GB or more, whose actions take at least 0.00016 GB of 0.0001 GB"):
        read_actions(path)
    monkeypatch.setattr("stream.files.content.available_bytes", lambda: None)
    assert len(list(read_actions(path))) == 1000


def test_parquet_of_more_rows_than_memory_holds_is_refused_before_it_takes_that_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million equal rows are a file of 15 kB."""
    path = parquet_file(tmp_path / "a", user=["u"] * 10**6, item=[1] * 10**6, rating=[4] * 10**6, timestamp=[9] * 10**6)
    monkeypatch.setattr("stream.files.content.available_bytes", lambda: 200_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        FileError, match=r"whose actions take at least 0\.256 GB of 0\.2 GB available; split it by time"
    ):
        read_actions(path)


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, partial(lzma.compress, preset=0), zstandard.ZstdCompressor().compress]
)
def test_a_small_file_with_more_content_than_memory_holds_is_refused_before_it_takes_that_memory(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(pack(bytes(400 << 20)))
    monkeypatch.setattr("stream.files.content.available_bytes", lambda: 8_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="expected a file that fits into memory"):
            read_actions(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
