"""What a layout is: files, how they are written, which column has which role. And the reader of all layouts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewrec_prompt.data.catalogue import Catalogue, OnProblem, catalogue, fields_of
from fewrec_prompt.data.columns import Column, Form, Table
from fewrec_prompt.data.dataset import Dataset, dataset
from fewrec_prompt.data.tables import names_of, read_table, sources
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.errors import DataError, did_you_mean
from fewrec_prompt.types import Fields

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a layout: the names it may have (patterns), what its columns are called, how it is written.

    A role (user, item, rating, time, title) may have several names; the first that the file has is taken. `keep` are
    the further columns that become fields; None: all of them.
    """

    files: tuple[str, ...]
    roles: Mapping[str, tuple[str, ...]]
    form: Form | Dialect | None = None  # None: by suffix
    keep: Collection[str] | None = None

    def find(self, folder: Path) -> list[Path]:
        """Files that this part may be, those of the first pattern that any file has."""
        for pattern in self.files:
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return found
        return []

    def columns(self, path: Path, kinds: Mapping[str, Column]) -> dict[str, Column]:
        """The columns to read, by role; optional ones under any of their names, or not at all."""
        names = names_of(path, self.form)
        chosen = {}
        for role, column in kinds.items():
            known = self.roles.get(role, ())
            name = next((name for name in known if name in names), None)
            if name is None and column.required:
                wanted = " or ".join(map(repr, known)) or f"for the {role}"
                raise DataError(f"{path}: no column {wanted}; {did_you_mean(known[0] if known else role, names)}")
            if name is not None:
                chosen[role] = replace(column, name=name)
        return chosen


INTERACTION = {
    "user": Column("user", "id", coded=True),
    "item": Column("item", "id", coded=True),
    "rating": Column("rating", "number", required=False),
    "time": Column("time", "time", required=False),
}
ITEM = {"item": Column("item", "id"), "title": Column("title", "text")}
PERSON = {"user": Column("user", "id")}


def as_it_is(row: Row, title: str) -> str:
    """The title as the file has it."""
    return title


def no_change(row: Row) -> Row:
    """The further columns as the file has them."""
    return row


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set as files. `titled` makes the title that people see, `tidied` the fields, both of a catalogue row."""

    interactions: Part
    items: Part
    users: Part | None = None
    titled: Callable[[Row, str], str] = as_it_is
    tidied: Callable[[Row], Row] = no_change

    def fits(self, folder: Path) -> bool:
        """Whether the folder has files that are called so."""
        return bool(self._interaction_files(folder) and self.items.find(folder))

    def __call__(self, folder: Path, on_problem: OnProblem = "error") -> Dataset:
        """The data set in this folder. Raises DataError for missing files and columns, and broken rows."""
        inter = _only(folder, self._interaction_files(folder), self.interactions)
        items = _only(folder, self.items.find(folder), self.items)
        people = self.users.find(folder) if self.users else []
        return self.read(inter, items, _only(folder, people, self.users) if people and self.users else None, on_problem)

    def read(self, inter: Path, items: Path, people: Path | None, on_problem: OnProblem = "error") -> Dataset:
        """The data set of these files."""
        shelf, item_table = self.catalogue(items, on_problem)
        columns = self.interactions.columns(inter, INTERACTION)
        table = read_table(inter, list(columns.values()), form=self.interactions.form)
        names = {role: columns[role].name if role in columns else role for role in INTERACTION}
        data = dataset(inter.parent.name, shelf, table, **names, on_problem=on_problem)
        known, user_tables = self._people(people)
        return replace(data, users=known, sources=sources(table, item_table, *user_tables))

    def _interaction_files(self, folder: Path) -> list[Path]:
        """A pattern as wide as `*.json` also fits the catalogue, which is not meant."""
        shelf = self.items.find(folder)
        return [path for path in self.interactions.find(folder) if path not in shelf]

    def catalogue(self, path: Path, on_problem: OnProblem) -> tuple[Catalogue, Table]:
        """The items in a file, and its table."""
        columns = self.items.columns(path, ITEM)
        rest = True if self.items.keep is None else self.items.keep
        table = read_table(path, list(columns.values()), rest=rest, form=self.items.form)
        rows = [dict(row) for row in table.rest]
        titles = [self.titled(row, title) for row, title in zip(rows, table[columns["title"].name], strict=True)]
        fields = [fields_of(self.tidied(row)) for row in rows]
        return catalogue(table, columns["item"].name, titles, fields, on_problem), table

    def _people(self, path: Path | None) -> tuple[dict[str, Fields], list[Table]]:
        if path is None or self.users is None:
            return {}, []
        columns = self.users.columns(path, PERSON)
        table = read_table(path, list(columns.values()), rest=True, form=self.users.form)
        return dict(zip(table[columns["user"].name], map(fields_of, table.rest), strict=True)), [table]


@dataclass(frozen=True, slots=True)
class Custom:
    """A layout whose rows are no plain tables: patterns of the files that must be there, and a reader."""

    files: tuple[str, ...]
    read: Callable[[Path, OnProblem], Dataset]

    def fits(self, folder: Path) -> bool:
        """Whether the folder has files that are called so."""
        return all(any(folder.glob(pattern)) for pattern in self.files)

    def __call__(self, folder: Path, on_problem: OnProblem = "error") -> Dataset:
        """The data set in this folder."""
        return self.read(folder, on_problem)


def _only(folder: Path, found: list[Path], part: Part) -> Path:
    if not found:
        raise DataError(f"{folder}: no file {' or '.join(part.files)} here")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: {len(found)} files could be meant ({names}); give a folder with one of them")
    return found[0]
