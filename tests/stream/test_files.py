"""Files of ratings and actions are told apart, ordered by time, and refused with the line that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from stream.errors import FileError
from stream.files import RATING_KINDS, rating_kinds, read_actions
from wire.action import Action, decode_record
from wire.config import ActionConfig

DAT = "1::10::5::978300760\n2::11::3::978300700\n1::12::4::978300760\n"
EXPECTED = [(2, 11, ["rate"], 978300700000, 3), (1, 10, ["rate", "like", "love"], 978300760000, 5),
            (1, 12, ["rate", "like"], 978300760000, 4)]  # fmt: skip


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


def test_compressed_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "r.dat.gz").write_bytes(gzip.compress(DAT.encode()))
    (tmp_path / "r.dat.zst").write_bytes(zstandard.compress(DAT.encode()))
    assert read(tmp_path / "r.dat.gz") == read(tmp_path / "r.dat.zst") == EXPECTED


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({
        "item_id": [10, 11, 12], "user_id": [1, 2, 1], "rating": [5, 3, 4],
        "timestamp": [978300760, 978300700, 978300760],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet") == EXPECTED


def test_json_lines_are_actions_as_they_are_in_the_order_of_time(tmp_path: Path) -> None:
    actions = [{"user": "u", "item": n, "action": "see", "timestamp": time} for n, time in enumerate((5, 3, 5, 1))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, actions)) + "\n\n")
    assert [action["item"] for action in read_actions(tmp_path / "a.jsonl")] == [3, 1, 0, 2]


def test_a_rating_is_an_action_of_the_schema(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_text(DAT)
    for action in read_actions(tmp_path / "r.dat"):
        (decoded,) = decode_record(json.dumps(action).encode(), 10**12, ActionConfig(kinds=RATING_KINDS))
        assert isinstance(decoded, Action)


def test_keys_stay_what_they_are_as_text(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_text("007::B00X::2.5::1\n")
    assert read(tmp_path / "r.dat") == [("007", "B00X", ["rate"], 1000, 2.5)]


@pytest.mark.parametrize(("rating", "num_kinds"), [(0.5, 1), (3.5, 1), (4, 2), (4.5, 2), (5, 3)])
def test_a_high_rating_is_a_like_and_the_highest_a_love(rating: float, num_kinds: int) -> None:
    assert rating_kinds(rating) == list(RATING_KINDS[:num_kinds])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dat", b"", "empty file"),
        ("a.txt", b"hello\n", "formats: ratings.dat"),
        ("a.dat", b"1::2::3::4\n1::2::x::4\n", "a.dat:2: expected"),
        ("a.dat", b"1::2::3::4\n1::2\n", "a.dat:2: expected"),
        ("a.csv", b"userId,movieId,rating,timestamp\n,2,3,4\n", "a.csv:2: expected"),
        ("a.csv", b"a,b,c\n1,2,3\n", "expected a known format"),
        (
            "a.jsonl",
            b'{"user":1,"item":1,"action":"x","timestamp":3}\n{broken\n',
            "a.jsonl:2: expected an action as JSON",
        ),
        ("a.jsonl", b'{"user": 1}\n', "a.jsonl:1: expected an object with action, item, timestamp, user"),
        ("b.jsonl", b'{"timestamp": 1}\n', "b.jsonl:1: expected an object with action, item, timestamp, user"),
        ("a.dat", b"\xff\xfe\x00", "expected text in UTF-8"),
        ("a.dat.gz", b"no gzip", "expected a readable file"),
        ("a.dat.zst", b"no zstd at all", "expected zstandard data"),
        ("a.parquet", b"no parquet", "expected a Parquet file"),
        ("missing.dat", None, "there is none"),
        ("missing.parquet", None, "there is none"),
    ],
)
def test_what_cannot_be_read_says_so_in_one_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        list(read_actions(tmp_path / name))
    assert "\n" not in str(caught.value)
