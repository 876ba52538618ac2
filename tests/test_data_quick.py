"""Large files read in columns: the same as by lines, to the last literal, or left to the reader by lines."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt.data import quick, tables
from fewrec_prompt.data.columns import Column, Table
from fewrec_prompt.data.tables import read_table
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.errors import DataError

USER, ITEM = Column("user_id", "id", coded=True), Column("item_id", "id", coded=True)
RATING, TIME = Column("rating", "number", required=False), Column("time", "time", required=False)
COLUMNS = [USER, ITEM, RATING, TIME]
LITERALS = (
    *("None", "NA", "null", "nan", "N/A", "NaN", "#N/A", "<NA>", "n/a", "NULL", "inf", "-", "TRUE", "false"),
    *("007", "7", "7.0", "7.", "1e5", "9007199254740993", "0x1F", "1_000", " 7", "7 ", "\u00a07", "é", "羅生門"),
    *("2020-01-01", "'", "\\N"),
)
ROWS = [(literal, f"i{literal}", n % 5 + 0.5, 10.0 + n) for n, literal in enumerate(LITERALS)]
FORMS = ("csv", "tsv", "csv.gz", "jsonl", "jsonl.gz")


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Also tells what the reader by columns gave: a table, or None where it left the file to the other one."""
    given: list[object] = []
    real = quick.read

    def watched(*args: object) -> Table | None:
        given.append(real(*args))  # type: ignore[arg-type]
        return given[-1]  # type: ignore[return-value]

    monkeypatch.setattr(tables, "QUICK_BYTES", 0)
    monkeypatch.setattr(quick, "read", watched)
    return given


def written(folder: Path, form: str, rows: list[tuple[object, ...]] | None = None) -> Path:
    path = folder / f"big.{form}"
    opened = gzip.open if form.endswith(".gz") else open
    names = [column.name for column in COLUMNS]
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if "jsonl" in form:
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows or ROWS)
        else:
            delimiter = "\t" if "tsv" in form else ","
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
            writer.writerows([names, *(rows or ROWS)])
    return path


def by_lines(path: Path, monkeypatch: pytest.MonkeyPatch, form: Dialect | None = None) -> Table:
    with monkeypatch.context() as patch:
        patch.setattr(tables, "QUICK_BYTES", 1 << 40)
        return read_table(path, COLUMNS, form=form)


def same(one: Table, other: Table) -> bool:
    assert one["user_id"].values == other["user_id"].values
    assert one["item_id"].values == other["item_id"].values
    for name in ("user_id", "item_id"):
        assert one[name].codes.tolist() == other[name].codes.tolist()
        assert one[name].codes.dtype == np.int32
    for name in ("rating", "time"):
        assert (one.get(name) is None) == (other.get(name) is None)
        assert one.get(name) is None or np.array_equal(one[name], other[name], equal_nan=True)
    return one.place(len(one["rating"]) - 1, "x") == other.place(len(one["rating"]) - 1, "x")


@pytest.mark.parametrize("form", FORMS)
def test_thirty_literals_stay_text_whichever_way_they_are_read(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, every_file_is_large: list[object]
) -> None:
    path = written(tmp_path, form)

    table = read_table(path, COLUMNS)

    assert isinstance(every_file_is_large[0], Table)
    assert table["user_id"].values == LITERALS
    assert len(LITERALS) == 30
    assert same(table, by_lines(path, monkeypatch))


def test_gaps_in_numbers_are_missing_and_no_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "csv", [("u", "i", "", 3), ("u", "j", "2", 4)])
    table = read_table(path, COLUMNS)
    assert np.isnan(table["rating"][0])
    assert same(table, by_lines(path, monkeypatch))


def test_a_file_of_many_batches_is_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_file_is_large: list[object]
) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{a}", f"{b:05}", a % 5 + 1, c) for a, b, c in rng.integers(0, 900, (5000, 3)).tolist()]
    monkeypatch.setattr(quick, "ROWS", 128)
    monkeypatch.setattr(quick, "BYTES", 2048)
    for form in ("csv", "jsonl"):
        path = written(tmp_path, form, rows)
        assert same(read_table(path, COLUMNS), by_lines(path, monkeypatch))
        assert isinstance(every_file_is_large.pop(), Table)


def test_a_file_without_a_header_and_in_latin_1_is_what_the_layout_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_file_is_large: list[object]
) -> None:
    path = tmp_path / "u.data"
    path.write_text("Amélie\t7\t5\t10\nBrát\t8\t4\t11\n", encoding="latin-1")
    form = Dialect("\t", quoted=False, names=tuple(column.name for column in COLUMNS), encoding="latin-1")

    table = read_table(path, COLUMNS, form=form)

    assert isinstance(every_file_is_large[0], Table)
    assert table["user_id"].values == ("Amélie", "Brát")
    assert table.place(1, "time") == f"{path}:2, column 'time'"
    assert same(table, by_lines(path, monkeypatch, form))


HEADER = "user_id,item_id,rating,time\n"
LEFT = {
    "quoted cells": ("csv", HEADER + '"u, v",i,5,1\n"new\nline",j,4,2\n'),
    "a date": ("csv", HEADER + "u,i,5,2020-01-01\n"),
    "a blank line": ("csv", HEADER + "u,i,5,1\n\n"),
    "whole numbers as ids": ("jsonl", '{"user_id": 7, "item_id": 9007199254740993, "rating": 5, "time": 1}\n'),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_in_doubt_is_read_by_lines(tmp_path: Path, name: str, every_file_is_large: list[object]) -> None:
    form, text = LEFT[name]
    path = tmp_path / f"t.{form}"
    path.write_text(text)

    table = read_table(path, COLUMNS)

    assert every_file_is_large == [None]
    assert table.n_rows in (1, 2)


BROKEN = {
    "a row cut short": ("csv", HEADER + "u,i,5,1\nu,j,5\n", ":3: 3 cells, but the header names 4 columns"),
    "a row too long": ("csv", HEADER + "u,i,5,1,2\n", ":2: 5 cells, but the header names 4 columns"),
    "all rows too long": ("csv", HEADER + "0,u,i,5,1\n1,u,j,5,1\n", ":2: 5 cells, but the header names 4 columns"),
    "an empty id": ("csv", HEADER + "u,i,5,1\n,j,5,1\n", ":3, column 'user_id': the id is empty"),
    "a word for a number": ("csv", HEADER + "u,i,five,1\n", ":2, column 'rating': expected a number, found the text"),
    "infinity": ("csv", HEADER + "u,i,inf,1\n", ":2, column 'rating': expected a number"),
    "not a number": ("csv", HEADER + "u,i,nan,1\n", ":2, column 'rating': expected a number"),
    "an underscore": ("csv", HEADER + "u,i,1_0,1\n", ":2, column 'rating': expected a number"),
    "a column twice": ("csv", "user_id,item_id,item_id\nu,i,j\n", ":1: column 'item_id' stands twice"),
    "a missing column": ("csv", "user_id,rating,time\nu,5,1\n", ":1: missing column 'item_id'"),
    "another encoding": ("csv", HEADER.encode() + b"\xe9,i,5,1\n", ":2: not UTF-8 text"),
    "an open quote": ("csv", HEADER + 'u,"i,5,1\n', ":2: not valid CSV: a quote opened here is never closed"),
    "no JSON": ("jsonl", '{"user_id": "u", "item_id": "i"}\n{"user_id": "u",\n', ":2: not valid JSON"),
    "a fraction as an id": ("jsonl", '{"user_id": 7.0, "item_id": "i"}\n', ":1, column 'user_id': expected an id"),
    "a missing key": ("jsonl", '{"user_id": "u", "item_id": "i"}\n{"user_id": "u"}\n', ":2: missing column 'item_id'"),
    "no object": ("jsonl", '["u", "i"]\n', ":1: expected one JSON object a line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_in_a_large_file_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    form, text, message = BROKEN[name]
    path = tmp_path / f"t.{form}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(DataError) as caught:
        read_table(path, COLUMNS)

    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("form", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_two_hundred_damaged_files_are_read_alike_or_refused_alike(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty a form: cut, or with a byte changed. Neither reader may see what the other does not."""
    whole = written(tmp_path, form).read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(50):
        damaged = bytearray(whole)
        place = int(rng.integers(0, len(whole)))
        if rng.integers(2):
            damaged = damaged[:place]
        else:
            damaged[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"damaged.{form}"
        path.write_bytes(damaged)
        assert outcome(path, monkeypatch, slow=False) == outcome(path, monkeypatch, slow=True)


def outcome(path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> str:
    """What came of reading, as text: the error, or all that the table holds."""
    try:
        table = by_lines(path, monkeypatch) if slow else read_table(path, COLUMNS)
    except DataError as error:
        return str(error)
    columns = [(name, getattr(column, "values", column)) for name, column in sorted(table.columns.items())]
    codes = [table[name].codes.tolist() for name in ("user_id", "item_id") if table.get(name)]
    return repr([(name, list(values)) for name, values in columns] + [codes, table.n_rows])
