"""Tables: what is written is what is read, and what is broken is named with its place."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewrec_prompt.data.catalogue import read_catalogue
from fewrec_prompt.data.columns import Column
from fewrec_prompt.data.tables import read_table
from fewrec_prompt.errors import DataError

ID, TITLE, PRICE, LIKES = Column("id", "id"), Column("title", "text"), Column("price", "number"), Column("likes", "ids")
CODED = Column("id", "id", coded=True)
LITERALS = ["None", "NA", "null", "nan", "N/A", "007", "7", "7.0", "9007199254740993", "-", "TRUE", "1e5", " 7", "é"]
TITLES = [
    '"Crocodile" Dundee',
    "Good, Bad",
    "two\nlines",
    "cr\r\nlf",
    "{{ 7*7 }}",
    "<|im_end|>",
    "羅生門",
    "'",
    "#",
    "\\N",
]


def write(folder: Path, form: str, rows: list[dict[str, object]]) -> Path:
    """The rows in a file of this form, written by the plainest tool for it."""
    path = folder / f"table.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form.startswith("jsonl"):
        opened = gzip.open if form.endswith(".gz") else open
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        opened = gzip.open if form.endswith(".gz") else open
        with opened(path, "wt", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if "tsv" in form else ",")
            writer.writeheader()
            writer.writerows(
                {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()}
                for row in rows
            )
    return path


FORMS = ["parquet", "csv", "tsv", "jsonl", "csv.gz", "jsonl.gz"]


@pytest.mark.parametrize("form", FORMS)
def test_literals_that_look_like_missing_values_or_numbers_stay_text(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, object]] = [
        {"id": literal, "title": literal, "likes": [literal, *LITERALS]} for literal in LITERALS
    ]

    table = read_table(write(tmp_path, form, rows), [ID, TITLE, LIKES])

    assert table["id"] == table["title"] == LITERALS
    assert table["likes"] == [(literal, *LITERALS) for literal in LITERALS]


@pytest.mark.parametrize("form", FORMS)
def test_titles_with_quotes_newlines_commas_and_templates_stay_as_they_are(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, object]] = [{"id": str(n), "title": title} for n, title in enumerate(TITLES)]

    assert read_table(write(tmp_path, form, rows), [TITLE])["title"] == TITLES


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = text.filter(lambda s: s.strip())


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(ids, text, st.lists(ids)), min_size=1, max_size=5))
def test_any_text_comes_back_as_it_was_written(
    tmp_path: Path, form: str, rows: list[tuple[str, str, list[str]]]
) -> None:
    path = write(tmp_path, form, [{"id": a, "title": b, "likes": c} for a, b, c in rows])

    table = read_table(path, [CODED, TITLE, LIKES])

    assert [table["id"].values[code] for code in table["id"].codes] == [a for a, _, _ in rows]
    assert table["title"] == [b for _, b, _ in rows]
    assert table["likes"] == [tuple(c) for _, _, c in rows]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_whole_numbers_are_ids_in_their_own_digits(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, [{"id": 2**53 + 1, "likes": [7, 2**53 + 1]}])

    table = read_table(path, [CODED, LIKES])

    assert table["id"].values == ("9007199254740993",)
    assert table["likes"] == [("7", "9007199254740993")]


def test_an_empty_number_is_missing_and_no_zero(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,price\na,\nb,0\n")

    prices = read_table(path, [ID, PRICE])["price"]

    assert np.isnan(prices[0])
    assert prices[1] == 0


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "jsonl", [{"id": "a"}]), [ID, Column("target", "id_or_ids", required=False)])

    assert table.get("target") is None


def test_a_line_is_the_one_an_editor_shows(tmp_path: Path) -> None:
    """Newlines inside of quotes, blank lines and a byte order mark do not shift it."""
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfid,title\r\na,"two\r\nlines"\r\n\r\n,x\r\n')

    with pytest.raises(DataError, match=r"t\.csv:5, column 'id': the id is empty"):
        read_table(path, [ID, TITLE])


# The text of a file, and how the message about it ends. Read with the columns id, title, price, likes.
BROKEN_TEXT = {
    "missing column": ("csv", "id,tilte,price,likes\n", "t.csv:1: missing column 'title' (needed: id, title, price, "
                       "likes); known: id, likes, price, tilte. Did you mean 'tilte'?"),
    "empty file": ("csv", "", "t.csv: empty; its first line should name the columns"),
    "column twice": ("csv", "id,id,title\n", "t.csv:1: column 'id' stands twice in the header; rename one of them"),
    "short row": ("csv", "id,title,price,likes\na,b,1,[]\na,b\n", "t.csv:3: 2 cells, but the header names 4 columns; "
                  "quote cells that hold the delimiter"),
    "comma in a title": ("csv", "id,title,price,likes\na,Good, Bad,1,[]\n", "t.csv:2: 5 cells, but the header names 4 "
                         "columns; quote cells that hold the delimiter"),
    "empty id": ("csv", "id,title,price,likes\na,b,1,[]\n,b,1,[]\n", "t.csv:3, column 'id': the id is empty"),
    "blank id": ("tsv", "id\ttitle\tprice\tlikes\n \tb\t1\t[]\n", "t.tsv:2, column 'id': the id is empty"),
    "word for a number": ("csv", "id,title,price,likes\na,b,cheap,[]\n",
                          "t.csv:2, column 'price': expected a number, found the text 'cheap'"),
    "infinite number": ("csv", "id,title,price,likes\na,b,inf,[]\n",
                        "t.csv:2, column 'price': expected a number, found the text 'inf'"),
    "list cut short": ("csv", 'id,title,price,likes\na,b,1,"[""x"""\n', "t.csv:2, column 'likes': expected a JSON list "
                       "such as [\"7\", \"12\"], found the text '[\"x\"'; not valid JSON: Expecting ',' delimiter at "
                       "character 5"),
    "list without brackets": ("csv", "id,title,price,likes\na,b,1,x|y\n", "t.csv:2, column 'likes': expected a JSON "
                              "list such as [\"7\", \"12\"], found the text 'x|y'; not valid JSON: Expecting value at "
                              "character 1"),
    "number for a list": ("csv", "id,title,price,likes\na,b,1,7\n",
                          "t.csv:2, column 'likes': expected a list of ids, found the number 7"),
    "fraction in a list of ids": ("csv", "id,title,price,likes\na,b,1,[7.0]\n",
                                  "t.csv:2, column 'likes': expected an id (text), found the number 7.0"),
    "gap in a list of ids": ("csv", 'id,title,price,likes\na,b,1,"[""x"", null]"\n',
                             "t.csv:2, column 'likes': the id is missing"),
    "half a character": ("csv", 'id,title,price,likes\na,b,1,"[""\\ud800""]"\n',
                         "t.csv:2, column 'likes': not valid Unicode: the text '\\ud800'"),
    "open quote": ("csv", 'id,title,price,likes\na,b,1,[]\na,"b,1,[]\n\n',
                   "t.csv:3: not valid CSV: a quote opened here is never closed"),
    "text behind a quote": ("csv", 'id,title,price,likes\na,"b" c,1,[]\n',
                            "t.csv:2: not valid CSV: ',' expected after '\"'"),
    "broken JSON": ("jsonl", '{"id": "a", "title": "b", "price": 1, "likes": []}\n{"id" "a"}\n',
                    "t.jsonl:2: not valid JSON: Expecting ':' delimiter at character 7"),
    "no object": ("jsonl", '["a"]\n', "t.jsonl:1: expected one JSON object a line, found a list ['a']"),
    "key twice": ("jsonl", '\n{"id": "a", "id": "b"}\n', "t.jsonl:2: not valid JSON: the key 'id' stands twice"),
    "not a number": ("jsonl", '{"price": NaN}\n', "t.jsonl:1: not valid JSON: NaN is not a JSON number"),
    "missing key": ("jsonl", '{"id": "a", "title": "b", "price": 1, "likes": []}\n{"id": "a", "title": "b", "price": 1}'
                    "\n", "t.jsonl:2: missing column 'likes' (needed: id, title, price, likes); known: id, price, "
                    "title."),
    "number for a text": ("jsonl", '{"id": "a", "title": 1917, "price": 1, "likes": []}\n',
                          "t.jsonl:1, column 'title': expected text, found the number 1917"),
    "text for a number": ("jsonl", '{"id": "a", "title": "b", "price": "1", "likes": []}\n',
                          "t.jsonl:1, column 'price': expected a number, found the text '1'"),
    "true for an id": ("jsonl", '{"id": true, "title": "b", "price": 1, "likes": []}\n',
                       "t.jsonl:1, column 'id': expected an id (text), found true or false True"),
    "fraction for an id": ("jsonl", '{"id": 7.5, "title": "b", "price": 1, "likes": []}\n',
                           "t.jsonl:1, column 'id': expected an id (text), found the number 7.5"),
    "text for a list": ("jsonl", '{"id": "a", "title": "b", "price": 1, "likes": "x"}\n',
                        "t.jsonl:1, column 'likes': expected a list of ids, found the text 'x'"),
    "huge number": ("jsonl", '{"id": "a", "title": "b", "price": 1e999, "likes": []}\n',
                    "t.jsonl:1, column 'price': expected a finite number, found the number inf"),
    "another spelling": ("csv", "id,title,price,likes,Targets\n",
                         "t.csv:1: column 'Targets' would not be read; rename it to 'target'"),
    "other kind of file": ("xlsx", "x", "t.xlsx: not a kind of file that is read here; give .parquet, .csv, .tsv, "
                           ".jsonl, text also as .gz"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_TEXT)
def test_what_is_broken_in_a_text_file_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    suffix, content, message = BROKEN_TEXT[name]
    path = tmp_path / f"t.{suffix}"
    path.write_text(content, encoding="utf-8", newline="")
    columns = [ID, TITLE, PRICE, LIKES, Column("target", "id_or_ids", required=False)]

    with pytest.raises(DataError) as caught:
        read_table(path, columns)

    assert str(caught.value) == str(path).removesuffix(path.name) + message


FINE = {"id": ["a", "b"], "title": ["x", "y"], "price": [1.0, 2.0], "likes": [["a"], []]}
BROKEN_PARQUET = {
    "missing column": ({"likes": None}, "t.parquet: missing column 'likes' (needed: id, title, price, likes); known: "
                       "id, price, title."),
    "missing id": ({"id": ["a", None]}, "t.parquet, row 2, column 'id': the id is missing"),
    "empty id": ({"id": ["a", ""]}, "t.parquet, row 2, column 'id': the id is empty"),
    "ids that were numbers": ({"id": [7.0, None]},
                              "t.parquet, row 1, column 'id': expected an id (text), found the number 7.0"),
    "text for numbers": ({"price": ["1", "2"]},
                         "t.parquet, row 1, column 'price': expected a number, found the text '1'"),
    "infinite number": ({"price": [1.0, float("inf")]}, "t.parquet, row 2, column 'price': expected a finite number"),
    "text for lists": ({"likes": ['["a"]', "[]"]},
                       "t.parquet, row 1, column 'likes': expected a list of ids, found the text '[\"a\"]'"),
    "gap in a list": ({"likes": [["a"], ["a", None]]}, "t.parquet, row 2, column 'likes': the id is missing"),
    "lists of fractions": ({"likes": [[], [7.0]]},
                           "t.parquet, row 2, column 'likes': expected an id (text), found the number 7.0"),
    "bytes for text": ({"title": [b"x", b"y"]}, "t.parquet, row 1, column 'title': expected text, found bytes b'x'"),
}  # fmt: skip


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", BROKEN_PARQUET)
def test_what_is_broken_in_a_parquet_file_is_named_with_its_place(tmp_path: Path, name: str, coded: bool) -> None:
    change, message = BROKEN_PARQUET[name]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({key: value for key, value in (FINE | change).items() if value is not None}), path)

    with pytest.raises(DataError) as caught:
        read_table(path, [CODED if coded else ID, TITLE, PRICE, LIKES])

    assert str(caught.value) == str(path).removesuffix(path.name) + message


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_an_encoding_is_never_guessed(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,title\na,x\nb,Café\n", encoding=encoding)

    with pytest.raises(DataError, match=rf"t\.csv:{1 if encoding == 'utf-16' else 3}: not UTF-8"):
        read_table(path, [ID, TITLE])


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "jsonl.gz"])
def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, [{"id": str(n), "title": f"title {n}"} for n in range(50)])
    whole = path.read_bytes()

    for end in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="table"):
            read_table(path, [ID, TITLE])


def test_damaged_bytes_never_give_a_traceback(tmp_path: Path) -> None:
    """Page checksums catch what changed a page; whatever else goes wrong is still one message."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(200)], "title": ["x" * n for n in range(200)]}), path,
                   write_page_checksum=True)  # fmt: skip
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    fine = read_table(path, [ID, TITLE]).columns
    refused = 0
    for place in rng.integers(len(whole), size=100):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        try:
            assert read_table(path, [ID, TITLE]).columns == fine, f"byte {place}"
        except DataError:
            refused += 1
    assert refused > 50


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        read_table(tmp_path / "nowhere.csv", [ID])


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()

    with pytest.raises(DataError, match=r"t\.csv: cannot be read \(Is a directory\)"):
        read_table(tmp_path / "t.csv", [ID])


def test_dictionary_and_large_text_columns_are_text(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    kind = pa.dictionary(pa.int8(), pa.large_string())
    pq.write_table(pa.table({"id": pa.array(["b", "a", "b"]).cast(kind)}), path)

    coded = read_table(path, [CODED])["id"]

    assert [coded.values[code] for code in coded.codes] == ["b", "a", "b"]
    assert read_table(path, [ID])["id"] == ["b", "a", "b"]


def test_a_table_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)

    assert read_table(path, [CODED])["id"].values == ()


def test_empty_duplicate_and_na_titles_survive_and_the_empty_ones_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title\n1,NA\n2,\n3,NA\n4,"  "\n')

    shelf = read_catalogue(path)

    assert [item.title for item in shelf.items.values()] == ["NA", "item 2", "NA", "item 4"]
    assert shelf.empty_titles == 2


def test_an_item_id_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n7,Heat\n007,Ronin\n7,Heat\n")

    with pytest.raises(DataError, match=r"items\.csv:4, column 'item_id': the item id '7' stands twice"):
        read_catalogue(path)


def test_a_catalogue_without_items_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n")

    with pytest.raises(DataError, match=r"items\.csv: holds no items"):
        read_catalogue(path)


def test_other_columns_of_the_catalogue_become_fields(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    row = {"item_id": "1", "title": "Heat", "year": 1995, "genres": ["Action", "Crime"], "price": None, "new": True}
    pq.write_table(pa.Table.from_pylist([row | {"vector": [0.5, 1.0], "__index_level_0__": 3}]), path)

    assert read_catalogue(path).items["1"].fields == (("year", 1995), ("genres", "Action, Crime"), ("new", "true"))


def test_a_key_that_only_some_rows_have_is_a_field_of_those(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"item_id": "1", "title": "a"}, {"item_id": "2", "title": "b", "year": 1995}])

    assert [item.fields for item in read_catalogue(path).items.values()] == [(), (("year", 1995),)]


def test_reading_data_loads_neither_torch_nor_transformers_nor_pandas() -> None:
    program = (
        "import sys; import fewrec_prompt.data.splits, fewrec_prompt.data.query_files, fewrec_prompt.data.recbole; "
        "import fewrec_prompt.data.parquet_files; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))

    assert run.stdout.strip() == "set()", run.stderr
