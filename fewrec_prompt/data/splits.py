"""Cut a data set into queries and answers by time: the last interaction of a user is what has to be found.

The users of the split "test" are for the numbers that are reported; everything that is chosen by its score (a template,
an alpha) is chosen on the split "selection", which has none of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fewrec_prompt.data.candidates import with_unseen
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.queries import QuerySet, no_problems
from fewrec_prompt.data.training import all_but_last
from fewrec_prompt.errors import DataError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Query

Split = Literal["test", "selection"]


def leave_one_out(
    dataset: Dataset,
    *,
    n_users: int | None = 200,
    n_history: int = 10,
    n_candidates: int = 20,
    seed: int = 0,
    split: Split = "test",
) -> QuerySet:
    """One query a user: find the last interaction among `n_candidates`, knowing at most `n_history` before it.

    Test users are `n_users` of the eligible ones (None: all), drawn by the seed; with a smaller n_users and the same
    seed they are the first of the same draw. "selection" gives all others. Raises DataError where time cannot order
    the interactions, users are too few, or a user has left too few items unseen.
    """
    _check_times(dataset)
    if n_history < 1 or n_candidates < 2:
        raise DataError(f"a query needs 1 history item and 2 candidates at least, not {n_history} and {n_candidates}")
    queries = []
    qrels = {}
    for user in split_users(dataset, n_users, seed, split):
        user_id, target = dataset.user_ids[user], int(dataset.codes[dataset.of(user)][-1])
        history = dataset.at(_before(dataset, user)[-n_history:])
        queries.append(Query(user_id, history, with_unseen(dataset, user, target, n_candidates, seed)))
        qrels[user_id] = frozenset({dataset.item_ids[target]})
    problems = no_problems(dataset.empty_titles)
    training = all_but_last(dataset)
    return QuerySet(tuple(queries), qrels, problems, popularity(dataset), dict(dataset.sources), training)


def split_users(dataset: Dataset, n_users: int | None, seed: int, split: Split) -> list[int]:
    """Positions in `user_ids` of the users of this split, in the order of the draw."""
    eligible = [user for user in range(len(dataset.user_ids)) if len(_before(dataset, user))]
    n_test = len(eligible) if n_users is None else n_users
    if not 0 < n_test <= len(eligible):
        raise DataError(
            f"{dataset.name}: {n_test} users were asked, but {len(eligible)} of {len(dataset.user_ids)} have an "
            "earlier interaction with another item than their last one; ask for 1 to that many"
        )
    drawn = rng_for(seed, "users").permutation(len(eligible))
    chosen = drawn[:n_test] if split == "test" else drawn[n_test:]
    if not len(chosen):
        raise DataError(
            f"{dataset.name}: all {n_test} eligible users are test users; ask for fewer to have others left"
        )
    return [eligible[position] for position in chosen]


def popularity(dataset: Dataset) -> dict[str, int]:
    """How often each item was taken, leaving out the last interaction of every user, in whatever split."""
    ends = dataset.starts[1:] - 1  # everybody in user_ids has an interaction
    counts = np.bincount(np.delete(dataset.codes, ends), minlength=len(dataset.item_ids))
    return dict(zip(dataset.item_ids, counts.tolist(), strict=True))


def _before(dataset: Dataset, user: int) -> list[int]:
    """Interactions before the last one, oldest first; none with its item, for the history would show the answer."""
    mine = dataset.of(user)
    before, target = dataset.codes[mine][:-1], dataset.codes[mine][-1]
    return [mine.start + int(offset) for offset in np.flatnonzero(before != target)]


def _check_times(dataset: Dataset) -> None:
    """Time must say something: a column of zeros would hand the order of the file out as history."""
    if dataset.times is None:
        raise DataError(f"{dataset.name}: has no column of times, so there is no last interaction to leave out")
    if np.isnan(dataset.times).any():
        where = int(np.argmax(np.isnan(dataset.times)))
        user_id = dataset.user_ids[int(np.searchsorted(dataset.starts, where, side="right")) - 1]
        item_id = dataset.item_ids[dataset.codes[where]]
        raise DataError(f"{dataset.name}, user {user_id!r}: the interaction with item {item_id!r} has no time")
    same_user = np.ones(len(dataset.codes), dtype=bool)
    same_user[dataset.starts[:-1]] = False  # from one interaction to the next
    if not (np.diff(dataset.times, prepend=0)[same_user] > 0).any():
        raise DataError(
            f"{dataset.name}: all times of a user are equal, for every user; they cannot say which came last"
        )
