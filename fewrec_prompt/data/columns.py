"""What a file becomes when it is read: columns of declared kinds, and the place of every row for messages."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data import cells

Form = Literal["parquet", "csv", "tsv", "jsonl", "literals"]


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
        return f"{place_of(self.path, row, self.lines)}, column {column!r}"


class Codes:
    """A column of ids as it grows; `done` gives it with every distinct id once."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._index: dict[str, int] = {}

    def add(self, value: str) -> None:
        self._codes.append(self._index.setdefault(value, len(self._index)))

    def done(self) -> Coded:
        return Coded(np.array(self._codes, dtype=np.int32), tuple(self._index))


def place_of(path: Path, row: int, lines: Sequence[int] | None = None) -> str:
    """Where to look for a row: file and line, or file and row (from 1) where there are no lines."""
    return f"{path}, row {row + 1}" if lines is None else f"{path}:{lines[row]}"
