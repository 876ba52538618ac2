"""Parquet files as columns, without a Python object for each of ten million ids.

Page checksums are verified where the writer left any. What the cells mean is decided in tables.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fewrec_prompt.errors import DataError
from fewrec_prompt.files import replaced

NOTE = b"fewrec"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as a pyarrow ParquetFile. Raises DataError if it cannot be read, also while it is being read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}: column {twice[0]!r} stands twice; rename one of them")
            yield file
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds text that is not UTF-8; write it again from text") from None
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["unknown reason"])[0]
        raise DataError(f"{path}: cannot be read as parquet ({reason})") from None


def values(column: Any) -> Iterator[Any]:
    """The column's values as Python objects, a chunk at a time."""
    for chunk in column.chunks:
        yield from chunk.to_pylist()


def is_id(column: Any) -> bool:
    """Whether the column holds text or whole numbers, dictionary-encoded or not."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_integer(kind))


def coded(column: Any) -> tuple[npt.NDArray[np.int32], list[str], int | None]:
    """Codes of an id column, the distinct ids they stand for, and the first row without an id, if there is one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    gap = int(np.argmax(column.is_null().to_numpy())) if column.null_count else None
    text = column.cast(pa.large_string())  # not string: its offsets end at 2 GiB
    whole = pa.concat_arrays(text.chunks) if text.num_chunks else pa.array([], pa.large_string())
    encoded = whole.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, encoded.dictionary.to_pylist(), gap


def is_number(column: Any) -> bool:
    """Whether the column holds whole or floating point numbers."""
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def is_moment(column: Any) -> bool:
    """Whether the column holds points in time."""
    return bool(pa.types.is_timestamp(column.type))


def floats(column: Any) -> Any:
    """A column of numbers as float64, of times as seconds since 1970, NaN where there is none."""
    if is_moment(column):
        return floats(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())) / 1e6
    return column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()


def note(path: Path) -> dict[str, Any]:
    """What the writer noted in the file, {} if nothing. Raises DataError if the file cannot be read."""
    with opened(path) as file:
        return dict(json.loads((file.schema_arrow.metadata or {}).get(NOTE, b"{}")))


def write(path: Path, columns: Mapping[str, Sequence[Any]], note: Mapping[str, Any] | None = None) -> None:
    """Write a parquet file with page checksums, under a temporary name that becomes `path` when all is on the disk.

    Columns are text, or lists of text or numbers; a `note` of plain data goes with them.
    Raises StorageError, and leaves nothing behind, if it cannot.
    """
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if note is not None:
        table = table.replace_schema_metadata({NOTE: json.dumps(note, sort_keys=True)})
    with replaced(path) as part, part.open("wb") as file:
        pq.write_table(table, file, write_page_checksum=True)
