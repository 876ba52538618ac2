"""Leave one out by time: what is asked, what is the answer, and what must not leak from one into the other."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.splits import leave_one_out, popularity
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Query

N_ITEMS = 40
Row = tuple[str, int, float]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[list[Row]], Dataset]:
    """A data set of 40 items with these interactions: (user, item, time)."""

    def make(rows: list[Row]) -> Dataset:
        items = "".join(f"{item}\ttitle {item}\n" for item in range(N_ITEMS))
        (tmp_path / "made.item").write_text("item_id:token\ttitle:token_seq\n" + items)
        inter = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
        (tmp_path / "made.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + inter)
        return read_dataset(tmp_path, "recbole")

    return make


def some_rows(n_users: int = 12, per_user: int = 8) -> list[Row]:
    """Every user with distinct items, at times that no other interaction has."""
    rng = np.random.default_rng(0)
    times = rng.permutation(n_users * per_user).astype(float) + 1
    taken = [(f"u{user}", int(item)) for user in range(n_users) for item in rng.permutation(N_ITEMS)[:per_user]]
    return [(user, item, time) for (user, item), time in zip(taken, times.tolist(), strict=True)]


def test_the_target_is_the_last_interaction_and_the_history_the_ones_before(made: Callable[..., Dataset]) -> None:
    data = made([("u", 3, 30), ("u", 1, 10), ("u", 2, 20), ("u", 4, 40)])

    split = leave_one_out(data, n_users=1, n_history=2, n_candidates=5)

    assert [taken.item.id for taken in split.queries[0].history] == ["2", "3"]
    assert split.qrels == {"u": frozenset({"4"})}


def test_among_equal_times_the_last_row_of_the_file_is_the_last(made: Callable[..., Dataset]) -> None:
    data = made([("u", 9, 1), ("u", 5, 2), ("u", 3, 2), ("u", 7, 2)])

    split = leave_one_out(data, n_users=1, n_candidates=5)

    assert [taken.item.id for taken in split.queries[0].history] == ["9", "5", "3"]
    assert split.qrels == {"u": frozenset({"7"})}


def test_candidates_are_the_target_and_unseen_items_each_once(made: Callable[..., Dataset]) -> None:
    rows = some_rows()
    split = leave_one_out(made(rows), n_users=12, n_candidates=20)

    for query in split.queries:
        ids = [item.id for item in query.candidates]
        seen = {str(item) for user, item, _ in rows if user == query.user_id}
        assert len(ids) == len(set(ids)) == 20
        assert seen & set(ids) == split.qrels[query.user_id]


def test_the_target_is_never_in_the_history_even_if_it_was_taken_before(made: Callable[..., Dataset]) -> None:
    data = made([("u", 1, 1), ("u", 2, 2), ("u", 1, 3), ("u", 3, 4), ("u", 1, 5)])

    split = leave_one_out(data, n_users=1, n_history=2, n_candidates=5)

    assert [taken.item.id for taken in split.queries[0].history] == ["2", "3"]


def test_a_user_needs_an_earlier_interaction_with_another_item(made: Callable[..., Dataset]) -> None:
    data = made([("once", 1, 1), ("again", 2, 1), ("again", 2, 2), ("fine", 1, 1), ("fine", 2, 2)])

    split = leave_one_out(data, n_users=None, n_candidates=5)

    assert [query.user_id for query in split.queries] == ["fine"]


def test_shuffling_the_rows_of_a_file_with_unique_times_changes_nothing(made: Callable[..., Dataset]) -> None:
    rows = some_rows()
    first = leave_one_out(made(rows), n_users=5, seed=3)
    order = np.random.default_rng(1).permutation(len(rows))

    again = leave_one_out(made([rows[index] for index in order]), n_users=5, seed=3)

    for part in fields(first):
        if part.name not in ("sources", "training"):
            assert getattr(again, part.name) == getattr(first, part.name)
    assert again.sources["made.inter"] != first.sources["made.inter"]


def test_test_users_and_selection_users_are_disjoint_and_all(made: Callable[..., Dataset]) -> None:
    data = made(some_rows())

    test = {query.user_id for query in leave_one_out(data, n_users=5).queries}
    selection = {query.user_id for query in leave_one_out(data, n_users=5, split="selection").queries}

    assert len(test) == 5
    assert not test & selection
    assert test | selection == set(data.user_ids)


def test_fewer_users_are_the_first_of_the_same_draw_and_are_asked_the_same(made: Callable[..., Dataset]) -> None:
    data = made(some_rows())

    assert leave_one_out(data, n_users=3).queries == leave_one_out(data, n_users=9).queries[:3]


def test_another_seed_draws_other_users_and_candidates(made: Callable[..., Dataset]) -> None:
    data = made(some_rows())

    def users(seed: int) -> list[str]:
        return [query.user_id for query in leave_one_out(data, n_users=6, seed=seed).queries]

    def candidates(seed: int) -> set[tuple[str, ...]]:
        queries: tuple[Query, ...] = leave_one_out(data, n_users=None, seed=seed).queries
        return {tuple(item.id for item in query.candidates) for query in queries}

    assert users(0) == users(0) != users(1)
    assert not candidates(0) & candidates(1)


def test_popularity_never_counts_a_last_interaction(made: Callable[..., Dataset]) -> None:
    """Not even of users outside the split, and of users with one interaction nothing."""
    data = made([("u", 1, 1), ("u", 2, 2), ("v", 2, 1), ("v", 3, 2), ("w", 1, 5), ("u", 1, 0)])

    counts = popularity(data)

    assert {item_id: count for item_id, count in counts.items() if count} == {"1": 2, "2": 1}
    assert len(counts) == N_ITEMS
    assert leave_one_out(data, n_users=1, n_candidates=5).popularity == counts


def test_a_query_set_counts_every_kind_of_problem_even_if_there_is_none(made: Callable[..., Dataset]) -> None:
    assert leave_one_out(made(some_rows()), n_users=1).problems == {
        "missing_target": 0,
        "duplicate_candidates": 0,
        "history_repeats": 0,
        "unknown_ids": 0,
        "empty_titles": 0,
    }


def test_a_column_of_equal_times_cannot_say_what_came_last(made: Callable[..., Dataset]) -> None:
    data = made([("u", 1, 0), ("u", 2, 0), ("v", 1, 0), ("v", 2, 0)])

    with pytest.raises(DataError, match="made: all times of a user are equal, for every user"):
        leave_one_out(data, n_users=1, n_candidates=5)


def test_times_that_only_tell_users_apart_are_no_times(made: Callable[..., Dataset]) -> None:
    data = made([("u", 1, 7), ("u", 2, 7), ("v", 1, 9), ("v", 2, 9)])

    with pytest.raises(DataError, match="all times of a user are equal"):
        leave_one_out(data, n_users=1, n_candidates=5)


def test_a_file_without_times_has_no_last_interaction(tmp_path: Path) -> None:
    (tmp_path / "t.item").write_text("item_id:token\ttitle:token_seq\n1\ta\n2\tb\n")
    (tmp_path / "t.inter").write_text("user_id:token\titem_id:token\nu\t1\nu\t2\n")

    with pytest.raises(DataError, match="t: has no column of times"):
        leave_one_out(read_dataset(tmp_path, "recbole"), n_users=1)


def test_a_missing_time_is_named_by_user_and_item(made: Callable[..., Dataset]) -> None:
    data = made([("t", 4, 1), ("u", 1, 1), ("u", 2, ""), ("v", 3, 3)])  # type: ignore[list-item]  # a gap in the file

    with pytest.raises(DataError, match="made, user 'u': the interaction with item '2' has no time"):
        leave_one_out(data, n_users=1, n_candidates=5)


def test_too_few_unseen_items_are_an_error_that_says_how_many_there_are(made: Callable[..., Dataset]) -> None:
    data = made([("u", item, item) for item in range(N_ITEMS - 3)])

    assert len(leave_one_out(data, n_users=1, n_candidates=4).queries[0].candidates) == 4
    with pytest.raises(DataError, match="user 'u': 5 candidates were asked, but only 3 items are unseen; ask for 4"):
        leave_one_out(data, n_users=1, n_candidates=5)


@pytest.mark.parametrize("n_users", [0, 13])
def test_more_users_than_there_are_is_an_error(made: Callable[..., Dataset], n_users: int) -> None:
    with pytest.raises(DataError, match=rf"{n_users} users were asked, but 12 of 12 have"):
        leave_one_out(made(some_rows()), n_users=n_users)


def test_a_selection_without_users_is_an_error(made: Callable[..., Dataset]) -> None:
    with pytest.raises(DataError, match="all 12 eligible users are test users"):
        leave_one_out(made(some_rows()), n_users=12, split="selection")


@pytest.mark.parametrize("limits", [{"n_history": 0}, {"n_candidates": 1}])
def test_a_query_needs_a_history_and_a_choice(made: Callable[..., Dataset], limits: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least"):
        leave_one_out(made(some_rows()), n_users=1, **limits)  # type: ignore[arg-type]  # only the two numbers


def test_nothing_in_a_query_says_which_candidate_is_the_answer() -> None:
    assert [field.name for field in fields(Query)] == ["user_id", "history", "candidates", "user", "context"]


def test_the_target_of_movielens_stands_anywhere_among_the_candidates(films: Dataset) -> None:
    """χ² over 20 places and 943 users; 43.8 is passed by chance once in a thousand seeds."""
    split = leave_one_out(films, n_users=None)
    places = np.zeros(20)
    for query in split.queries:
        (target,) = split.qrels[query.user_id]
        places[[item.id for item in query.candidates].index(target)] += 1

    assert places.sum() == 943
    assert ((places - 943 / 20) ** 2 / (943 / 20)).sum() < 43.8


def test_the_other_candidates_of_movielens_are_drawn_from_the_whole_catalogue(films: Dataset) -> None:
    drawn: set[str] = set()
    for query in leave_one_out(films, n_users=None).queries:
        drawn |= {item.id for item in query.candidates}

    assert len(drawn) > 1670  # 17,917 draws out of 1,682: almost none is missed


def test_the_selection_users_of_movielens_are_the_other_743(films: Dataset) -> None:
    test, selection = leave_one_out(films), leave_one_out(films, split="selection")

    assert (len(test.queries), len(selection.queries)) == (200, 743)
    assert not test.qrels.keys() & selection.qrels.keys()
    assert sum(test.popularity.values()) == 100_000 - 943
    assert all(1 <= len(query.history) <= 10 for query in test.queries + selection.queries)
    targets = test.qrels | selection.qrels
    for query in test.queries + selection.queries:
        assert not targets[query.user_id] & {taken.item.id for taken in query.history}
