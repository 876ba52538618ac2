"""RecBole's atomic files: NAME.inter, NAME.item and perhaps NAME.user, tab-separated, with typed headers.

A header cell is `name:type`, of type token, token_seq, float or float_seq. Cells are never quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fewrec_prompt.data import titles
from fewrec_prompt.data.catalogue import Catalogue, OnProblem, catalogue, fields_of
from fewrec_prompt.data.columns import Column, Table
from fewrec_prompt.data.dataset import Dataset, dataset
from fewrec_prompt.data.layouts.parts import Custom
from fewrec_prompt.data.tables import read_table, sources
from fewrec_prompt.data.text_files import Dialect, header
from fewrec_prompt.errors import DataError, did_you_mean
from fewrec_prompt.types import Fields

TITLES = ("movie_title", "title", "book_title", "name")  # the first of these that a catalogue has
ATOMIC = Dialect("\t", quoted=False)  # a quote is a character like any other
_UNKNOWN = "unkonwn"  # RecBole's own spelling, for the one film of MovieLens-100K of which nothing is known


def read(folder: Path, on_problem: OnProblem = "error") -> Dataset:
    """The data set in this folder. Raises DataError for missing files, untyped headers and broken rows."""
    inter = _interactions_file(folder)
    shelf, item_table = _items(inter.with_suffix(".item"))
    table, name = _table(inter, ["user_id", "item_id"], ["rating", "timestamp"], coded=True)
    data = dataset(
        inter.stem,
        shelf,
        table,
        user=name["user_id"],
        item=name["item_id"],
        rating=name.get("rating", "rating"),
        time=name.get("timestamp", "timestamp"),
        on_problem=on_problem,
    )
    people, user_tables = _users(inter.with_suffix(".user"))
    return replace(data, users=people, sources=sources(table, item_table, *user_tables))


def _interactions_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.inter"))
    if not folder.is_dir() or not found:
        raise DataError(f"{folder}: no *.inter file here; the layout 'recbole' reads NAME.inter and NAME.item")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: {len(found)} files of interactions ({names}); give a folder with one")
    return found[0]


def _table(
    path: Path, ids: Sequence[str], numbers: Sequence[str], *, coded: bool = False
) -> tuple[Table, dict[str, str]]:
    """The file, and the full names (`user_id:token`) of its columns by plain name. Other columns are in `rest`."""
    names = _typed_names(path)
    for needed in ids:
        if needed not in names:
            raise DataError(f"{path}:1: missing column '{needed}:token'; {did_you_mean(needed, names)}")
    columns = [Column(names[plain], "id", coded=coded) for plain in ids]
    columns += [Column(names[plain], "number") for plain in numbers if plain in names]
    return read_table(path, columns, rest=not coded, form=ATOMIC), names


def _typed_names(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for full in header(path, ATOMIC):
        plain, _, kind = full.rpartition(":")
        if not plain or kind not in ("token", "token_seq", "float", "float_seq"):
            raise DataError(
                f"{path}:1: header {full!r} has no type; write 'name:token', or float, token_seq, float_seq"
            )
        names[plain] = full
    return names


def _items(path: Path) -> tuple[Catalogue, Table]:
    table, name = _table(path, ["item_id"], [])
    column = next((column for column in TITLES if column in name), None)
    if column is None:
        raise DataError(f"{path}:1: no column of titles (one of {', '.join(TITLES)}); {did_you_mean('title', name)}")
    given = [str(row[name[column]]) for row in table.rest]
    rows = [_plain_row(row, without=name[column]) for row in table.rest]
    if column == "movie_title":
        years = [_year(title, row.pop("release_year", "")) for title, row in zip(given, rows, strict=True)]
        given = ["unknown" if title == _UNKNOWN else title for title in given]
        shown: Iterable[str] = map(titles.film_title, given, years)
        fields: Iterable[Fields] = map(_film_fields, years, rows)
    else:
        shown, fields = given, map(fields_of, rows)
    return catalogue(table, name["item_id"], shown, fields), table


def _plain_row(row: Mapping[str, str], without: str) -> dict[str, str]:
    return {full.rpartition(":")[0]: cell for full, cell in row.items() if full != without}


def _year(title: str, written: str) -> int | None:
    """Year of release. One film of MovieLens-100K has it in its title, and "V" (for video) in its stead."""
    return int(written) if written.isdecimal() else titles.year_in(title)


def _film_fields(year: int | None, row: dict[str, str]) -> Fields:
    """Year and genres, then whatever else there is. RecBole calls genres `class` and parts them by spaces."""
    genres = row.pop("class", "").split()
    return fields_of({"year": year, "genres": genres, **row})


def _users(path: Path) -> tuple[dict[str, Fields], list[Table]]:
    """What is known of the people, if there is such a file."""
    if not path.exists():
        return {}, []
    table, name = _table(path, ["user_id"], [])
    fields = [fields_of(_plain_row(row, without="")) for row in table.rest]
    return dict(zip(table[name["user_id"]], fields, strict=True)), [table]


RECBOLE = Custom(("*.inter", "*.item"), read)
