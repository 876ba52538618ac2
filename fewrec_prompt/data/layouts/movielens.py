"""MovieLens as GroupLens gives it out (Harper & Konstan 2015, doi:10.1145/2827872): 100K, 1M, and the CSV editions."""

from __future__ import annotations

from fewrec_prompt.data.layouts.parts import Layout, Part, Row
from fewrec_prompt.data.text_files import Dialect
from fewrec_prompt.data.titles import film_title, year_in

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_RATING = {"user": ("user_id",), "item": ("item_id",), "rating": ("rating",), "time": ("timestamp",)}
_FILM = {"item": ("item_id",), "title": ("title",)}
_INTER = ("user_id", "item_id", "rating", "timestamp")


def _titled(row: Row, title: str) -> str:
    """The article in front. The year, which the title ends in, becomes a field as well."""
    shown = film_title(title.strip(), None)
    row["year"] = year_in(shown)
    return shown


def _flagged(row: Row) -> Row:
    """Genres out of nineteen columns of 0 and 1."""
    flags = [genre for genre in _GENRES if row.pop(genre, "0") == "1"]
    return {"year": row.get("year"), "genres": flags, "release_date": row.get("release_date")}


def _listed(row: Row) -> Row:
    """Genres out of a list with bars."""
    genres = str(row.pop("genres", "")).split("|")
    return {**row, "genres": [genre for genre in genres if genre and not genre.startswith("(no ")]}


ML_100K = Layout(
    Part(("u.data",), _RATING, Dialect("\t", quoted=False, names=_INTER)),
    Part(
        ("u.item",),
        _FILM,
        Dialect(
            "|",
            quoted=False,
            names=("item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES),
            encoding="latin-1",
        ),
    ),
    Part(
        ("u.user",),
        {"user": ("user_id",)},
        Dialect("|", quoted=False, names=("user_id", "age", "gender", "occupation", "zip_code"), encoding="latin-1"),
    ),
    titled=_titled,
    tidied=_flagged,
)
ML_1M = Layout(
    Part(("ratings.dat",), _RATING, Dialect("::", quoted=False, names=_INTER)),
    Part(
        ("movies.dat",),
        _FILM,
        Dialect("::", quoted=False, names=("item_id", "title", "genres"), encoding="latin-1"),
    ),
    Part(
        ("users.dat",),
        {"user": ("user_id",)},
        Dialect("::", quoted=False, names=("user_id", "gender", "age", "occupation", "zip_code"), encoding="latin-1"),
    ),
    titled=_titled,
    tidied=_listed,
)
ML_CSV = Layout(
    Part(
        ("ratings.csv",),
        {"user": ("userId",), "item": ("movieId",), "rating": ("rating",), "time": ("timestamp",)},
    ),
    Part(("movies.csv",), {"item": ("movieId",), "title": ("title",)}),
    titled=_titled,
    tidied=_listed,
)
