"""Layouts: every published form of a data set gives people, items, ratings and times, and says what is broken."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt.data import LAYOUTS, detect, read_dataset
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.layouts.movielens import _GENRES
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Interaction, Item

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FLAGS = "|".join("1" if genre in ("Crime", "Thriller") else "0" for genre in _GENRES)


def lines(*rows: object) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


HEAT, AMELIE = ("Heat (1995)", 1995), ("The Fabulous Amélie (2001)", 2001)
FILMS: dict[str, dict[str, str]] = {
    "movielens-100k": {
        "u.data": "7\t01\t5\t200\n7\t1\t3\t100\n",
        "u.item": f"01|Heat (1995)|01-Jan-1995||http://x|{FLAGS}\n1|Fabulous Amélie, The (2001)||||{FLAGS}\n",
        "u.user": "7|24|M|writer|85711\n",
    },
    "movielens-1m": {
        "ratings.dat": "7::01::5::200\n7::1::3::100\n",
        "movies.dat": "01::Heat (1995)::Crime|Thriller\n1::Fabulous Amélie, The (2001)::Crime|Thriller\n",
        "users.dat": "7::M::24::10::48067\n",
    },
    "movielens-latest-small": {
        "ratings.csv": "userId,movieId,rating,timestamp\n7,01,5.0,200\n7,1,3.0,100\n",
        "movies.csv": 'movieId,title,genres\n01,Heat (1995),Crime|Thriller\n1,"Fabulous Amélie, The (2001)",'
        "Crime|Thriller\n",
    },
}
PRODUCTS = [{"asin": "00A", "title": "Pens &amp; paper", "brand": "Bic"}, {"asin": "B1", "title": "NA"}]
REVIEWS = [
    {"reviewerID": "7", "asin": "B1", "overall": 5.0, "unixReviewTime": 200, "reviewText": "None"},
    {"reviewerID": "7", "asin": "00A", "overall": 3.0, "unixReviewTime": 100},
]
LATER = [
    {"user_id": "7", "parent_asin": "B1", "rating": 5.0, "timestamp": 1_600_000_200_000},
    {"user_id": "7", "parent_asin": "00A", "rating": 3.0, "timestamp": 1_600_000_100_000},
]
LATER_PRODUCTS = [{"parent_asin": row["asin"], "title": row["title"], "store": "Bic"} for row in PRODUCTS]
SHOPS: dict[str, dict[str, str]] = {
    "amazon-2014": {"reviews_Office_5.json": lines(*REVIEWS), "meta_Office.json": lines(*map(repr, PRODUCTS))},
    "amazon-2018": {"Office_5.json.gz": lines(*REVIEWS), "meta_Office.json.gz": lines(*PRODUCTS)},
    "amazon-2023": {"Office.jsonl": lines(*LATER), "meta_Office.jsonl": lines(*LATER_PRODUCTS)},
    "amazon-2023 csv": {
        "Office.csv": "user_id,parent_asin,rating,timestamp\n7,B1,5.0,1600000200000\n7,00A,3.0,1600000100000\n",
        "meta_Office.jsonl": lines(*LATER_PRODUCTS),
    },
}
NEWS = "{0}\tsports\tgolf\t{1}\tabstract\thttps://x\t[]\t[]\n"
OTHERS: dict[str, dict[str, str]] = {
    "mind": {
        "behaviors.tsv": "1\tU7\t11/15/2019 8:55:22 AM\tN1 N2\tN3-1 N4-0\n2\tU7\t11/14/2019 1:00:00 PM\tN1 N2\tN4-1\n",
        "news.tsv": "".join(NEWS.format(f"N{n}", f'Said "no" {n}') for n in (1, 2, 3, 4)),
    },
    "goodbooks": {
        "ratings.csv": "user_id,book_id,rating\n7,1,5\n7,2,3\n",
        "books.csv": "book_id,authors,original_publication_year,title\n1,A. B,2008.0,Null\n2,C. D,1997.0,Nan\n",
    },
    "lastfm": {
        "user_artists.dat": "userID\tartistID\tweight\n7\t1\t13883\n7\t2\t11690\n",
        "artists.dat": 'id\tname\turl\tpictureURL\n1\tMALICE "X" MIZER\tu\tp\n2\tNone\tu\tp\n',
    },
    "steam": {
        "steam_reviews.json": lines(
            repr({"username": "7", "product_id": "2", "hours": 3.5, "date": "2018-01-02"}),
            repr({"username": "7", "product_id": "1", "date": "2018-01-01"}),
        ),
        "steam_games.json": lines(repr({"id": "1", "title": "Portal"}), repr({"id": "2", "title": "O'Brien"})),
    },
    "yelp": {
        "yelp_academic_dataset_review.json": lines(
            {"user_id": "7", "business_id": "-x", "stars": 5.0, "date": "2018-07-07 22:09:11", "text": "a"}
        ),
        "yelp_academic_dataset_business.json": lines({"business_id": "-x", "name": "Null's", "city": "Reno"}),
    },
}


def folder_of(files: Mapping[str, str], folder: Path, encoding: str = "utf-8") -> Path:
    for name, text in files.items():
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt", encoding=encoding, newline="") as file:
            file.write(text)
    return folder


def read(layout: str, files: Mapping[str, str], folder: Path) -> Dataset:
    old = layout in ("movielens-100k", "movielens-1m")  # GroupLens wrote those in Latin-1
    found = read_dataset(folder_of(files, folder, "latin-1" if old else "utf-8"), layout.split()[0])
    assert detect(folder) == layout.split()[0]
    return found


@pytest.mark.parametrize("layout", FILMS)
def test_movielens_in_every_edition_is_the_same_films(tmp_path: Path, layout: str) -> None:
    data = read(layout, FILMS[layout], tmp_path)

    assert [(seen.item.title, dict(seen.item.fields)["year"]) for seen in data.interactions("7")] == [AMELIE, HEAT]
    assert [(seen.rating, seen.time) for seen in data.interactions("7")] == [(3, 100), (5, 200)]
    assert dict(data.items["01"].fields)["genres"] == "Crime, Thriller"
    assert set(data.sources) == set(FILMS[layout])


@pytest.mark.parametrize("layout", SHOPS)
def test_amazon_reviews_of_every_year_have_ids_titles_and_seconds(tmp_path: Path, layout: str) -> None:
    data = read(layout, SHOPS[layout], tmp_path)

    first, second = data.interactions("7")
    start = 1_600_000_000 if "2023" in layout else 0
    assert first == Interaction(data.items["00A"], 3, start + 100)
    assert second == Interaction(data.items["B1"], 5, start + 200)
    assert (first.item.title, second.item.title) == ("Pens & paper", "NA")
    assert "Bic" in dict(first.item.fields).values()


def test_clicks_of_mind_are_the_history_once_and_what_was_clicked(tmp_path: Path) -> None:
    data = read("mind", OTHERS["mind"], tmp_path)

    assert [seen.item.id for seen in data.interactions("U7")] == ["N1", "N2", "N4", "N3"]
    first, _, second, last = (seen.time for seen in data.interactions("U7"))
    assert first == second == 1573736400
    assert last == 1573808122
    assert data.items["N1"] == Item("N1", 'Said "no" 1', (("category", "sports"), ("subcategory", "golf")))


def test_books_and_artists_have_no_times(tmp_path: Path) -> None:
    for layout, titles in (("goodbooks", ["Null", "Nan"]), ("lastfm", ['MALICE "X" MIZER', "None"])):
        folder = tmp_path / layout
        folder.mkdir()
        data = read(layout, OTHERS[layout], folder)
        assert data.times is None
        assert [seen.item.title for seen in data.interactions("7")] == titles


def test_dates_are_seconds_since_1970(tmp_path: Path) -> None:
    (tmp_path / "steam").mkdir()
    steam = read("steam", OTHERS["steam"], tmp_path / "steam")
    assert [(seen.item.title, seen.time, seen.rating) for seen in steam.interactions("7")] == [
        ("Portal", 1514764800, None),
        ("O'Brien", 1514851200, 3.5),
    ]
    (tmp_path / "yelp").mkdir()
    yelp = read("yelp", OTHERS["yelp"], tmp_path / "yelp")
    assert yelp.interactions("7") == (Interaction(yelp.items["-x"], 5, 1531001351),)


PLAIN = {
    "interactions.csv": "user_id,item_id,rating,timestamp\n007,NA,,2\n007,None,4,1\n",
    "items.csv": "item_id,title,price\nNA,None,3\nNone,NA,\n",
    "users.csv": "user_id,gender\n007,F\n",
}


def test_tables_with_plain_names_are_a_layout(tmp_path: Path) -> None:
    data = read("tables", PLAIN, tmp_path)

    assert [(seen.item.id, seen.item.title) for seen in data.interactions("007")] == [("None", "NA"), ("NA", "None")]
    assert data.users == {"007": (("gender", "F"),)}
    assert data.items["NA"].fields == (("price", "3"),)


BROKEN = {
    "no items": ({"items.csv": None}, r"no file items\.parquet or items\.csv or .* here"),
    "two catalogues": (
        {"items.csv.gz": None, "items.csv": "item_id,name\n1,a\n"},
        r"items\.csv: no column 'title'; ",
    ),
    "no column of users": (
        {"interactions.csv": "user,item_id\n1,NA\n"},
        r"no column 'user_id'; known: item_id, ",
    ),
    "an item nobody knows": (
        {"interactions.csv": "user_id,item_id\n1,NA\n1,zz\n"},
        r"interactions\.csv:3, column 'item_id': item 'zz' is not in the catalogue",
    ),
    "no time": (
        {"interactions.csv": "user_id,item_id,time\n1,NA,yesterday\n"},
        r"interactions\.csv:2, column 'time': expected a number",
    ),
    "no such day": (
        {"interactions.csv": "user_id,item_id,time\n1,NA,2020-13-01\n"},
        r"interactions\.csv:2, column 'time': expected a time, such as",
    ),
    "an id twice": (
        {"items.csv": "item_id,title\nNA,a\nNA,b\n"},
        r"items\.csv:3, column 'item_id': the item id 'NA'",
    ),
    "no interactions": ({"interactions.csv": "user_id,item_id\n"}, r"interactions\.csv: holds no interactions"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_in_a_folder_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    changes, message = BROKEN[name]
    files = {file: text for file, text in (PLAIN | changes).items() if text is not None}

    with pytest.raises(DataError, match=message):
        read_dataset(folder_of(files, tmp_path), "tables")


def test_counting_drops_interactions_with_unknown_items_and_people_who_have_no_others(tmp_path: Path) -> None:
    inter = "user_id,item_id\n1,zz\n2,NA\n2,zz\n3,None\n"
    items = PLAIN["items.csv"] + "NA,again,\n"
    folder = folder_of(PLAIN | {"interactions.csv": inter, "items.csv": items}, tmp_path)

    data = read_dataset(folder, "tables", "count")

    assert data.user_ids == ("2", "3")
    assert [[seen.item.id for seen in data.interactions(user)] for user in data.user_ids] == [["NA"], ["None"]]
    assert (data.unknown_items, data.repeated_ids) == (2, 1)
    assert data.items["NA"].title == "None"


def test_a_folder_of_no_known_layout_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"the files \(notes\.txt\) follow none of the layouts recbole, movielens-100k"):
        detect(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        detect(tmp_path / "none")


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9])
def test_the_unit_of_times_is_seen_from_their_size(tmp_path: Path, unit: float) -> None:
    rows = "".join(f"7,NA,{int(time * unit)}\n" for time in (1_577_836_800, 978_307_200))
    files = PLAIN | {"interactions.csv": "user_id,item_id,timestamp\n" + rows}

    data = read_dataset(folder_of(files, tmp_path))

    assert data.times is not None
    assert data.times.tolist() == [978_307_200, 1_577_836_800]


def test_every_layout_in_the_table_can_be_loaded() -> None:
    for name in LAYOUTS:
        assert callable(LAYOUTS.load(name))


@pytest.mark.parametrize("name", ["amazon-office", "lastfm-2k", "mind-mini", "ml-100k", "ml-latest-small"])
def test_real_excerpts_have_the_sizes_that_their_notes_say(name: str) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/data/{name} is not there")
    notes = json.loads((folder / "meta.json").read_text())

    data = read_dataset(folder)

    assert data.sizes == (notes["n_users"], notes["n_items_catalogue"], notes["n_interactions"])
    assert len(np.unique(data.codes)) == notes["n_items_interacted"]
    titles = [item.title for item in data.items.values()]
    assert len(titles) - len(set(titles)) == notes["titles"]["duplicates"] or name == "lastfm-2k"
