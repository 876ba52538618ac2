"""MIND (Wu et al. 2020, aclanthology.org/2020.acl-main.331): behaviors.tsv and news.tsv, without headers.

A row of behaviors is an impression: when it was, what the person had clicked before, what was shown and clicked
(`N1-1`) or not (`N2-0`). Interactions are the clicks; those before an impression carry its time if it is the person's
first one, for their own times are not published. Times are local and taken as UTC.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fewrec_prompt.data.catalogue import OnProblem
from fewrec_prompt.data.columns import Codes, Column, Table
from fewrec_prompt.data.dataset import Dataset, dataset
from fewrec_prompt.data.layouts.parts import Custom, Layout, Part
from fewrec_prompt.data.tables import read_table, sources
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.errors import DataError

BEHAVIORS = Dialect("\t", quoted=False, names=("impression_id", "user_id", "time", "history", "impressions"))
NEWS = Part(
    ("news.tsv",),
    {"item": ("news_id",), "title": ("title",)},
    Dialect(
        "\t",
        quoted=False,
        names=(
            *("news_id", "category", "subcategory", "title"),
            *("abstract", "url", "title_entities", "abstract_entities"),
        ),
    ),
    keep=("category", "subcategory"),
)
_COLUMNS = [Column("user_id", "id"), *(Column(name, "text") for name in ("time", "history", "impressions"))]
_CLOCK = "%m/%d/%Y %I:%M:%S %p"


def read(folder: Path, on_problem: OnProblem = "error") -> Dataset:
    """The data set in this folder. Raises DataError for missing files and broken rows."""
    shelf, item_table = Layout(NEWS, NEWS).catalogue(folder / "news.tsv", on_problem)
    table = read_table(folder / "behaviors.tsv", _COLUMNS, form=BEHAVIORS)
    clicks = _clicks(table)
    data = dataset(folder.name, shelf, clicks, user="user", item="item", rating="", time="time", on_problem=on_problem)
    return replace(data, sources=sources(table, item_table))


def _clicks(table: Table) -> Table:
    """One row a click, as a table of interactions; its lines are those of the file."""
    users, items = Codes(), Codes()
    times, lines = array("d"), array("Q")
    for row, user_id, item_id, time in _rows(table):
        users.add(user_id)
        items.add(item_id)
        times.append(time)
        lines.append(table.lines[row] if table.lines else row)
    columns = {"user": users.done(), "item": items.done(), "time": np.array(times)}
    return Table(table.path, table.sha256, tuple(columns), columns, [], len(lines), lines)


def _rows(table: Table) -> Iterator[tuple[int, str, str, float]]:
    """(row, user, item, time) of every click; the history of a person is taken once, at the first impression."""
    moments = [_moment(table, row) for row in range(table.n_rows)]
    met: set[str] = set()
    for row in sorted(range(table.n_rows), key=moments.__getitem__):
        user_id = table["user_id"][row]
        if user_id not in met:
            yield from ((row, user_id, item_id, moments[row]) for item_id in table["history"][row].split())
        met.add(user_id)
        for shown in table["impressions"][row].split():
            item_id, mark, clicked = shown.rpartition("-")
            if not mark or clicked not in ("0", "1"):
                raise DataError(
                    f"{table.place(row, 'impressions')}: {shown!r} is not a news id with -0 or -1; "
                    "the test part of MIND has no clicks, take train or dev"
                )
            if clicked == "1":
                yield row, user_id, item_id, moments[row]


def _moment(table: Table, row: int) -> float:
    written = table["time"][row]
    try:
        return datetime.strptime(written, _CLOCK).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise DataError(f"{table.place(row, 'time')}: {written!r} is no time such as 11/15/2019 8:55:22 AM") from None


MIND = Custom(("behaviors.tsv", "news.tsv"), read)
