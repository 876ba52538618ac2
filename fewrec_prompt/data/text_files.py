"""CSV, TSV, JSONL and other files of lines, plain or gzipped, as rows that know their line.

UTF-8 (a byte order mark is accepted) unless a layout says otherwise: an encoding that is guessed is wrong in silence.
What the cells mean is decided in tables.py.
"""

from __future__ import annotations

import ast
import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from fewrec_prompt.data.cells import CellError, json_value, shown
from fewrec_prompt.errors import DataError

Row = tuple[int, Mapping[str, Any]]  # the line on which it begins, and its cells by column
MAX_CELL = 1 << 30  # characters. csv's own limit, 131,072, is shorter than a list of 20,000 ids


UTF_8 = "utf-8-sig"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a delimited file is written: what stands between cells, and whether cells may be quoted.

    `names` are the columns of a file that has no header. A delimiter of several characters goes without quotes.
    """

    delimiter: str
    quoted: bool = True
    names: tuple[str, ...] = ()
    encoding: str = UTF_8


DIALECTS: Mapping[str, Dialect] = {
    "csv": Dialect(","),
    "tsv": Dialect("\t"),
}


@contextmanager
def opened(path: Path, dialect: Dialect | None = None) -> Iterator[TextIO]:
    """The file's text, line ends untouched; without a dialect, lines of JSON. Raises DataError if it cannot be read."""
    encoding = dialect.encoding if dialect else UTF_8
    with _readable(path):
        try:
            with _open(path, encoding, newline="" if dialect else "\n") as lines:  # csv wants the ends as they are
                yield lines
        except UnicodeDecodeError:
            line = _first_undecodable_line(path)
            raise DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short gzip file ({error}); fetch or write it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def header(path: Path, dialect: Dialect) -> tuple[str, ...]:
    """The column names of a delimited file."""
    with opened(path, dialect) as lines:
        return delimited(lines, path, dialect)[0]


def delimited(lines: Iterable[str], path: Path, dialect: Dialect) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Column names and rows. A row has as many cells as there are columns, or is an error; blank lines are skipped."""
    records = _records(_reader(lines, dialect), path)
    if dialect.names:
        return dialect.names, _cells(records, list(dialect.names), path, "the layout")
    line, names = next(records, (1, []))
    if not names:
        raise DataError(f"{path}: empty; its first line should name the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}:{line}: column {twice[0]!r} stands twice in the header; rename one of them")
    return tuple(names), _cells(records, names, path)


def json_lines(lines: Iterable[str], path: Path, *, literals: bool = False) -> Iterator[Row]:
    """Rows of a file with one JSON object a line, or with `literals` one Python dict; blank lines are passed over."""
    parse = _literal if literals else json_value
    for line, source in enumerate(lines, 1):
        if not source.strip():
            continue
        try:
            row = parse(source)
        except CellError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line}: expected one JSON object a line, found {shown(row)}")
        yield line, row


def _open(path: Path, encoding: str, newline: str) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline=newline)
    return path.open(encoding=encoding, newline=newline)


def _literal(source: str) -> Any:
    """A dict as Python prints it: early Amazon and Steam files hold those in place of JSON. Nothing is executed."""
    try:
        return ast.literal_eval(source.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise CellError("neither JSON nor a Python dict") from None


class _Splitter:
    """What csv.reader is for delimiters of one character: lines cut at "::", with the count of lines read."""

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self._lines, self._delimiter, self.line_num = iter(lines), delimiter, 0

    def __next__(self) -> list[str]:
        text = next(self._lines).rstrip("\r\n")
        self.line_num += 1
        return text.split(self._delimiter) if text else []


def _reader(lines: Iterable[str], dialect: Dialect) -> Any:
    if len(dialect.delimiter) > 1:
        return _Splitter(lines, dialect.delimiter)
    csv.field_size_limit(MAX_CELL)  # process-wide, and only ever raised
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=dialect.delimiter, quoting=quoting, strict=True)


def _records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line on which it begins: a quoted cell may hold newlines."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote opened here is never closed" if "end of data" in str(error) else str(error)
            raise DataError(f"{path}:{line}: not valid CSV: {reason}") from None
        if record:
            yield line, record


def _cells(
    records: Iterable[tuple[int, list[str]]], names: list[str], path: Path, named_by: str = "the header"
) -> Iterator[Row]:
    for line, record in records:
        if len(record) != len(names):
            raise DataError(
                f"{path}:{line}: {len(record)} cells, but {named_by} names {len(names)} columns; "
                "quote cells that hold the delimiter"
            )
        yield line, dict(zip(names, record, strict=True))


def _first_undecodable_line(path: Path) -> int:
    """Line by line over the bytes: no part of a UTF-8 character looks like a newline."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for line, source in enumerate(lines, 1):
            try:
                source.decode()
            except UnicodeDecodeError:
                return line
    raise AssertionError("the file changed while it was read")
