"""RecBole's atomic files: MovieLens-100K as its films are really called, and what is broken by name."""

from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.titles import film_title
from fewrec_prompt.errors import DataError, FewrecError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
FILMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


def folder(
    path: Path, inter: str, items: str = FILMS + "1\tHeat\t1995\tAction Crime\n2\tRonin\t1998\tAction\n"
) -> Path:
    """A tiny data set called `tiny`."""
    (path / "tiny.inter").write_text(inter, encoding="utf-8")
    (path / "tiny.item").write_text(items, encoding="utf-8")
    return path


def test_movielens_100k_is_what_its_name_says(films: Dataset) -> None:
    assert films.name == "ml-100k"
    assert films.sizes == (943, 1682, 100_000)
    assert set(films.sources) == {"ml-100k.inter", "ml-100k.item", "ml-100k.user"}
    assert films.users["1"] == (("age", "24"), ("gender", "M"), ("occupation", "technician"), ("zip_code", "85711"))
    assert films.empty_titles == 0


@pytest.mark.parametrize(
    ("item_id", "title"),
    [
        ("163", "The Return of the Pink Panther (1974)"),
        ("4", "Get Shorty (1995)"),
        ("30", "Belle de jour (1967)"),
        ("177", "The Good, The Bad and The Ugly (1966)"),
        ("113", "The Horseman on the Roof (Le Hussard sur le toit) (1995)"),
        ("6", "Shanghai Triad (Yao a yao yao dao waipo qiao) (1995)"),
        ("296", "La Promesse (1996)"),
        ("543", "Les Misérables (1995)"),
        ("1535", "L'Enfer (1994)"),
        ("14", "Il Postino (1994)"),
        ("1504", "Der Bewegte Mann (1994)"),
        ("515", "Das Boot (1981)"),
        ("1342", "The Convent (O Convento) (1995)"),
        ("1005", "La Double vie de Véronique (The Double Life of Veronique) (1991)"),
        ("1541", "The Beans of Egypt, Maine (1994)"),
        ("1542", "The Scarlet Letter (1926)"),
        ("460", "The Crossing Guard (1995)"),
        ("462", "Like Water For Chocolate (Como agua para chocolate) (1992)"),
        ("1593", "Death in Brunswick (1991)"),
        ("1412", "Land Before Time III: The Time of the Great Giving (1995)"),
        ("267", "unknown"),
    ],
)
def test_films_are_called_what_people_call_them(films: Dataset, item_id: str, title: str) -> None:
    assert films.items[item_id].title == title


def test_every_film_but_the_unknown_one_ends_in_its_year(films: Dataset) -> None:
    years = {item.id: dict(item.fields).get("year") for item in films.items.values()}

    assert [item_id for item_id, year in years.items() if year is None] == ["267"]
    assert all(films.items[item_id].title.endswith(f"({year})") for item_id, year in years.items() if year)
    assert not any(f"({year}) ({year})" in films.items[item_id].title for item_id, year in years.items())


def test_no_article_is_left_behind_a_comma(films: Dataset) -> None:
    behind = [item.title for item in films.items.values() if item.title.split(" (")[0].split(", ")[-1] in {"The", "A"}]

    assert behind == []


@pytest.mark.parametrize(
    "title", ["Cry, the Beloved Country", "I, Worst of All (Yo, la peor de todas)", "Paris, France", "Bye Bye, Love"]
)
def test_a_comma_in_a_title_is_not_always_an_article(title: str) -> None:
    assert film_title(title, 1990) == f"{title} (1990)"


def test_genres_and_year_are_fields(films: Dataset) -> None:
    assert films.items["1"].fields == (("year", 1995), ("genres", "Animation, Children's, Comedy"))


def test_interactions_are_sorted_by_time_and_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = ["u\t2\t5\t9", "v\t1\t4\t1", "u\t1\t3\t7", "u\t2\t2\t7", "u\t1\t1\t7"]
    data = read_dataset(folder(tmp_path, INTER + "\n".join(rows)), "recbole")

    mine = data.interactions("u")

    assert [taken.rating for taken in mine] == [3, 2, 1, 5]
    assert [taken.item.title for taken in mine] == ["Heat (1995)", "Ronin (1998)", "Heat (1995)", "Ronin (1998)"]
    assert mine[0].time == 7


def test_ratings_and_times_that_are_not_known_are_none(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, "user_id:token\titem_id:token\nu\t1\nu\t2\n"), "recbole")

    assert [(taken.item.id, taken.rating, taken.time) for taken in data.interactions("u")] == [
        ("1", None, None),
        ("2", None, None),
    ]


def test_ids_with_leading_zeros_are_different_ids(tmp_path: Path) -> None:
    items = FILMS + "7\tSeven\t1995\t\n007\tDr. No\t1962\t\n"
    data = read_dataset(folder(tmp_path, INTER + "NA\t007\t5\t1\nNA\t7\t5\t2\nNone\t7\t5\t2\n", items), "recbole")

    assert data.user_ids == ("NA", "None")
    assert [taken.item.title for taken in data.interactions("NA")] == ["Dr. No (1962)", "Seven (1995)"]


def test_quotes_in_atomic_files_are_characters(tmp_path: Path) -> None:
    items = FILMS + '1\t"Crocodile" Dundee\t1986\tComedy\n2\tI "Heart" Huckabees\t2004\tComedy\n'
    data = read_dataset(folder(tmp_path, INTER + "u\t1\t5\t1\n", items), "recbole")

    assert [item.title for item in data.items.values()] == ['"Crocodile" Dundee (1986)', 'I "Heart" Huckabees (2004)']


def test_items_that_are_no_films_keep_their_titles(tmp_path: Path) -> None:
    items = "item_id:token\ttitle:token_seq\tbrand:token\n1\tIliad, The\tPenguin\n2\t\t\n"
    data = read_dataset(folder(tmp_path, INTER + "u\t1\t5\t1\n", items), "recbole")

    assert [(item.title, item.fields) for item in data.items.values()] == [
        ("Iliad, The", (("brand", "Penguin"),)),
        ("item 2", ()),
    ]
    assert data.empty_titles == 1


BROKEN = {
    "unknown item": (INTER + "u\t1\t5\t1\nu\t9\t5\t2\n", FILMS + "1\tHeat\t1995\tA\n",
                     "tiny.inter:3, column 'item_id:token': item '9' is not in the catalogue"),
    "no time": (INTER + "u\t1\t5\tlate\n", FILMS + "1\tHeat\t1995\tA\n",
                "tiny.inter:2, column 'timestamp:float': expected a number, found the text 'late'"),
    "no user": (INTER + "\t1\t5\t1\n", FILMS + "1\tHeat\t1995\tA\n",
                "tiny.inter:2, column 'user_id:token': the id is empty"),
    "no type": ("user_id\titem_id:token\n", FILMS + "1\tHeat\t1995\tA\n",
                "tiny.inter:1: header 'user_id' has no type; write 'name:token', or float, token_seq, float_seq"),
    "no user column": ("item_id:token\tusers:token\n", FILMS + "1\tHeat\t1995\tA\n",
                       "tiny.inter:1: missing column 'user_id:token'; known: item_id, users."),
    "no title column": (INTER, "item_id:token\ttitel:token_seq\n", "tiny.item:1: no column of titles (one of "
                        "movie_title, title, book_title, name); known: item_id, titel. Did you mean 'titel'?"),
    "item twice": (INTER, FILMS + "1\tHeat\t1995\tA\n1\tHeat\t1995\tA\n",
                   "tiny.item:3, column 'item_id:token': the item id '1' stands twice; ids must be unique"),
    "cells too few": (INTER, FILMS + "1\tHeat\n", "tiny.item:2: 2 cells, but the header names 4 columns; quote cells "
                      "that hold the delimiter"),
    "no rows": (INTER, FILMS + "1\tHeat\t1995\tA\n", "tiny.inter: holds no interactions"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    inter, items, message = BROKEN[name]

    with pytest.raises(DataError) as caught:
        read_dataset(folder(tmp_path, inter, items), "recbole")

    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_a_folder_without_interactions_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no \*\.inter file here; the layout 'recbole' reads NAME\.inter and NAME\.item"
    ):
        read_dataset(tmp_path, "recbole")


def test_two_files_of_interactions_are_not_chosen_between(tmp_path: Path) -> None:
    (folder(tmp_path, INTER) / "tiny.train.inter").write_text(INTER)

    with pytest.raises(DataError, match=r"2 files of interactions \(tiny\.inter, tiny\.train\.inter\)"):
        read_dataset(tmp_path, "recbole")


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.inter").write_text(INTER)

    with pytest.raises(DataError, match=r"tiny\.item: "):
        read_dataset(tmp_path, "recbole")


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FewrecError, match=r"unknown data layout 'recbol'; known: .* Did you mean 'recbole'\?"):
        read_dataset(tmp_path, "recbol")


def test_a_user_who_is_not_there_is_an_error_with_neighbours(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, INTER + "user17\t1\t5\t1\n"), "recbole")

    with pytest.raises(DataError, match=r"no user 'user71' has interactions.*Did you mean 'user17'\?"):
        data.interactions("user71")


def test_arrays_of_a_data_set_cannot_be_changed(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, INTER + "u\t1\t5\t1\n"), "recbole")

    with pytest.raises(ValueError, match="read-only"):
        data.codes[0] = 1
    assert data.codes.dtype == np.int32
