"""A file as columns of declared kinds: parquet, CSV, TSV, JSONL, and the text ones gzipped.

Every error names the file, the line (text) or row (parquet), and the column. What the columns stand for is left to
the callers.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data import cells, text_files
from fewrec_prompt.data.cells import CellError
from fewrec_prompt.data.columns import Coded, Codes, Column, Form, Table, place_of
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.errors import DataError, did_you_mean

SUFFIXES: Mapping[str, Form] = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}


QUICK_BYTES = 8 << 20  # from here on it pays to load the library that reads by columns


def read_table(
    path: Path,
    columns: Sequence[Column],
    *,
    rest: bool | Collection[str] = False,
    form: Form | Dialect | None = None,
) -> Table:
    """The file's `columns`; with `rest`, the raw cells of the others too, or of those named. Form None: by suffix.

    Raises DataError with the place of a missing column, a value of the wrong kind, an empty id or a broken list.
    """
    form = form or form_of(path)
    sha256 = sha256_of(path)
    if form == "parquet":
        return _read_parquet(path, sha256, columns, rest)
    if rest is False and (table := _quickly(path, sha256, columns, form)):
        return table
    return _read_text(path, sha256, columns, rest, form)


def names_of(path: Path, form: Form | Dialect | None = None) -> tuple[str, ...]:
    """The columns of a file, of JSON lines those of the first row. Raises DataError if it cannot be read."""
    form = form or form_of(path)
    if form == "parquet":
        from fewrec_prompt.data import parquet_files

        with parquet_files.opened(path) as file:
            return tuple(file.schema_arrow.names)
    if dialect := _dialect(form):
        return text_files.header(path, dialect)
    with text_files.opened(path) as source:
        return tuple(next(text_files.json_lines(source, path, literals=form == "literals"), (0, {}))[1])


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


def form_of(path: Path) -> Form:
    """The form of a file by its suffix. Raises DataError for a kind that is not read here."""
    name = path.name.removesuffix(".gz") if path.suffix == ".gz" else path.name
    form = SUFFIXES.get(Path(name).suffix)
    if form is None or (form == "parquet" and name != path.name):
        raise DataError(f"{path}: not a kind of file that is read here; give {', '.join(SUFFIXES)}, text also as .gz")
    return form


def _dialect(form: Form | Dialect) -> Dialect | None:
    """How cells are parted; None for files of objects."""
    return form if isinstance(form, Dialect) else text_files.DIALECTS.get(form)


def _is_quick(column: Column) -> bool:
    return column.coded or column.kind in ("number", "time")


def _quickly(path: Path, sha256: str, columns: Sequence[Column], form: Form | Dialect) -> Table | None:
    """A large file of codes and numbers, read in columns; None if only the reader by lines can be sure of it."""
    if path.stat().st_size < QUICK_BYTES or not all(map(_is_quick, columns)):
        return None
    from fewrec_prompt.data import quick

    return quick.read(path, sha256, columns, form, _dialect(form))


def _read_text(
    path: Path, sha256: str, columns: Sequence[Column], rest: bool | Collection[str], form: Form | Dialect
) -> Table:
    collectors = {column.name: _collector(column) for column in columns}
    names: dict[str, None] = {}  # an ordered set
    lines = array("Q")
    others: list[Mapping[str, Any]] = []
    parse = cells.PARSE_WRITTEN if _dialect(form) else cells.PARSE
    with text_files.opened(path, _dialect(form)) as source:
        for line, row in _rows(source, path, form, columns, names):
            _collect(collectors, columns, row, parse, f"{path}:{line}")
            lines.append(line)
            if rest is not False:
                others.append({name: cell for name, cell in row.items() if _is_other(name, collectors, rest)})
    _check_names(str(path), [column for column in columns if not column.required], names)
    done = {name: collector.done() for name, collector in collectors.items() if name in names or not lines}
    return Table(path, sha256, tuple(names), done, others, len(lines), lines)


def _is_other(name: str, asked: Collection[str], rest: bool | Collection[str]) -> bool:
    return name not in asked and (isinstance(rest, bool) or name in rest)


def _rows(
    source: TextIO, path: Path, form: Form | Dialect, columns: Sequence[Column], names: dict[str, None]
) -> Iterator[text_files.Row]:
    """Rows in which no required column is missing; `names` gathers the columns as they are seen."""
    if dialect := _dialect(form):
        header, rows = text_files.delimited(source, path, dialect)
        _check_names(f"{path}:1", columns, header)
        names |= dict.fromkeys(header)
        yield from rows
        return
    required = [column for column in columns if column.required]
    for line, row in text_files.json_lines(source, path, literals=form == "literals"):
        _check_names(f"{path}:{line}", required, row)
        names |= dict.fromkeys(row)
        yield line, row


def _collect(
    collectors: Mapping[str, _Collector],
    columns: Sequence[Column],
    row: Mapping[str, Any],
    parse: Mapping[cells.Kind, cells.Parse],
    where: str,
) -> None:
    for column in columns:
        try:
            collectors[column.name].add(parse[column.kind](row.get(column.name)))
        except CellError as error:
            raise DataError(f"{where}, column {column.name!r}: {error}") from None


def _read_parquet(path: Path, sha256: str, columns: Sequence[Column], rest: bool | Collection[str]) -> Table:
    from fewrec_prompt.data import parquet_files

    with parquet_files.opened(path) as file:
        names = tuple(file.schema_arrow.names)
        _check_names(str(path), columns, names)
        wanted = [column for column in columns if column.name in names]
        table = file.read(columns=None if rest is not False else [column.name for column in wanted])
        done = {column.name: _parquet_column(path, table.column(column.name), column) for column in wanted}
        others = [name for name in names if _is_other(name, done, rest)] if rest is not False else []
        return Table(
            path, sha256, names, done, [] if rest is False else table.select(others).to_pylist(), table.num_rows, None
        )


def _parquet_column(path: Path, column: Any, wanted: Column) -> Any:
    from fewrec_prompt.data import parquet_files

    is_time = wanted.kind == "time" and parquet_files.is_moment(column)
    if is_time or (wanted.kind in ("number", "time") and parquet_files.is_number(column)):
        numbers = parquet_files.floats(column)
        if np.isinf(numbers).any():
            row = int(np.argmax(np.isinf(numbers)))
            raise DataError(f"{place_of(path, row)}, column {wanted.name!r}: expected a finite number")
        return numbers
    if wanted.coded and parquet_files.is_id(column):
        return _parquet_codes(path, column, wanted)
    collector, parse = _collector(wanted), cells.PARSE[wanted.kind]
    for row, value in enumerate(parquet_files.values(column)):
        try:
            collector.add(parse(value))
        except CellError as error:
            raise DataError(f"{place_of(path, row)}, column {wanted.name!r}: {error}") from None
    return collector.done()


def _parquet_codes(path: Path, column: Any, wanted: Column) -> Coded:
    """Checks each distinct id once, and finds its row only if something is wrong with it."""
    from fewrec_prompt.data import parquet_files

    codes, values, gap = parquet_files.coded(column)
    if gap is not None:
        raise DataError(f"{place_of(path, gap)}, column {wanted.name!r}: the id is missing")
    for code, value in enumerate(values):
        try:
            cells.item_or_user_id(value)
        except CellError as error:
            row = int(np.argmax(codes == code))
            raise DataError(f"{place_of(path, row)}, column {wanted.name!r}: {error}") from None
    return Coded(codes, tuple(values))


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
        return Codes()
    return _Numbers() if column.kind in ("number", "time") else _Values()


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
