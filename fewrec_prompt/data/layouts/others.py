"""Goodbooks-10k (Zajac 2017), Last.fm 2K (HetRec 2011), Steam (arXiv 1808.09781), Yelp's open data set."""

from __future__ import annotations

from fewrec_prompt.data.layouts.parts import Layout, Part, Row
from fewrec_prompt.data.text_files import Dialect

_TABBED = Dialect("\t", quoted=False)


def _with_author(row: Row) -> Row:
    return {"author": row.get("authors"), "year": row.get("original_publication_year"), **row}


GOODBOOKS = Layout(
    Part(("ratings.csv",), {"user": ("user_id",), "item": ("book_id",), "rating": ("rating",)}),
    Part(
        ("books.csv",),
        {"item": ("book_id",), "title": ("title",)},
        keep=("authors", "original_publication_year", "language_code", "average_rating", "ratings_count"),
    ),
    tidied=_with_author,
)
LASTFM = Layout(  # without times; the weight is a count of plays
    Part(("user_artists.dat",), {"user": ("userID",), "item": ("artistID",), "rating": ("weight",)}, _TABBED),
    Part(("artists.dat",), {"item": ("id",), "title": ("name",)}, _TABBED, keep=()),
)
STEAM = Layout(
    Part(
        ("steam_new*.json", "steam_new*.json.gz", "steam_reviews*.json", "steam_reviews*.json.gz"),
        {"user": ("username", "user_id"), "item": ("product_id",), "rating": ("hours",), "time": ("date",)},
        "literals",
    ),
    Part(
        ("steam_games*.json", "steam_games*.json.gz"),
        {"item": ("id",), "title": ("title", "app_name")},
        "literals",
        keep=("genres", "tags", "developer", "publisher", "release_date"),
    ),
)
YELP = Layout(
    Part(
        ("*review.json", "*review.json.gz"),
        {"user": ("user_id",), "item": ("business_id",), "rating": ("stars",), "time": ("date",)},
        "jsonl",
    ),
    Part(
        ("*business.json", "*business.json.gz"),
        {"item": ("business_id",), "title": ("name",)},
        "jsonl",
        keep=("city", "state", "stars", "review_count", "categories"),
    ),
)
