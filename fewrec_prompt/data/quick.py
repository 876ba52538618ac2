"""Large text files as codes and numbers, read in columns: no Python object for each of ten million interactions.

CSV and the like go through Hugging Face datasets, JSON lines through pyarrow (datasets infers types there: ids that
look like dates or numbers would not stay as they were written). Whatever is not plainly right is left to the reader by
lines, which is slow and exact, and says where a file is broken.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from fewrec_prompt.data import text_files
from fewrec_prompt.data.columns import Coded, Column, Form, Table
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.errors import DataError

ROWS = 1 << 19  # in a batch
BYTES = 1 << 23
_DOUBTFUL = (b'"', b"\0", b"\r")  # cells that may span lines; text that a parser in C may end early; ends within lines


class _DoubtError(Exception):
    """This file needs the reader by lines."""


def read(
    path: Path, sha256: str, columns: Sequence[Column], form: Form | Dialect, dialect: Dialect | None
) -> Table | None:
    """The columns, each of ids (coded), numbers or times, as `read_table` gives them; None where that is in doubt."""
    try:
        if dialect is None:
            return _read_objects(path, sha256, columns) if form == "jsonl" else None
        return _read_delimited(path, sha256, columns, dialect)
    except (_DoubtError, DataError, pa.ArrowException, ValueError, OSError, EOFError, zlib.error):
        return None  # the reader by lines will either manage or say what is wrong, and where


def _read_delimited(path: Path, sha256: str, columns: Sequence[Column], dialect: Dialect) -> Table:
    names = text_files.header(path, dialect)
    if len(dialect.delimiter) > 1 or not _is_plain(path, dialect.delimiter.encode(), len(names)):
        raise _DoubtError
    wanted = _present(columns, names)
    gathered = [_Gathered(column) for column in wanted]
    for batch in _batches(path, names, wanted, dialect):
        for one in gathered:
            one.add(batch[one.column.name])
    done = {one.column.name: one.done() for one in gathered}
    n_rows = len(gathered[0])
    first = 1 if dialect.names else 2
    return Table(path, sha256, names, done, [], n_rows, range(first, n_rows + first))


def _present(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    if any(column.required and column.name not in names for column in columns):
        raise _DoubtError
    return [column for column in columns if column.name in names]


def _batches(path: Path, names: Sequence[str], wanted: Sequence[Column], dialect: Dialect) -> Iterator[Any]:
    """Arrow tables of text and numbers. Nothing is copied into the cache of datasets."""
    from datasets import Features, Value, load_dataset

    kinds = {column.name: Value("string" if column.coded else "float64") for column in wanted}
    used = [name for name in names if name in kinds]  # in the order of the file, as pandas gives them
    stream = load_dataset(
        "csv",
        data_files=str(path),
        split="train",
        streaming=True,
        features=Features({name: kinds[name] for name in used}),
        usecols=used,
        names=list(names) if dialect.names else None,
        header=None if dialect.names else 0,
        sep=dialect.delimiter,
        quoting=3,  # there is no quote in the file
        encoding=dialect.encoding,
        keep_default_na=False,  # "None" and "NA" are text; only a number may be missing, where nothing is written
        na_values={column.name: [""] for column in wanted if not column.coded},
        skip_blank_lines=False,
        chunksize=ROWS,
    )
    yield from stream.with_format("arrow").iter(batch_size=ROWS)


def _read_objects(path: Path, sha256: str, columns: Sequence[Column]) -> Table:
    with _text_of(path) as source:
        kinds = [(column.name, pa.string() if column.coded else pa.float64()) for column in columns]
        options = pj.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")
        gathered = [_Gathered(column) for column in columns]
        for batch in pj.open_json(source, pj.ReadOptions(block_size=BYTES), options):
            for one in gathered:
                one.add(batch[one.column.name])
    if any(one.column.required and one.is_empty() for one in gathered):
        raise _DoubtError
    kept = {one.column.name: one.done() for one in gathered if not one.is_empty()}
    n_rows = len(gathered[0])
    return Table(path, sha256, tuple(kept), kept, [], n_rows, range(1, n_rows + 1))


@contextmanager
def _text_of(path: Path) -> Iterator[Any]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as source:
        yield source


def _is_plain(path: Path, delimiter: bytes, n_columns: int) -> bool:
    """Whether every line has as many cells as there are columns, and no cell holds a quote or a line end.

    pandas, on which datasets builds, fills up short rows, cuts long ones and takes surplus cells for an index, all in
    silence.
    """
    with _text_of(path) as source:
        while block := source.read(BYTES) + source.readline():
            block = block.replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n"
            if any(mark in block for mark in _DOUBTFUL) or not _is_even(block, delimiter, n_columns):
                return False
    return True


def _is_even(block: bytes, delimiter: bytes, n_columns: int) -> bool:
    characters = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    before = np.searchsorted(np.flatnonzero(characters == ord(delimiter)), ends)
    return bool((np.diff(before, prepend=0) == n_columns - 1).all())


class _Gathered:
    """A column as it grows, batch by batch: ids as codes of their distinct values, in the order of the file."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self._parts: list[npt.NDArray[Any]] = []
        self._index: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def add(self, values: Any) -> None:
        self._parts.append(self._codes(values) if self.column.coded else _numbers(values))

    def is_empty(self) -> bool:
        """Whether no row has a number here."""
        return not self.column.coded and all(np.isnan(part).all() for part in self._parts)

    def done(self) -> Any:
        if self.column.coded:
            return Coded(np.concatenate([*self._parts, np.empty(0, np.int32)]), tuple(self._index))
        return np.concatenate([*self._parts, np.empty(0)])

    def _codes(self, values: Any) -> npt.NDArray[np.int32]:
        whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if whole.null_count:
            raise _DoubtError
        encoded = whole.dictionary_encode()
        known = [self._code(value) for value in encoded.dictionary.to_pylist()]
        codes: npt.NDArray[np.int32] = np.array(known, dtype=np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        return codes

    def _code(self, value: str) -> int:
        if not value.strip():
            raise _DoubtError
        return self._index.setdefault(value, len(self._index))


def _numbers(values: Any) -> npt.NDArray[np.float64]:
    """Numbers, NaN for empty cells. Whatever is no plain number, such as a date, is left to the other reader."""
    if pa.types.is_string(values.type):
        values = pc.if_else(pc.equal(values, ""), None, values)
    numbers: npt.NDArray[np.float64] = pc.fill_null(pc.cast(values, pa.float64()), np.nan).to_numpy(
        zero_copy_only=False
    )
    written = len(values) - values.null_count
    if np.isfinite(numbers).sum() != written:  # "nan" and "inf" are words that parse
        raise _DoubtError
    return numbers
