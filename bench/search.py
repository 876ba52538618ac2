"""Exact top ten of a whole catalogue: best-first search against scoring every title, in one process.

    .venv/bin/python bench/search.py --users 20

MovieLens-100K test users, fp32, films of the history left out. Prints a Markdown table: the share of the trie's nodes
that was computed and how many times faster the search was, for the median and the worst user; and how far the two tens
are apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewrec_prompt import Query, Recommender, assets
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.catalogue import build_trie
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.recommender import Answers
from fewrec_prompt.types import Domain, TokenLogprobs
from fewrec_prompt.verbalizers import with_length

RULES = {"sum": Calibration(), "mean": Calibration(), "pmi 0.6": Calibration("pmi", 0.6)}


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Every title of the catalogue scored for one user: the log, the seconds it took, the trie's inner nodes."""

    query: Query
    asked: tuple[TokenLogprobs, ...]
    seconds: float
    n_nodes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One user under one rule."""

    share: float  # of the trie's inner nodes
    times: float  # exhaustive seconds over search seconds
    apart: float  # largest difference between the scores of the two tens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20)
    asked = parser.parse_args()
    data = read_dataset(assets.get("ml-100k"), "recbole")
    plain = Recommender.load(precision="fp32", domain=Domain("film", "films", "watch"))
    items = tuple(data.items.values())
    twins = plain.ask_twin(Query("twin", (), items))  # of the catalogue, not of a user: before any clock starts
    queries = leave_one_out(data).queries[: asked.users]
    users = [every_title(plain, replace(query, candidates=items)) for query in queries]
    print("| rule | nodes, median | worst | times faster, median | worst | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, calibration in RULES.items():
        length = "mean" if name == "mean" else "sum"
        ranker = replace(plain, verbalizer=with_length(plain.verbalizer, length), calibration=calibration)
        ranker.top_k(["Heat"], items, budget=1)  # keeps the twins
        print(row(name, [measure(ranker, user, twins) for user in users]), flush=True)


def every_title(plain: Recommender, query: Query) -> Exhaustive:
    """Score the whole catalogue for one user."""
    start = time.perf_counter()
    asked, _ = plain.ask(query)
    seconds = time.perf_counter() - start
    sequences = plain.backend.tokens.encode(plain.questions(query)[0])
    trie = build_trie([sequence.ids[sequence.scored_from :] for sequence in sequences])
    return Exhaustive(query, asked, seconds, trie.n_inner)


def measure(ranker: Recommender, user: Exhaustive, twins: tuple[TokenLogprobs, ...]) -> Measured:
    """Search for one user, and compare with the log of every title."""
    history = [taken.item for taken in user.query.history]
    start = time.perf_counter()
    found = ranker.top_k(history, user.query.candidates)
    seconds = time.perf_counter() - start
    scores = ranker.scores(Answers(user.asked, twins, len(history)))
    seen = {item.id for item in history}
    unseen = np.array([item.id not in seen for item in user.query.candidates])
    best = np.sort(scores[unseen])[::-1][:10]
    apart = float(np.abs(best - np.array(found.ranking.scores)).max())
    return Measured(found.n_computed / user.n_nodes, user.seconds / seconds, apart)


def row(name: str, users: Sequence[Measured]) -> str:
    """A line of the table."""
    shares, times = [user.share for user in users], [user.times for user in users]
    return (
        f"| {name} | {100 * np.median(shares):.1f} % | {100 * max(shares):.1f} % | {np.median(times):.1f}× "
        f"| {min(times):.1f}× | {max(user.apart for user in users):.1e} |"
    )


if __name__ == "__main__":
    main()
