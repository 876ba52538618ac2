"""Cut a data set into queries and answers: what a person took is held out, what came before is known.

| split | the answer | what may be learnt from |
|---|---|---|
| leave-one-out | the last interaction of a user | everything but those |
| temporal | the first one after a point in time, the same for all | everything before that point |
| cold-users | the one after a user's first few | the interactions of all other users |
| cold-items | the last one with an item that was set apart | interactions with all other items |
| hold-out | one at random, for data without times | everything but those |

The users of the part "test" are for the numbers that are reported. Everything that is chosen by its score (a template,
an alpha) is chosen on the part "selection", and what is learnt from examples is learnt on the part "train"; no user is
in two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.candidates import Sampler, uniform, with_negatives
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.queries import QuerySet, no_problems
from fewrec_prompt.data.training import part_at
from fewrec_prompt.errors import DataError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Query

Split = Literal["test", "selection", "train"]
SplitName = Literal["leave-one-out", "temporal", "cold-users", "cold-items", "hold-out"]
Positions: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One user's part of a cut, as positions in the data set: what is known, oldest first, and the answer."""

    user: int
    history: Positions
    target: int


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A data set cut in two. `pool` are the items that candidates come from, where not all of them do."""

    cases: tuple[Case, ...]
    training: Positions  # interactions that anything may be learnt from: none is an answer, of whatever user
    pool: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked of whom. None of users: all that can be asked."""

    users: int | None = 200
    history: int = 10
    candidates: int | None = 20  # None: every unseen item
    shots: int = 0  # users of the part "train"

    def __post_init__(self) -> None:
        if self.history < 1 or (self.candidates is not None and self.candidates < 2):
            raise DataError(
                f"a query needs 1 history item and 2 candidates at least, not {self.history} and {self.candidates}"
            )


def queries_of(
    dataset: Dataset, cut: Cut, sizes: Sizes, *, seed: int = 0, split: Split = "test", sampler: Sampler = uniform
) -> QuerySet:
    """One query for each user of the part: find the held-out item among the candidates.

    Test users are `sizes.users` of the eligible ones, drawn by the seed; with fewer and the same seed they are the
    first of the same draw. Raises DataError where users are too few, or one has left too few items unseen.
    """
    taken = counts_of(dataset, cut.training)
    counts = np.fromiter(taken.values(), dtype=np.int64)
    queries, qrels = [], {}
    for case in part_of(dataset, cut, sizes, seed, split):
        user_id, target = dataset.user_ids[case.user], int(dataset.codes[case.target])
        known = dataset.at(case.history[-sizes.history :].tolist())
        candidates = with_negatives(dataset, case.user, target, sizes.candidates, seed, sampler, counts, cut.pool)
        queries.append(Query(user_id, known, candidates, dataset.users.get(user_id, ())))
        qrels[user_id] = frozenset({dataset.item_ids[target]})
    problems = no_problems(dataset.empty_titles, dataset.unknown_items)
    problems["history_repeats"] = sum(map(_repeats, queries))
    return QuerySet(tuple(queries), qrels, problems, taken, dict(dataset.sources), part_at(dataset, cut.training))


def _repeats(query: Query) -> bool:
    """Whether an item stands twice in the history: people buy things again."""
    return len({taken.item.id for taken in query.history}) < len(query.history)


def leave_one_out(
    dataset: Dataset,
    *,
    n_users: int | None = 200,
    n_history: int = 10,
    n_candidates: int = 20,
    seed: int = 0,
    split: Split = "test",
) -> QuerySet:
    """Queries of the split "leave-one-out" with uniform negatives; see `queries_of`."""
    sizes = Sizes(n_users, n_history, n_candidates)
    return queries_of(dataset, last_one(dataset), sizes, seed=seed, split=split)


def part_of(dataset: Dataset, cut: Cut, sizes: Sizes, seed: int, split: Split) -> list[Case]:
    """The cases of one part, in the order of the draw: the first are test users, the last train users."""
    n_all = len(cut.cases)
    n_test = n_all if sizes.users is None else sizes.users
    if not 0 < n_test <= n_all:
        raise DataError(
            f"{dataset.name}: {n_test} users were asked, but {n_all} of {len(dataset.user_ids)} have an "
            "earlier interaction with another item than their last one; ask for 1 to that many"
        )
    if n_test + sizes.shots > n_all:
        raise DataError(
            f"{dataset.name}: {n_test} test users and {sizes.shots} to learn from were asked, but there are {n_all}; "
            "ask for fewer"
        )
    drawn = rng_for(seed, "users").permutation(n_all).tolist()
    kept = n_all - sizes.shots
    # From the end, so that 16 shots are the first 16 of 64.
    chosen = {"test": drawn[:n_test], "selection": drawn[n_test:kept], "train": drawn[kept:][::-1]}[split]
    if not chosen:
        if split == "train":
            raise DataError(f"{dataset.name}: no user is set apart to learn from; say how many with `shots`")
        raise DataError(
            f"{dataset.name}: all {n_test} eligible users are test users; ask for fewer to have others left"
        )
    return [cut.cases[position] for position in chosen]


def counts_of(dataset: Dataset, positions: Positions) -> dict[str, int]:
    """How often each item was taken in these interactions."""
    counts = np.bincount(dataset.codes[positions], minlength=len(dataset.item_ids))
    return dict(zip(dataset.item_ids, counts.tolist(), strict=True))


def popularity(dataset: Dataset) -> dict[str, int]:
    """How often each item was taken, leaving out the last interaction of every user."""
    return counts_of(dataset, np.setdiff1d(np.arange(len(dataset.codes)), dataset.starts[1:] - 1))


# --- where to cut ----------------------------------------------------------------------------------------------------


def last_one(dataset: Dataset) -> Cut:
    """Leave one out by time."""
    check_times(dataset)
    ends = dataset.starts[1:] - 1
    cases = _cases(dataset, {user: int(end) for user, end in enumerate(ends)})
    return Cut(cases, np.setdiff1d(np.arange(len(dataset.codes)), ends))


def by_time(dataset: Dataset, share: float = 0.1) -> Cut:
    """The last `share` of all interactions is the future: a user's first one in it is asked, knowing what is older.

    Nothing from that point on is learnt from, so max(train time) < min(test time).
    """
    check_times(dataset, of_one_clock=True)
    assert dataset.times is not None, "checked"
    now = float(np.quantile(dataset.times, 1 - share, method="lower"))
    past = dataset.times < now
    if not past.any():
        raise DataError(
            f"{dataset.name}: {1 - share:.0%} of all interactions are at the earliest time; nothing is past"
        )
    before = np.add.reduceat(past, dataset.starts[:-1])
    firsts = dataset.starts[:-1] + before
    asked = np.flatnonzero((before > 0) & (firsts < dataset.starts[1:]))
    return Cut(_cases(dataset, {int(user): int(firsts[user]) for user in asked}), np.flatnonzero(past))


def new_users(dataset: Dataset, n_known: int = 3, share: float = 0.1, seed: int = 0) -> Cut:
    """A `share` of the users, drawn by the seed, is new: their first `n_known` interactions are all that is known."""
    check_times(dataset)
    lengths = np.diff(dataset.starts)
    long_enough = np.flatnonzero(lengths > n_known)
    n_new = max(1, round(share * len(lengths)))
    if n_new > len(long_enough):
        raise DataError(
            f"{dataset.name}: {n_new} new users need more than {n_known} interactions each, and {len(long_enough)} "
            "have them; ask for a smaller `share` or fewer `known`"
        )
    drawn = rng_for(seed, "cold users").permutation(long_enough)[:n_new]
    cases = _cases(dataset, {int(user): int(dataset.starts[user]) + n_known for user in sorted(drawn.tolist())})
    return Cut(cases, np.flatnonzero(~np.isin(dataset.user_of, drawn)))


def new_items(dataset: Dataset, share: float = 0.1, seed: int = 0) -> Cut:
    """A `share` of the items, drawn by the seed, is new: asked for among each other, and nowhere else to be seen."""
    check_times(dataset)
    n_new = max(2, round(share * len(dataset.item_ids)))
    pool = np.sort(rng_for(seed, "cold items").permutation(len(dataset.item_ids))[:n_new]).astype(np.int32)
    cold, users = np.isin(dataset.codes, pool), dataset.user_of
    targets = {int(users[position]): int(position) for position in np.flatnonzero(cold)}  # the last one stays
    cases = _cases(dataset, targets, ~cold)
    return Cut(cases, np.flatnonzero(~cold), pool)


def at_random(dataset: Dataset, seed: int = 0) -> Cut:
    """One interaction of each user, drawn by the seed, and the others in a drawn order: files have orders, too."""
    shuffled, targets = {}, {}
    for user, user_id in enumerate(dataset.user_ids):
        mine = dataset.of(user)
        order = rng_for(seed, "hold out", user_id).permutation(np.arange(mine.start, mine.stop))
        targets[user], shuffled[user] = int(order[0]), order[1:]
    held_out = np.fromiter(targets.values(), dtype=np.int64)
    cases = (_case(dataset, user, shuffled[user], target) for user, target in targets.items())
    return Cut(tuple(filter(None, cases)), np.setdiff1d(np.arange(len(dataset.codes)), held_out))


def cut(
    dataset: Dataset, name: SplitName = "leave-one-out", *, share: float = 0.1, known: int = 3, seed: int = 0
) -> Cut:
    """The cut of this name. `share`: of interactions (temporal), users or items (cold ones); `known`: of cold users."""
    cuts: Mapping[SplitName, Callable[[], Cut]] = {
        "leave-one-out": lambda: last_one(dataset),
        "temporal": lambda: by_time(dataset, share),
        "cold-users": lambda: new_users(dataset, known, share, seed),
        "cold-items": lambda: new_items(dataset, share, seed),
        "hold-out": lambda: at_random(dataset, seed),
    }
    made = cuts[name]()
    if not made.cases:
        raise DataError(f"{dataset.name}: no user has both a history and an answer under the split {name!r}")
    return made


def _cases(
    dataset: Dataset, targets: Mapping[int, int], allowed: npt.NDArray[np.bool_] | None = None
) -> tuple[Case, ...]:
    """Cases of the users whose target has something before it; of that only what is allowed."""
    found = []
    for user, target in targets.items():
        before = np.arange(dataset.starts[user], target)
        found.append(_case(dataset, user, before if allowed is None else before[allowed[before]], target))
    return tuple(case for case in found if case is not None)


def _case(dataset: Dataset, user: int, before: Positions, target: int) -> Case | None:
    """None is left of a history that has nothing but the answer: it would show it."""
    history = before[dataset.codes[before] != dataset.codes[target]]
    return Case(user, history, target) if len(history) else None


def check_times(dataset: Dataset, *, of_one_clock: bool = False) -> None:
    """Time must say something: a column of zeros would hand the order of the file out as history.

    `of_one_clock` asks for more than an order within each user: times that are those of a calendar.
    """
    if dataset.times is None:
        raise DataError(
            f'{dataset.name}: has no column of times, so there is no last interaction to leave out; split = "hold-out" '
            "draws one"
        )
    if np.isnan(dataset.times).any():
        where = int(np.argmax(np.isnan(dataset.times)))
        user_id, item_id = dataset.user_ids[dataset.user_of[where]], dataset.item_ids[dataset.codes[where]]
        raise DataError(f"{dataset.name}, user {user_id!r}: the interaction with item {item_id!r} has no time")
    if not dataset.has_order:
        raise DataError(
            f"{dataset.name}: all times of a user are equal, for every user; they cannot say which came last; "
            'split = "hold-out" draws one'
        )
    if of_one_clock and not dataset.has_calendar:
        raise DataError(
            f"{dataset.name}: times run from {dataset.times.min():g} to {dataset.times.max():g}, which are no seconds "
            'since 1970 but positions; they order a user, split = "leave-one-out", but do not compare users'
        )
