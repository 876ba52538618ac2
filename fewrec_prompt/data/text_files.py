"""CSV, TSV, JSONL and tab-separated atomic files, plain or gzipped, as rows that know their line.

UTF-8 and nothing else (a byte order mark is accepted): an encoding that is guessed is wrong in silence. What the cells
mean is decided in tables.py.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a delimited file is written: what stands between cells, and whether cells may be quoted."""

    delimiter: str
    quoted: bool = True


DIALECTS: Mapping[str, Dialect] = {
    "csv": Dialect(","),
    "tsv": Dialect("\t"),
    "atomic": Dialect("\t", quoted=False),  # RecBole's: a quote is a character like any other
}


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file's text, line ends untouched. Raises DataError for what cannot be read or is not UTF-8."""
    try:
        with _open(path) as lines:
            yield lines
    except UnicodeDecodeError:
        raise DataError(f"{path}:{_first_undecodable_line(path)}: not UTF-8 text; save the file as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short gzip file ({error}); fetch or write it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def header(path: Path, form: str) -> tuple[str, ...]:
    """The column names of a delimited file."""
    with opened(path) as lines:
        return delimited(lines, path, DIALECTS[form])[0]


def delimited(lines: Iterable[str], path: Path, dialect: Dialect) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Column names and rows. A row has as many cells as the header, or is an error; blank lines are passed over."""
    csv.field_size_limit(MAX_CELL)  # process-wide, and only ever raised
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    records = _records(csv.reader(lines, delimiter=dialect.delimiter, quoting=quoting, strict=True), path)
    line, names = next(records, (1, []))
    if not names:
        raise DataError(f"{path}: empty; its first line should name the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}:{line}: column {twice[0]!r} stands twice in the header; rename one of them")
    return tuple(names), _cells(records, names, path)


def json_lines(lines: Iterable[str], path: Path) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; blank lines are passed over."""
    for line, source in enumerate(lines, 1):
        if not source.strip():
            continue
        try:
            row = json_value(source)
        except CellError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line}: expected one JSON object a line, found {shown(row)}")
        yield line, row


def _open(path: Path) -> TextIO:
    # newline: JSON lines end at \n alone; csv wants the ends as they are, for newlines inside of quotes.
    newline = "\n" if path.name.removesuffix(".gz").endswith(".jsonl") else ""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


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


def _cells(records: Iterable[tuple[int, list[str]]], names: list[str], path: Path) -> Iterator[Row]:
    for line, record in records:
        if len(record) != len(names):
            raise DataError(
                f"{path}:{line}: {len(record)} cells, but the header names {len(names)} columns; "
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
