"""Actions and ratings in a Parquet file, whose columns are named as in a table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

from stream.errors import FileError
from stream.files.cells import BadCell, Rounded
from stream.files.clock import Milliseconds
from stream.files.columns import Row, columns_named, used_of
from stream.files.content import check_size
from stream.files.table import read_rows
from wire.config import ActionConfig

_EXACT = {16: 2**11 - 1, 32: 2**24 - 1}
"""Bits of a float → the largest integer that no other integer is rounded to."""
_ROW_BYTES = 32
"""What a row counts for: its action takes at least 8 times as many bytes of memory (measured: 292), of which a file may
hold none, if all rows are the same."""
_PER_MS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


def read_parquet(path: Path, content: bytes, config: ActionConfig, now_ms: int) -> tuple[list[Row], bool]:
    """The file's rows, and whether they are ratings. Raises `FileError`."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise FileError(f"{path}: expected the package pyarrow for .parquet, which is missing; install it") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        check_size(path, file.metadata.num_rows * _ROW_BYTES)
        names = file.schema_arrow.names
        table = file.read(columns=used_of(names, config))  # the others may be of types that Python does not have
        columns = columns_named(table.column_names, config)
        cells = [_cells_of(column) for column in table.columns]
    except BadCell as error:
        raise FileError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, NotImplementedError, OverflowError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path}: expected a Parquet file, got {said}; fetch or write it again") from None
    if columns is None:
        wanted = "columns for user_id, item_id, rating or action, and timestamp"
        raise FileError(f"{path}: expected {wanted}, got {names}; rename them")
    table_rows = enumerate(zip(*cells, strict=True), 1)
    return read_rows(f"{path}: row ", table_rows, columns, config, now_ms), columns.is_ratings


def _cells_of(column: Any) -> list[Any]:
    """A column of Parquet as Python values; times as `Milliseconds`, since Python's own lack nanoseconds and have a
    limited range."""
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type):
        cells = cast("list[Any]", column.to_pylist())
        if not pa.types.is_floating(column.type) or column.type.bit_width not in _EXACT:
            return cells
        exact = _EXACT[column.type.bit_width]
        return [Rounded(cell) if cell is not None and abs(cell) > exact else cell for cell in cells]
    times, per = _PER_MS[column.type.unit]
    ticks = column.cast(pa.int64()).to_pylist()
    return [None if tick is None else Milliseconds((tick * times + per // 2) // per) for tick in ticks]
