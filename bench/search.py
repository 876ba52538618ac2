"""Exact top ten of a whole catalogue: best-first search against packed scoring of every title, in one process.

    .venv/bin/python bench/search.py --users 20 --timed-books 2

MovieLens-100K's first test users over its films, and seeded histories of five books over the Goodbooks catalogue; fp32;
what was seen is left out. Scoring every book takes minutes a user, so only some users are timed and compared there;
nodes are counted for all. What belongs to a catalogue and to nobody (twins, trie) is made before a clock starts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from fewrec_prompt import Item, Query, Recommender, assets
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.catalogue import build_trie
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.recommender import TopK, twin_scores
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Domain, Interaction
from fewrec_prompt.verbalizers import Length, with_length

K = 10
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RULES: dict[str, tuple[Length, Calibration]] = {
    "sum": ("sum", Calibration()),
    "mean": ("mean", Calibration()),
    "pmi 0.6": ("sum", Calibration("pmi", 0.6)),
}
HEAD = """\
| catalogue | rule | users | nodes, median | worst | no exact search under, median | worst \
| timed | times faster, median | worst | search, s | largest difference |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is searched, for whom; the first `n_timed` users are scored exhaustively as well."""

    name: str
    plain: Recommender  # uncalibrated
    queries: tuple[Query, ...]  # each with the whole catalogue as candidates
    n_timed: int


@dataclass(frozen=True, slots=True)
class Timed:
    """A search for one user, or the log-probabilities of every title, and the seconds it took."""

    what: Any
    seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20, help="of each catalogue")
    parser.add_argument("--timed-books", type=int, default=2, help="users for whom every book is scored")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds goodbooks-10k-catalogue")
    parser.add_argument("--catalogue", choices=("films", "books"), help="only this one")
    asked = parser.parse_args()
    try:
        print(tables(asked.users, asked.timed_books, asked.shared, asked.catalogue))
    except FewrecError as error:
        parser.error(str(error))


def tables(users: int = 20, timed_books: int = 2, shared: Path = SHARED, only: str | None = None) -> str:
    """The Markdown table. Raises DataError if the books are not in `shared`."""
    rows = [HEAD]
    books = read_books(shared) if only != "films" else ()
    if only != "books":
        rows += measure_catalogue(films(users))
    if books:
        rows += measure_catalogue(book_lovers(books, users, timed_books))
    return "\n".join(rows)


def films(n_users: int) -> Catalogue:
    """MovieLens-100K: its first test users, all of them timed."""
    data = read_dataset(assets.get("ml-100k"), "recbole")
    items = tuple(data.items.values())
    queries = tuple(replace(query, candidates=items) for query in leave_one_out(data).queries[:n_users])
    plain = Recommender.load(precision="fp32", domain=Domain("film", "films", "watch"))
    return Catalogue("ML-100K", plain, queries, n_users)


def book_lovers(items: tuple[Item, ...], n_users: int, n_timed: int) -> Catalogue:
    """Histories of five books drawn from the catalogue: good for speed, not for quality."""
    draws = (rng_for(0, "books", f"reader {n}").choice(len(items), 5, replace=False) for n in range(n_users))
    histories = [tuple(Interaction(items[place]) for place in places) for places in draws]
    queries = tuple(Query(f"reader {n}", history, items) for n, history in enumerate(histories))
    plain = Recommender.load(precision="fp32", domain=Domain("book", "books", "read"))
    return Catalogue("Goodbooks", plain, queries, n_timed)


def read_books(shared: Path) -> tuple[Item, ...]:
    """The 10,000 titles of Goodbooks."""
    path = shared / "goodbooks-10k-catalogue" / "items.parquet"
    if not path.is_file():
        raise DataError(f"{path} is not there; name its folder's parent with --shared, or use --catalogue films")
    table = pyarrow.parquet.read_table(path, columns=["item_id", "title"])
    return tuple(Item(row["item_id"], row["title"]) for row in table.to_pylist())


def measure_catalogue(catalogue: Catalogue) -> list[str]:
    """A line of the table for each rule."""
    plain, queries = catalogue.plain, catalogue.queries
    items = queries[0].candidates
    twin_scores(plain, items)
    plain.top_k([Item("none", "Nothing")], items, budget=1)  # makes the trie
    every = [timed(plain, query, lambda query: plain.ask(query)[0]) for query in queries[: catalogue.n_timed]]
    return [f"| {catalogue.name} | {name} | {line(ranked(plain, *RULES[name]), queries, every)} |" for name in RULES]


def ranked(plain: Recommender, length: Length, calibration: Calibration) -> Recommender:
    """The same model under a rule."""
    return replace(plain, verbalizer=with_length(plain.verbalizer, length), calibration=calibration)


def line(ranker: Recommender, queries: Sequence[Query], every: Sequence[Timed]) -> str:
    """Search for every user; compare with every title where that was timed."""
    found = [timed(ranker, query, lambda query: top_ten(ranker, query)) for query in queries]
    n_inner = count_nodes(ranker, queries[0])
    computed, needed = ([getattr(one.what, name) / n_inner for one in found] for name in ("n_computed", "n_needed"))
    times = [all_of_it.seconds / one.seconds for one, all_of_it in zip(found, every, strict=False)]
    apart = [distance(ranker, *three) for three in zip(queries, found, every, strict=False)]
    cells = [str(len(queries)), *spread(computed, "{:.1%}", max), *spread(needed, "{:.1%}", max), str(len(every))]
    cells += [*spread(times, "{:.1f}×", min), f"{np.median([one.seconds for one in found]):.1f}"]
    return " | ".join([*cells, f"{max(apart):.1e}" if apart else "–"])


def spread(values: Sequence[float], shown: str, worst: Callable[[Sequence[float]], float]) -> list[str]:
    """Median and worst user; dashes where nobody was measured."""
    return [shown.format(np.median(values)), shown.format(worst(values))] if values else ["–", "–"]


def timed(ranker: Recommender, query: Query, work: Callable[[Query], Any]) -> Timed:
    """The work and its seconds; what this user's question was encoded to before is forgotten."""
    ranker.backend.tokens.encode.cache_clear()
    start = time.perf_counter()
    return Timed(work(query), time.perf_counter() - start)


def top_ten(ranker: Recommender, query: Query) -> TopK:
    """Without what is in the history."""
    return ranker.top_k([taken.item for taken in query.history], query.candidates, K)


def count_nodes(ranker: Recommender, query: Query) -> int:
    """Inner nodes of the trie."""
    sequences = ranker.backend.tokens.encode(ranker.questions(query)[0])
    return build_trie(tuple(sequence.ids[sequence.scored_from :] for sequence in sequences)).n_inner


def distance(ranker: Recommender, query: Query, found: Timed, every: Timed) -> float:
    """Largest difference between the two tens, in score; also of what was found, scored among all."""
    twins = np.array(twin_scores(replace(ranker, calibration=Calibration()), query.candidates))
    scores = ranker.calibration.apply(ranker.verbalizer.read(every.what), twins)
    seen = {taken.item.id for taken in query.history}
    of = {item.id: score for item, score in zip(query.candidates, scores, strict=True) if item.id not in seen}
    best, ranking = np.sort(list(of.values()))[::-1][:K], found.what.ranking
    return float(max(np.abs(best - ranking.scores).max(), np.abs(best - [of[i] for i in ranking.item_ids]).max()))


if __name__ == "__main__":
    main()
