"""A file as columns of declared kinds: parquet, CSV, TSV, JSONL, and the text ones gzipped.

Every error names the file, the line (text) or row (parquet), and the column. What the columns stand for is left to
the callers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data import cells, text_files
from fewrec_prompt.data.cells import CellError
from fewrec_prompt.errors import DataError, did_you_mean

Form = Literal["parquet", "csv", "tsv", "jsonl", "atomic"]
SUFFIXES: Mapping[str, Form] = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a caller reads. An optional one may be absent from the file, and then from the table.

    `coded` asks for a column of ids as Coded: for files whose ids repeat many times.
    """

    name: str
    kind: cells.Kind
    required: bool = True
    coded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A column of ids in which every distinct id is kept once: row r holds values[codes[r]]."""

    codes: npt.NDArray[np.int32]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The columns that were asked for, and the place of every row.

    ids and texts are lists of str (a missing text is ""), numbers a float64 array with NaN where there is none, lists
    are tuples. `rest` has the raw cells of all other columns, a mapping a row, if they were asked for.
    """

    path: Path
    sha256: str
    names: tuple[str, ...]  # of all columns in the file
    columns: Mapping[str, Any]
    rest: Sequence[Mapping[str, Any]]
    n_rows: int
    lines: Sequence[int] | None  # where each row begins; None for parquet, which has no lines

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def get(self, name: str) -> Any:
        """The column, or None if it is an optional one that the file does not have."""
        return self.columns.get(name)

    def place(self, row: int, column: str) -> str:
        """Where to look: `file:line, column 'x'`, or `file, row n, column 'x'` (from 1) in parquet."""
        return f"{_place(self.path, row, self.lines)}, column {column!r}"


def read_table(path: Path, columns: Sequence[Column], *, rest: bool = False, form: Form | None = None) -> Table:
    """The file's `columns`; with `rest`, the raw cells of the others too. The form follows from the suffix.

    Raises DataError with the place of a missing column, a value of the wrong kind, an empty id or a broken list.
    """
    form = form or _form_of(path)
    sha256 = sha256_of(path)
    if form == "parquet":
        return _read_parquet(path, sha256, columns, rest)
    return _read_text(path, sha256, columns, rest, form)


def sha256_of(path: Path) -> str:
    """Checksum of the file's bytes. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as data:
            return file_digest(data, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def sources(*tables: Table) -> dict[str, str]:
    """Checksums of the files, by file name; by path where two files have the same name."""
    names = [table.path.name for table in tables]
    return {table.path.name if names.count(table.path.name) == 1 else str(table.path): table.sha256 for table in tables}


def _form_of(path: Path) -> Form:
    name = path.name.removesuffix(".gz") if path.suffix == ".gz" else path.name
    form = SUFFIXES.get(Path(name).suffix)
    if form is None or (form == "parquet" and name != path.name):
        raise DataError(f"{path}: not a kind of file that is read here; give {', '.join(SUFFIXES)}, text also as .gz")
    return form


def _read_text(path: Path, sha256: str, columns: Sequence[Column], rest: bool, form: Form) -> Table:
    collectors = {column.name: _collector(column) for column in columns}
    names: dict[str, None] = {}  # an ordered set
    lines = array("Q")
    others: list[Mapping[str, Any]] = []
    with text_files.opened(path) as source:
        for line, row in _rows(source, path, form, columns, names):
            _collect(collectors, columns, row, form, f"{path}:{line}")
            lines.append(line)
            if rest:
                others.append({name: cell for name, cell in row.items() if name not in collectors})
    _check_names(str(path), [column for column in columns if not column.required], names)
    done = {name: collector.done() for name, collector in collectors.items() if name in names or not lines}
    return Table(path, sha256, tuple(names), done, others, len(lines), lines)


def _rows(
    source: TextIO, path: Path, form: Form, columns: Sequence[Column], names: dict[str, None]
) -> Iterator[text_files.Row]:
    """Rows in which no required column is missing; `names` gathers the columns as they are seen."""
    if form != "jsonl":
        header, rows = text_files.delimited(source, path, text_files.DIALECTS[form])
        _check_names(f"{path}:1", columns, header)
        names |= dict.fromkeys(header)
        yield from rows
        return
    required = [column for column in columns if column.required]
    for line, row in text_files.json_lines(source, path):
        _check_names(f"{path}:{line}", required, row)
        names |= dict.fromkeys(row)
        yield line, row


def _collect(
    collectors: Mapping[str, _Collector],
    columns: Sequence[Column],
    row: Mapping[str, Any],
    form: Form,
    where: str,
) -> None:
    parse = cells.PARSE if form == "jsonl" else cells.PARSE_WRITTEN
    for column in columns:
        try:
            collectors[column.name].add(parse[column.kind](row.get(column.name)))
        except CellError as error:
            raise DataError(f"{where}, column {column.name!r}: {error}") from None


def _read_parquet(path: Path, sha256: str, columns: Sequence[Column], rest: bool) -> Table:
    from fewrec_prompt.data import parquet_files

    with parquet_files.opened(path) as file:
        names = tuple(file.schema_arrow.names)
        _check_names(str(path), columns, names)
        wanted = [column for column in columns if column.name in names]
        table = file.read(columns=None if rest else [column.name for column in wanted])
        done = {column.name: _parquet_column(path, table.column(column.name), column) for column in wanted}
        others = [name for name in names if name not in done] if rest else []
        return Table(path, sha256, names, done, table.select(others).to_pylist() if rest else [], table.num_rows, None)


def _parquet_column(path: Path, column: Any, wanted: Column) -> Any:
    from fewrec_prompt.data import parquet_files

    if wanted.kind == "number" and parquet_files.is_number(column):
        numbers = parquet_files.floats(column)
        if np.isinf(numbers).any():
            row = int(np.argmax(np.isinf(numbers)))
            raise DataError(f"{_place(path, row)}, column {wanted.name!r}: expected a finite number")
        return numbers
    if wanted.coded and parquet_files.is_id(column):
        return _parquet_codes(path, column, wanted)
    collector, parse = _collector(wanted), cells.PARSE[wanted.kind]
    for row, value in enumerate(parquet_files.values(column)):
        try:
            collector.add(parse(value))
        except CellError as error:
            raise DataError(f"{_place(path, row)}, column {wanted.name!r}: {error}") from None
    return collector.done()


def _parquet_codes(path: Path, column: Any, wanted: Column) -> Coded:
    """Checks each distinct id once, and finds its row only if something is wrong with it."""
    from fewrec_prompt.data import parquet_files

    codes, values, gap = parquet_files.coded(column)
    if gap is not None:
        raise DataError(f"{_place(path, gap)}, column {wanted.name!r}: the id is missing")
    for code, value in enumerate(values):
        try:
            cells.item_or_user_id(value)
        except CellError as error:
            row = int(np.argmax(codes == code))
            raise DataError(f"{_place(path, row)}, column {wanted.name!r}: {error}") from None
    return Coded(codes, tuple(values))


def _place(path: Path, row: int, lines: Sequence[int] | None = None) -> str:
    return f"{path}, row {row + 1}" if lines is None else f"{path}:{lines[row]}"


def _check_names(where: str, columns: Sequence[Column], found: Iterable[str]) -> None:
    """Every required column is there, and no optional one under another spelling ("targets")."""
    names = tuple(found)
    for column in columns:
        if column.name in names:
            continue
        if column.required:
            needed = ", ".join(column.name for column in columns if column.required)
            raise DataError(
                f"{where}: missing column {column.name!r} (needed: {needed}); {did_you_mean(column.name, names)}"
            )
        twins = [name for name in names if _stem(name) == _stem(column.name)]
        if twins and not any(other.name in twins for other in columns):
            raise DataError(f"{where}: column {twins[0]!r} would not be read; rename it to {column.name!r}")


def _stem(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())).rstrip("s")


class _Collector(Protocol):
    def add(self, value: Any) -> None: ...
    def done(self) -> Any: ...


def _collector(column: Column) -> _Collector:
    if column.coded:
        return _Codes()
    return _Numbers() if column.kind == "number" else _Values()


class _Values:
    def __init__(self) -> None:
        self._values: list[Any] = []
        self.add = self._values.append

    def done(self) -> list[Any]:
        return self._values


class _Numbers:
    def __init__(self) -> None:
        self._values = array("d")
        self.add = self._values.append

    def done(self) -> npt.NDArray[np.float64]:
        return np.array(self._values, dtype=np.float64)


class _Codes:
    def __init__(self) -> None:
        self._codes = array("i")
        self._index: dict[str, int] = {}

    def add(self, value: str) -> None:
        self._codes.append(self._index.setdefault(value, len(self._index)))

    def done(self) -> Coded:
        return Coded(np.array(self._codes, dtype=np.int32), tuple(self._index))
