"""Queries in a file: one row a user, with history, candidates and perhaps the target.

| column | holds |
|---|---|
| user_id | text, once in the file |
| history | list of item ids, oldest first |
| candidates | list of item ids |
| target | an item id or a list of them; absent or always empty if there is only ranking to do |
| history_ratings, history_times | lists beside the history, where known; optional |
| user.NAME, context.NAME | what is known of the person or the moment: text, or numbers; optional |

What is written here can be read here, and gives the same queries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from fewrec_prompt.data.catalogue import OnProblem, fields_of, read_catalogue
from fewrec_prompt.data.columns import Column, Table
from fewrec_prompt.data.queries import QuerySet, no_problems
from fewrec_prompt.data.tables import read_table, sources
from fewrec_prompt.data.training import from_pairs
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Fields, Interaction, Item, Query

COLUMNS = (
    Column("user_id", "id"),
    Column("history", "ids"),
    Column("candidates", "ids"),
    Column("target", "id_or_ids", required=False),
    Column("history_ratings", "numbers", required=False),
    Column("history_times", "numbers", required=False),
)


KNOWN = ("user.", "context.")  # how columns begin that say something of the person or the moment


def own_queries(
    items: Path,
    queries: Path,
    *,
    interactions: Path | None = None,
    on_problem: OnProblem = "error",
    n_users: int | None = None,
    n_candidates: int | None = None,
) -> QuerySet:
    """Queries and catalogue from files; see `read_queries`."""
    shelf = read_catalogue(items)
    found = read_queries(
        queries,
        shelf.items,
        interactions=interactions,
        on_problem=on_problem,
        n_users=n_users,
        n_candidates=n_candidates,
    )
    problems = found.problems | {"empty_titles": shelf.empty_titles}
    name = str(items) if items.name in found.sources else items.name
    return replace(found, problems=problems, sources={name: shelf.sha256} | found.sources)


def read_queries(
    path: Path,
    items: Mapping[str, Item],
    *,
    interactions: Path | None = None,
    on_problem: OnProblem = "error",
    n_users: int | None = None,
    n_candidates: int | None = None,
    on_repeats: OnProblem | None = None,
) -> QuerySet:
    """The queries in a file, over a catalogue of items: the first `n_users`, or all (None, or more than there are).

    A target that is not among the candidates, a candidate twice, an item twice in a history or in history and
    candidates, and ids that are not in the catalogue are errors; with on_problem = "count" such queries are kept,
    duplicates merged and unknown ids dropped, and the queries with each problem are counted. Whatever is counted, no
    query may be without history or candidates, or have fewer than `n_candidates`, and all have a target or none.

    `on_repeats` says what becomes of an item twice in a history, where that is another matter: people buy things again.

    Popularity counts the histories of all queries in the file, or a file of `interactions` (user_id, item_id); what a
    user had to do with the own targets is left out. Whoever read the catalogue knows how many titles were empty; here
    that count is 0.
    """
    if n_users is not None and n_users < 1:
        raise DataError(f"{path}: {n_users} users were asked; ask for one at least")
    table = read_table(path, COLUMNS, rest=True)
    rows = _rows(table)
    if not rows:
        raise DataError(f"{path}: holds no queries")
    _check_users(table)
    _check_targets(table, rows)
    used = rows[:n_users]
    problems = Counter(no_problems())
    rules = (on_problem, on_repeats or on_problem)
    queries = tuple(_query(row, items, rules, problems, n_candidates) for row in used)
    for prefix, known in zip(KNOWN, zip(*((query.user, query.context) for query in queries), strict=True), strict=True):
        _check_kinds(path, prefix, known)
    qrels = {row.user_id: frozenset(row.target) for row in used if row.target}
    table_of_others = None if interactions is None else _interactions(interactions)
    training = from_pairs(items, _pairs(rows, table_of_others))
    files = [table_of_others] if table_of_others else []
    return QuerySet(queries, qrels, dict(problems), training.popularity, sources(table, *files), training)


def named_in(path: Path, queries: QuerySet) -> QuerySet:
    """The queries of people who have a row in a file. Raises DataError if nobody has."""
    table = read_table(path, [Column("user_id", "id")])
    found = queries.of_people(set(table["user_id"]).__contains__)
    if not found.queries:
        raise DataError(f"{path}: names none of the {len(queries.queries)} people of this part; look at its user_id")
    return replace(found, sources=found.sources | {path.name: table.sha256})


def write_queries(path: Path, queries: QuerySet, note: Mapping[str, Any] | None = None) -> None:
    """Write a file that `read_queries` reads, with a note of where it is from. Raises StorageError if it cannot.

    It appears whole or not at all.
    """
    from fewrec_prompt.data.parquet_files import write

    columns: dict[str, list[Any]] = {
        "user_id": [query.user_id for query in queries.queries],
        "history": [[taken.item.id for taken in query.history] for query in queries.queries],
        "candidates": [[item.id for item in query.candidates] for query in queries.queries],
    }
    if queries.qrels:
        columns["target"] = [sorted(queries.qrels.get(query.user_id, ())) for query in queries.queries]
    for name, values in (("history_ratings", _ratings(queries)), ("history_times", _times(queries))):
        if any(value is not None for row in values for value in row):
            columns[name] = values
    columns |= _known_columns("user.", [query.user for query in queries.queries])
    columns |= _known_columns("context.", [query.context for query in queries.queries])
    write(path, columns, note)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the file, its cells in the order of COLUMNS, before it is known whether its ids mean anything."""

    table: Table
    number: int
    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    target: tuple[str, ...]
    ratings: tuple[float, ...]
    times: tuple[float, ...]

    def known(self, prefix: str) -> Fields:
        """What the columns of this prefix say, without it."""
        cells = self.table.rest[self.number].items()
        return fields_of({name[len(prefix) :]: cell for name, cell in cells if name.startswith(prefix)})

    def error(self, column: str, message: str) -> DataError:
        return DataError(f"{self.table.place(self.number, column)}, user {self.user_id!r}: {message}")


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: str
    column: str
    message: str
    is_repeat: bool = False  # an item twice in a history, which may be so in the data


def _rows(table: Table) -> list[_Row]:
    columns = zip(*(table.columns.get(column.name, repeat(())) for column in COLUMNS), strict=False)
    return [_Row(table, number, *cells) for number, cells in enumerate(columns)]


def _check_users(table: Table) -> None:
    """Rankings are filed by user id, so it stands for one query."""
    seen: dict[str, int] = {}
    for row, user_id in enumerate(table["user_id"]):
        if user_id in seen:
            raise DataError(
                f"{table.place(row, 'user_id')}: user {user_id!r} has a query above (its row {seen[user_id] + 1}); "
                "give each query of a person an id of its own, such as 'u7#2'"
            )
        seen[user_id] = row


def _check_targets(table: Table, rows: Sequence[_Row]) -> None:
    without = [row for row in rows if not row.target]
    if without and len(without) < len(rows):
        raise without[0].error("target", "no target, but other queries have one; give all of them one, or none")


def _check_kinds(path: Path, prefix: str, known: Iterable[Fields]) -> None:
    """A column of a file has one kind, and what is read here must be writable again."""
    kinds: dict[str, type] = {}
    for name, value in (field for fields in known for field in fields):
        if kinds.setdefault(name, type(value)) is not type(value):
            raise DataError(
                f"{path}, column {prefix + name!r}: holds {kinds[name].__name__} and {type(value).__name__}; "
                "write text, whole numbers or numbers with a point, one of them in all rows"
            )


def _query(
    row: _Row,
    items: Mapping[str, Item],
    rules: tuple[OnProblem, OnProblem],
    problems: Counter[str],
    n_candidates: int | None,
) -> Query:
    """The row as a query; what is wrong with it is an error or counted. Duplicates merge, unknown ids go."""
    _check_lengths(row, n_candidates)
    found = list(_problems(row, items))
    if first := next((problem for problem in found if rules[problem.is_repeat] == "error"), None):
        raise row.error(first.column, f'{first.message}; to score such queries and count them set on_problem = "count"')
    problems.update({problem.kind for problem in found})
    history = tuple(
        Interaction(items[item_id], _known(rating), _known(time))
        for item_id, rating, time in zip(row.history, _beside(row, row.ratings), _beside(row, row.times), strict=True)
        if item_id in items
    )
    candidates = tuple(items[item_id] for item_id in dict.fromkeys(row.candidates) if item_id in items)
    for column, left in (("history", history), ("candidates", candidates)):
        if not left:
            raise row.error(column, "none of its items is in the catalogue")
    return Query(row.user_id, history, candidates, *map(row.known, KNOWN))


def _check_lengths(row: _Row, n_candidates: int | None) -> None:
    if not row.history:
        raise row.error("history", "the history is empty; a query needs one item at least")
    if not row.candidates:
        raise row.error("candidates", "there are no candidates")
    if n_candidates is not None and len(row.candidates) < n_candidates:
        raise row.error("candidates", f"{len(row.candidates)} candidates, but {n_candidates} were asked")
    for column, values in (("history_ratings", row.ratings), ("history_times", row.times)):
        if values and len(values) != len(row.history):
            raise row.error(column, f"{len(values)} values beside {len(row.history)} history items")


def _problems(row: _Row, items: Mapping[str, Item]) -> Iterator[_Problem]:
    """All that is wrong with a row, in the order in which a person would want to mend it."""
    for column, ids in (("history", row.history), ("candidates", row.candidates), ("target", row.target)):
        if unknown := [item_id for item_id in ids if item_id not in items]:
            yield _Problem("unknown_ids", column, f"item {unknown[0]!r} is not in the catalogue")
    if twice := _repeated(row.candidates):
        yield _Problem("duplicate_candidates", "candidates", f"item {twice[0]!r} stands twice among the candidates")
    if taken := _within(row.target, row.history):
        yield _Problem("history_repeats", "history", f"the target {taken[0]!r} is among the history")
    if taken := _within(row.candidates, row.history):
        yield _Problem("history_repeats", "candidates", f"item {taken[0]!r} is already in the history")
    if twice := _repeated(row.history):
        yield _Problem("history_repeats", "history", f"item {twice[0]!r} stands twice in the history", is_repeat=True)
    if missing := [item_id for item_id in row.target if item_id not in row.candidates]:
        yield _Problem("missing_target", "candidates", f"the target {missing[0]!r} is not among the candidates")


def _interactions(path: Path) -> Table:
    return read_table(path, [Column("user_id", "id", coded=True), Column("item_id", "id", coded=True)])


def _pairs(rows: Sequence[_Row], interactions: Table | None) -> Iterator[tuple[str, str]]:
    """Who took what, from the file of interactions or else the histories; nothing of users with their own targets."""
    if interactions is None:
        yield from ((row.user_id, item_id) for row in rows for item_id in row.history if item_id not in row.target)
        return
    users, items = interactions["user_id"], interactions["item_id"]
    targets = {row.user_id: set(row.target) for row in rows}
    for user, item in zip(users.codes.tolist(), items.codes.tolist(), strict=True):
        user_id, item_id = users.values[user], items.values[item]
        if item_id not in targets.get(user_id, ()):
            yield user_id, item_id


def _repeated(ids: Iterable[str]) -> list[str]:
    return [item_id for item_id, count in Counter(ids).items() if count > 1]


def _within(ids: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [item_id for item_id in ids if item_id in known]


def _beside(row: _Row, values: tuple[float, ...]) -> tuple[float, ...]:
    return values or (math.nan,) * len(row.history)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _ratings(queries: QuerySet) -> list[list[float | None]]:
    return [[taken.rating for taken in query.history] for query in queries.queries]


def _times(queries: QuerySet) -> list[list[float | None]]:
    return [[taken.time for taken in query.history] for query in queries.queries]


def _known_columns(prefix: str, known: Sequence[Fields]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for fields in known for name, _ in fields)  # in the order of the data
    return {prefix + name: [dict(fields).get(name) for fields in known] for name in names}
