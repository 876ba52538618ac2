"""What a table of results has to be read against: how far shortcuts get that understand nothing, and what leaks.

A shortcut gives every candidate a number without a model. Where one is far from chance, a model may only have found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.bm25 import Index
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.training import Training
from fewrec_prompt.metrics import Shelf, UserScores, measure, measure_run
from fewrec_prompt.types import Query

METRICS = ("nDCG@10", "HR@1", "MRR")
POOLED = "pooled-AUC"  # where one candidate is judged at a time, there is nothing to rank for a user
CONTAMINATION = (
    "A model may have read these titles, and lists of them, before: run the task with --control no-history and with "
    "--control masked-titles, and compare; what is left without either is not known from the history."
)
Scores = npt.NDArray[np.float64]
Shortcut = Callable[[Query], Scores]


def audit(queries: QuerySet, dataset: Dataset | None = None) -> dict[str, Any]:
    """Shortcuts by name with the mean of each metric (fractions; ties at their expectation), leaks as counts.

    Where users have a single candidate each, as in a protocol of liked or not, the AUC over all of them is told too.
    `dataset` is what the queries were drawn from, where they were. Without answers there is nothing to audit: {}.
    """
    asked = [query for query in queries.queries if query.user_id in queries.qrels]
    if not asked:
        return {}
    return {
        "users": len(asked),
        "candidates": float(np.mean([len(query.candidates) for query in asked])),
        "shortcuts": {name: _measured(asked, queries, shortcut) for name, shortcut in _shortcuts(queries)},
        "leaks": _leaks(asked, queries, dataset),
        "contamination": CONTAMINATION,
    }


def _measured(asked: list[Query], queries: QuerySet, shortcut: Shortcut) -> dict[str, float]:
    users = []
    for query in asked:
        answers = queries.qrels[query.user_id]
        relevant = np.array([item.id in answers for item in query.candidates])
        users.append(UserScores(query.user_id, shortcut(query), relevant, len(answers)))
    found = {name: float(np.nanmean(values)) for name, values in measure(METRICS, users).items()}
    if any(len(query.candidates) == 1 for query in asked):
        found[POOLED] = measure_run([POOLED], users, Shelf())[POOLED].value
    return found


def _shortcuts(queries: QuerySet) -> Iterator[tuple[str, Shortcut]]:
    yield "chance", lambda query: np.zeros(len(query.candidates))
    yield "popularity", lambda query: np.array([float(queries.popularity.get(item.id, 0)) for item in query.candidates])
    if queries.training and queries.training.ratings is not None:
        shares = _share_liked(queries.training)
        yield "share liked", lambda query: np.array([shares.get(item.id, 0.0) for item in query.candidates])
    if any(taken.rating is not None for query in queries.queries for taken in query.history):
        yield "own ratings", _own_ratings
    yield "last-item similarity", _similar_to_last(queries)
    yield "longer title", _title_length
    yield "shorter title", lambda query: -_title_length(query)


def _share_liked(training: Training) -> Mapping[str, float]:
    """Of each item's ratings that may be learnt from, how many are at or above the middle one of all."""
    assert training.ratings is not None, "asked only of data with ratings"
    ratings, codes = training.ratings, training.codes
    known = ~np.isnan(ratings)
    if not known.any():
        return {}
    likes = ratings[known] >= np.median(ratings[known])
    n_items = len(training.item_ids)
    counts = np.bincount(codes[known], minlength=n_items)
    shares = np.bincount(codes[known], weights=likes, minlength=n_items) / np.maximum(counts, 1)
    return dict(zip(training.item_ids, shares.tolist(), strict=True))


def _own_ratings(query: Query) -> Scores:
    """Whoever liked much will like this: the mean rating of the history, the same for all candidates of a user.

    Of likes and dislikes it is the share of liked items, which has a higher AUC on TALLRec's films than its model
    (eval/published.toml).
    """
    return np.full(len(query.candidates), query.mean_rating or 0.0)


def _similar_to_last(queries: QuerySet) -> Shortcut:
    """BM25 of each candidate's title, when the title of the latest history item is asked for among all candidates."""
    titles = {item.id: item.title for query in queries.queries for item in query.candidates}
    row_of = {item_id: row for row, item_id in enumerate(titles)}
    index = Index(titles.values())

    def scores(query: Query) -> Scores:
        return index.scores(query.history[-1].item.title)[[row_of[item.id] for item in query.candidates]]

    return scores


def _title_length(query: Query) -> Scores:
    return np.array([float(len(item.title)) for item in query.candidates])


def _leaks(asked: list[Query], queries: QuerySet, dataset: Dataset | None) -> dict[str, Any]:
    """Answers that a query gives away, and how much of what may be learnt from is later than answers."""
    seen = title = missing = twice = 0
    for query in asked:
        answers = queries.qrels[query.user_id]
        titles = {item.title for item in query.candidates if item.id in answers}
        seen += any(taken.item.id in answers for taken in query.history)
        title += any(taken.item.title in titles for taken in query.history)
        twice += len({item.title for item in query.candidates}) < len(query.candidates)
        missing += not answers <= {item.id for item in query.candidates}
    return {
        "answer_in_history": seen,
        "title_of_answer_in_history": title,
        "answer_not_among_candidates": missing,
        "title_twice_among_candidates": twice,
        "learnt_from_later_than_the_median_answer": _later(asked, queries, dataset),
    }


def _later(asked: list[Query], queries: QuerySet, dataset: Dataset | None) -> float | None:
    """The share of interactions to learn from that are later than the middle answer; None without a clock."""
    training = queries.training
    if dataset is None or not dataset.has_calendar or training is None or training.times is None:
        return None
    people = set(dataset.user_ids)
    answered = [_time_of_answer(queries, query, dataset) for query in asked if query.user_id in people]
    known = [time for time in answered if time is not None]
    return float((training.times > np.median(known)).mean()) if known else None


def _time_of_answer(queries: QuerySet, query: Query, dataset: Dataset) -> float | None:
    answers = queries.qrels[query.user_id]
    taken = [taken.time for taken in dataset.interactions(query.user_id) if taken.item.id in answers]
    return taken[-1] if taken else None
