"""Batches that state negative numbers, as a broker takes them that does not look into batches, stop no reader."""

from __future__ import annotations

import zlib

import pytest
from crc32c import crc32c
from kafka.codec import gzip_encode, lz4_encode, lz4_encode_old_kafka, snappy_encode, zstd_encode

from tests import bombs
from tests.wire.test_decompression import OLD, READERS, of_old, values_of


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("length", [-13, -12, 0, 13])
@pytest.mark.parametrize(("magic", "codec"), [each for each in OLD if each[1]])
def test_a_message_of_an_old_batch_that_leads_back_to_itself_stops_no_reader(
    how: str, length: int, magic: int, codec: int
) -> None:
    """Its length is negative, and the clients go on at the place where it ends."""
    inner = bytearray(of_old(magic, 0, b"x", 1))
    inner[8:12] = length.to_bytes(4, "big", signed=True)
    encode = [bytes, gzip_encode, snappy_encode, lz4_encode if magic else lz4_encode_old_kafka][codec]
    outer = bytearray(of_old(magic, 0, encode(bytes(inner)), 1))
    at = 12 + 4 + 1
    outer[at] = codec
    key = outer.index(b"k", at)  # a compressed batch has none
    outer[key - 4 : key + 1] = (-1).to_bytes(4, "big", signed=True)
    outer[8:12] = (len(outer) - 12).to_bytes(4, "big")
    outer[12:16] = zlib.crc32(bytes(outer[16:])).to_bytes(4, "big")
    after = (1).to_bytes(8, "big") + of_old(magic, 0, b"after", 1)[8:]
    assert values_of(how, bytes(outer) + after) == [b"", b"after"]


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("codec", ["none", "zstd", "gzip"])
def test_a_batch_that_states_a_negative_number_of_records_is_passed_over(how: str, codec: str) -> None:
    plain = b"".join(bombs._records(9, 3, b"k"))
    encode = {"none": bytes, "zstd": zstd_encode, "gzip": gzip_encode}[codec]
    raw = bytearray(bombs.batch("zstd" if codec == "none" else codec, encode(plain), 3))
    if codec == "none":
        raw[21:23] = bytes(2)
    raw[57:61] = (-2).to_bytes(4, "big", signed=True)
    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    after = (3).to_bytes(8, "big") + bombs.batch("zstd", zstd_encode(plain), 3)[8:]
    assert values_of(how, bytes(raw) + after) == [b"", *[bytes(9)] * 3]
