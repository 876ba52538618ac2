"""Items by id, from a file or from columns that a layout has read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from fewrec_prompt.data.columns import Column, Table
from fewrec_prompt.data.tables import read_table
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Fields, Item

OnProblem = Literal["error", "count"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Items by id, in the order of the file; `empty_titles` of them had no title and are called `item <id>`."""

    items: Mapping[str, Item]
    empty_titles: int
    sha256: str  # of the file
    repeated_ids: int = 0  # rows that were left out, for their id stands above


def read_catalogue(path: Path) -> Catalogue:
    """The items in a file with the columns item_id and title; its other columns become fields.

    Raises DataError with the place of an id that stands twice. Titles may be empty, and may repeat.
    """
    table = read_table(path, [Column("item_id", "id"), Column("title", "text")], rest=True)
    fields = [fields_of(row) for row in table.rest]
    return catalogue(table, "item_id", table["title"], fields)


def catalogue(
    table: Table, id_column: str, titles: Iterable[str], fields: Iterable[Fields], on_problem: OnProblem = "error"
) -> Catalogue:
    """The rows of an items table as a catalogue: `titles` as they should be shown, in the order of the rows.

    With on_problem = "count" the first row of an id stays and others are counted; else they are a DataError.
    """
    ids: Sequence[str] = table[id_column]
    items: dict[str, Item] = {}
    empty = repeated = 0
    for row, (item_id, title, own) in enumerate(zip(ids, titles, fields, strict=True)):
        if item_id in items and on_problem == "count":
            repeated += 1
            continue
        if item_id in items:
            raise DataError(f"{table.place(row, id_column)}: the item id {item_id!r} stands twice; ids must be unique")
        empty += not title.strip()
        items[item_id] = Item(item_id, title if title.strip() else f"item {item_id}", own)
    if not items:
        raise DataError(f"{table.path}: holds no items")
    return Catalogue(items, empty, table.sha256, repeated)


def fields_of(row: Mapping[str, Any]) -> Fields:
    """Further columns as fields: text, numbers, true/false and dates; a list as text, joined by commas.

    What is missing is left out, as are an empty cell (in CSV it cannot be told from a missing one), columns of other
    kinds, and those that pandas writes for itself (`__index_level_0__`).
    """
    found = ((name, _field(value)) for name, value in row.items() if not name.startswith("__"))
    return tuple((name, value) for name, value in found if value is not None and value == value and value != "")


def _field(raw: Any) -> str | int | float | None:
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, str | int | float):
        return raw
    if isinstance(raw, date):  # datetime is one of them
        return raw.isoformat()
    if isinstance(raw, list) and all(isinstance(entry, str | int) for entry in raw):
        return ", ".join(map(str, raw))
    return None
