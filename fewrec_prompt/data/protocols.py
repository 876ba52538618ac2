"""Files in which other people's protocols give their test cases: read as queries over the items of a data set.

| form | a row | as in |
|---|---|---|
| labelled | user_id, history, history_label (or liked, disliked), target, label | TALLRec, arXiv 2305.00447 |
| retrieved | user_id, history, target, target_title, candidate_titles_by_score | NIR, arXiv 2304.03153 |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.data.columns import Column, Table
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.queries import QuerySet, no_problems
from fewrec_prompt.data.tables import read_table
from fewrec_prompt.data.titles import film_title, year_in
from fewrec_prompt.data.training import part_at
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Interaction, Query

FormName = Literal["labelled", "retrieved"]
USER, TARGET = Column("user_id", "id"), Column("target", "id")
LIKED, DISLIKED = 5.0, 1.0  # stars: as ratings 1 and 0 would both be dislikes
LISTS = tuple(Column(name, "ids", required=False) for name in ("history", "liked", "disliked"))


@dataclass(frozen=True, slots=True)
class _Case:
    """A row of such a file: who, what is known with its label where there is one, and what is asked."""

    user_id: str
    history: tuple[tuple[str, float | None], ...]
    candidates: tuple[str, ...]
    target: str
    is_answer: bool = True


def read_protocol(path: Path, form: FormName, dataset: Dataset, n_users: int | None = None) -> QuerySet:
    """The queries in a file of this form, the first `n_users` rows or all.

    A query is called user_id, with "#2" and so on behind it from a user's second row on. A labelled row has one
    candidate; where it is not liked, its answer is the empty set. Items that are not in the catalogue are dropped and
    counted, as are repeats in a history and answers that were not retrieved: the protocols are what they are. What
    users had to do with their targets counts for no popularity. Raises DataError for a file that is not of the form.
    """
    read: Callable[[Path, Dataset], tuple[Table, list[_Case]]] = {"labelled": _labelled, "retrieved": _retrieved}[form]
    table, cases = read(path, dataset)
    if not cases:
        raise DataError(f"{path}: holds no queries")
    asked = cases[:n_users]
    problems = Counter(no_problems(dataset.empty_titles))
    names = _names(case.user_id for case in asked)
    queries = tuple(_query(case, name, dataset, problems, path) for case, name in zip(asked, names, strict=True))
    qrels = {
        query.user_id: frozenset({case.target} if case.is_answer else ())
        for query, case in zip(queries, asked, strict=True)
    }
    training = part_at(dataset, _without(dataset, {(case.user_id, case.target) for case in cases}))
    sources = dict(dataset.sources) | {path.name: table.sha256}
    return QuerySet(queries, qrels, dict(problems), training.popularity, sources, training)


def read_untested(path: Path, tested: Path, form: FormName, dataset: Dataset, say: Say = quiet) -> QuerySet:
    """All queries in a file but those of people who are asked in the file `tested`: protocols that part by time have
    people on both sides."""
    people = {query.person for query in read_protocol(tested, form, dataset).queries}
    whole = read_protocol(path, form, dataset)
    found = whole.of_people(lambda person: person not in people)
    if n_left := len(whole.queries) - len(found.queries):
        say(f"{path.name}: {n_left} of {len(whole.queries)} rows are of people who are tested, and are left out")
    return found


def drawn_rows(draws: Path, rows: Path, n: int, seed: int) -> tuple[str, ...]:
    """What the queries are called that a protocol has drawn to be learnt from: `n` rows of the file `rows`.

    `draws` has the columns seed, k and train_rows (places from 0, in the order of the draw); of the smallest draw of
    this seed with `n` rows or more it is the first. Raises DataError where there is none.
    """
    table = read_table(draws, [Column("seed", "number"), Column("k", "number"), Column("train_rows", "numbers")])
    own = [places for one, places in zip(table["seed"], table["train_rows"], strict=True) if one == seed]
    chosen = min((places for places in own if len(places) >= n), key=len, default=None)
    if chosen is None:
        most, seeds = max(map(len, own), default=0), sorted({int(one) for one in table["seed"]})
        raise DataError(
            f"{draws}: {n} rows of seed {seed} were asked, but it has {most} of it; its seeds are "
            f"{', '.join(map(str, seeds))}"
        )
    names = _names(read_table(rows, [USER])["user_id"])
    return tuple(names[int(place)] for place in chosen[:n])


def _labelled(path: Path, dataset: Dataset) -> tuple[Table, list[_Case]]:
    columns = [USER, TARGET, *LISTS, Column("history_label", "numbers", required=False), Column("label", "number")]
    table = read_table(path, columns)
    cases = []
    for row in range(table.n_rows):
        target, label = table["target"][row], float(table["label"][row])
        if label not in (0, 1):
            raise DataError(f"{table.place(row, 'label')}: expected 0 or 1, found {label:g}")
        cases.append(_Case(table["user_id"][row], _marked(table, row), (target,), target, label == 1))
    return table, cases


def _marked(table: Table, row: int) -> tuple[tuple[str, float | None], ...]:
    """History items with LIKED or DISLIKED for a rating: templates ask for more than 3 stars, or 4 at least."""
    if "history" in table.columns and "history_label" in table.columns:
        ids, marks = table["history"][row], table["history_label"][row]
        if len(ids) != len(marks):
            raise DataError(f"{table.place(row, 'history_label')}: {len(marks)} labels beside {len(ids)} history items")
        return tuple((item_id, LIKED if mark else DISLIKED) for item_id, mark in zip(ids, marks, strict=True))
    if "liked" in table.columns and "disliked" in table.columns:
        return tuple(
            (item_id, mark) for name, mark in (("liked", LIKED), ("disliked", DISLIKED)) for item_id in table[name][row]
        )
    raise DataError(f"{table.path}: needs the columns history and history_label, or liked and disliked")


def _retrieved(path: Path, dataset: Dataset) -> tuple[Table, list[_Case]]:
    titles = Column("candidate_titles_by_score", "ids")
    table = read_table(path, [USER, TARGET, Column("history", "ids"), Column("target_title", "text"), titles])
    ids: dict[str, str] = {}
    for item in dataset.items.values():
        ids.setdefault(_bare(item.title), item.id)
    cases = []
    for row in range(table.n_rows):
        target = table["target"][row]
        mine = ids | {_bare(table["target_title"][row]): target}  # the one of two films of this title that was meant
        candidates = tuple(mine.get(_bare(title), title) for title in table[titles.name][row])
        history = tuple((item_id, None) for item_id in table["history"][row])
        cases.append(_Case(table["user_id"][row], history, candidates, target))
    return table, cases


def _bare(title: str) -> str:
    """A film's title with the article in front and without its year."""
    shown = film_title(title, None)
    return shown.rpartition(" (")[0] if year_in(shown) else shown


def _query(case: _Case, name: str, dataset: Dataset, problems: Counter[str], path: Path) -> Query:
    items = dataset.items
    wanted = [item_id for item_id, _ in case.history]
    problems["unknown_ids"] += any(item_id not in items for item_id in (*wanted, *case.candidates))
    problems["history_repeats"] += len(set(wanted)) < len(wanted) or bool({*wanted} & {*case.candidates, case.target})
    problems["missing_target"] += case.is_answer and case.target not in case.candidates
    history = tuple(Interaction(items[item_id], rating) for item_id, rating in case.history if item_id in items)
    candidates = tuple(items[item_id] for item_id in dict.fromkeys(case.candidates) if item_id in items)
    if not history or not candidates:
        raise DataError(f"{path}, user {case.user_id!r}: no item of its history or candidates is in the catalogue")
    return Query(name, history, candidates, dataset.users.get(case.user_id, ()))


def _names(user_ids: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for user_id in user_ids:
        seen[user_id] += 1
        names.append(user_id if seen[user_id] == 1 else f"{user_id}#{seen[user_id]}")
    return names


def _without(dataset: Dataset, pairs: set[tuple[str, str]]) -> Any:
    """Positions of all interactions but those of a user with one of the own targets."""
    users = {user_id: position for position, user_id in enumerate(dataset.user_ids)}
    items = {item_id: position for position, item_id in enumerate(dataset.item_ids)}
    known = [(users[user], items[item]) for user, item in pairs if user in users and item in items]
    n_items = len(dataset.item_ids)
    answers = np.array([user * n_items + item for user, item in known], dtype=np.int64)
    return np.flatnonzero(~np.isin(dataset.user_of.astype(np.int64) * n_items + dataset.codes, answers))
