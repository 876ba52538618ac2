"""Splits beside leave-one-out, samplers and filters: what leaks, what is balanced, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.bm25 import Index
from fewrec_prompt.data.candidates import SamplerName, sampler_of
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.filters import k_core, liked
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Sizes, Split, SplitName, cut, queries_of
from fewrec_prompt.errors import DataError

N_ITEMS = 60
START = 1_500_000_000
NAMES: tuple[SplitName, ...] = ("leave-one-out", "temporal", "cold-users", "cold-items", "hold-out")
Make = Callable[..., Dataset]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set out of (user, item, time) rows; items have a genre out of four, and titles that share words."""

    def made(rows: list[tuple[str, int, float]] | None = None, *, n_users: int = 40, times: bool = True) -> Dataset:
        rows = drawn(n_users) if rows is None else rows
        items = "".join(f"{item},word{item % 7} title {item},g{item % 4}\n" for item in range(N_ITEMS))
        (tmp_path / "items.csv").write_text("item_id,title,genres\n" + items)
        head = "user_id,item_id,rating" + (",timestamp" if times else "")
        cells = [f"{user},{item},{item % 5 + 1}" + (f",{time}" if times else "") for user, item, time in rows]
        (tmp_path / "interactions.csv").write_text("\n".join([head, *cells]) + "\n")
        return read_dataset(tmp_path, "tables")

    return made


def drawn(n_users: int) -> list[tuple[str, int, float]]:
    """Users take low items more often than high ones, at times that no other interaction has."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, N_ITEMS + 1)
    times = iter(START + rng.permutation(n_users * 12).astype(float))
    rows = []
    for user in range(n_users):
        taken = rng.choice(N_ITEMS, 12, replace=False, p=weights / weights.sum())
        rows += [(f"u{user:03}", int(item), next(times)) for item in taken]
    return rows


def asked(data: Dataset, name: SplitName = "leave-one-out", split: Split = "test", **sizes: int | None) -> QuerySet:
    given = {"users": None, "history": 5, "candidates": 5} | sizes
    return queries_of(data, cut(data, name, share=0.2), Sizes(**given), split=split)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_in_a_history_or_among_what_is_learnt_from(make: Make, name: SplitName) -> None:
    data = make()
    made = cut(data, name, share=0.2)

    assert made.cases
    assert not {case.target for case in made.cases} & set(made.training.tolist())
    for case in made.cases:
        assert data.codes[case.target] not in data.codes[case.history]
        assert (data.user_of[case.history] == case.user).all()
        assert data.user_of[case.target] == case.user
    found = asked(data, name)
    for query in found.queries:
        target = found.qrels[query.user_id]
        assert target <= {item.id for item in query.candidates}
        seen = {taken.item.id for taken in data.interactions(query.user_id)}
        assert not seen & ({item.id for item in query.candidates} - target)
        assert len({item.id for item in query.candidates}) == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_the_file_may_come_in_any_order(make: Make, name: SplitName) -> None:
    rows = drawn(20)
    first = asked(make(rows), name)
    if name == "hold-out":  # without times the order of the file is all there is; the draw is by user
        assert [query.user_id for query in first.queries] == [
            query.user_id for query in asked(make(rows), name).queries
        ]
        return
    again = asked(make([rows[index] for index in np.random.default_rng(2).permutation(len(rows))]), name)
    assert again.queries == first.queries
    assert again.qrels == first.qrels


def test_a_temporal_split_learns_from_nothing_that_comes_after_the_first_answer(make: Make) -> None:
    data = make()
    made = cut(data, "temporal", share=0.2)

    assert data.times is not None
    assert data.times[made.training].max() < min(data.times[case.target] for case in made.cases)
    assert all(data.times[case.history].max() < data.times[case.target] for case in made.cases)
    assert 0.75 < len(made.training) / len(data.codes) < 0.85


def test_cold_users_have_the_first_few_interactions_and_teach_nobody(make: Make) -> None:
    data = make()
    made = cut(data, "cold-users", share=0.2, known=3)

    new = {case.user for case in made.cases}
    assert len(new) == 8
    assert not new & set(data.user_of[made.training].tolist())
    for case in made.cases:
        start = int(data.starts[case.user])
        assert case.history.tolist() == [start, start + 1, start + 2]
        assert case.target == start + 3


def test_cold_items_compete_with_each_other_and_are_seen_nowhere(make: Make) -> None:
    data = make()
    made = cut(data, "cold-items", share=0.5)

    assert made.pool is not None
    assert len(made.pool) == 30
    assert not np.isin(data.codes[made.training], made.pool).any()
    assert all(not np.isin(data.codes[case.history], made.pool).any() for case in made.cases)
    cold = {data.item_ids[code] for code in made.pool}
    found = queries_of(data, made, Sizes(None, 5, 5))
    assert {item.id for query in found.queries for item in query.candidates} <= cold
    assert all(found.popularity[item_id] == 0 for item_id in cold)


def test_a_hold_out_needs_no_times_and_forgets_the_order_of_the_file(make: Make) -> None:
    data = make(times=False)
    made = cut(data, "hold-out", seed=1)

    offsets = [case.target - data.starts[case.user] for case in made.cases]
    assert len(set(offsets)) > 6
    assert any(sorted(case.history.tolist()) != case.history.tolist() for case in made.cases)
    assert [case.target for case in made.cases] != [case.target for case in cut(data, "hold-out", seed=2).cases]
    assert [case.target for case in made.cases] == [case.target for case in cut(data, "hold-out", seed=1).cases]


@pytest.mark.parametrize("name", ["leave-one-out", "temporal", "cold-users", "cold-items"])
def test_a_split_by_time_needs_times_that_say_something(make: Make, name: SplitName) -> None:
    with pytest.raises(DataError, match=r'no column of times.* split = "hold-out" draws one'):
        cut(make(times=False), name)
    constant = [(user, item, START) for user, item, _ in drawn(5)]
    with pytest.raises(DataError, match="all times of a user are equal"):
        cut(make(constant), name)


def test_positions_order_a_user_but_do_not_compare_users(make: Make) -> None:
    rows = [(user, item, float(place % 12)) for place, (user, item, _) in enumerate(drawn(10))]
    assert len(cut(make(rows), "leave-one-out").cases) == 10
    with pytest.raises(DataError, match="times run from 0 to 11, which are no seconds since 1970 but positions"):
        cut(make(rows), "temporal")


def test_users_to_learn_from_are_nested_and_disjoint_from_all_others(make: Make) -> None:
    data = make()
    names: dict[tuple[Split, int], list[str]] = {
        (split, shots): [query.user_id for query in asked(data, split=split, users=10, shots=shots).queries]
        for split in ("test", "selection", "train")
        for shots in (4, 16)
    }
    parts = [set(names[split, 16]) for split in ("test", "selection", "train")]

    assert names["train", 4] == names["train", 16][:4]
    assert names["test", 4] == names["test", 16]
    assert [len(part) for part in parts] == [10, 14, 16]
    assert sum(map(len, parts)) == len(set().union(*parts))
    with pytest.raises(DataError, match="10 test users and 31 to learn from were asked, but there are 40"):
        asked(data, users=10, shots=31)
    with pytest.raises(DataError, match="say how many with `shots`"):
        asked(data, users=10, split="train")


# --- samplers --------------------------------------------------------------------------------------------------------


def sampled(data: Dataset, name: SamplerName, n: int | None = 6, seed: int = 0, **more: object) -> QuerySet:
    sampler = sampler_of(name, **more)  # type: ignore[arg-type]
    return queries_of(data, cut(data), Sizes(None, 5, n), seed=seed, sampler=sampler)


@pytest.mark.parametrize("name", ["uniform", "popularity", "category", "bm25", "full"])
def test_the_place_of_the_target_is_uniform_and_no_candidate_is_seen_or_twice(make: Make, name: SamplerName) -> None:
    data, n = make(n_users=40), 5
    places: Counter[int] = Counter()
    for seed in range(25):
        found = sampled(data, name, None if name == "full" else n, seed)
        for query in found.queries:
            ids = [item.id for item in query.candidates]
            (target,) = found.qrels[query.user_id]
            seen = {taken.item.id for taken in data.interactions(query.user_id)} - {target}
            assert len(set(ids)) == len(ids) == (49 if name == "full" else n)
            assert not seen & set(ids)
            places[ids.index(target) * n // len(ids)] += 1
    expected = sum(places.values()) / n
    assert sum((places[place] - expected) ** 2 / expected for place in range(n)) < 18.5  # χ², 4 degrees, p = 0.001


def test_popularity_cannot_tell_a_target_from_candidates_that_match_it(make: Make) -> None:
    """Its rank among them is uniform (the most popular have nobody above); among uniform ones it is near the top."""
    data = make(n_users=300)
    assert abs(mean_rank(sampled(data, "popularity", 5), 10, 20) - 2) < 0.3
    assert mean_rank(sampled(data, "uniform", 5), 0, 1) < 1.5


def mean_rank(found: QuerySet, lowest: int, highest: int) -> float:
    """How many candidates are more popular than the target, ties half; on average over targets that are not extreme."""
    ranks = []
    ordered = sorted(found.popularity.values())
    for query in found.queries:
        (target,) = found.qrels[query.user_id]
        if not ordered[lowest] <= found.popularity[target] <= ordered[-highest]:
            continue
        others = [
            found.popularity[item.id] - found.popularity[target] for item in query.candidates if item.id != target
        ]
        ranks.append(sum(0.5 if other == 0 else float(other > 0) for other in others))
    return float(np.mean(ranks))


def test_candidates_of_a_category_share_it_while_there_are_any(make: Make) -> None:
    data = make()
    found = sampled(data, "category", category="genres")
    for query in found.queries:
        (target,) = found.qrels[query.user_id]
        assert {dict(item.fields)["genres"] for item in query.candidates} == {dict(data.items[target].fields)["genres"]}
    assert all(len(query.candidates) == 40 for query in sampled(data, "category", 40).queries)
    with pytest.raises(DataError, match="no item has `category` = 'genre' among its fields; known: genres"):
        sampled(data, "category", category="genre")


def test_neighbours_by_bm25_share_the_rarest_words(make: Make) -> None:
    data = make()
    found = sampled(data, "bm25", 4)
    for query in found.queries:
        (target,) = found.qrels[query.user_id]
        words = Counter(item.title.split()[0] for item in query.candidates)
        assert words[data.items[target].title.split()[0]] >= 3


def test_bm25_is_the_formula() -> None:
    scores = Index(["a b", "a a c", "d"]).scores("A d")
    idf = {word: np.log(1 + (3 - n + 0.5) / (n + 0.5)) for word, n in (("a", 2), ("d", 1))}
    norm = [1.2 * (0.25 + 0.75 * length / 2) for length in (2, 3, 1)]
    expected = [idf["a"] * 2.2 / (1 + norm[0]), idf["a"] * 2 * 2.2 / (2 + norm[1]), idf["d"] * 2.2 / (1 + norm[2])]
    assert scores == pytest.approx(expected)


def test_the_full_catalogue_is_all_that_a_user_has_not_taken(make: Make) -> None:
    data = make()
    for query in sampled(data, "full", None).queries:
        seen = {taken.item.id for taken in data.interactions(query.user_id)[:-1]}
        assert {item.id for item in query.candidates} == set(data.items) - seen


def test_candidates_from_a_file_are_the_first_unseen_ones_of_each_list(make: Make, tmp_path: Path) -> None:
    data = make(n_users=6)
    order = [str(item) for item in range(N_ITEMS)][::-1]
    rows = [{"user_id": user, "candidates": order} for user in data.user_ids]
    lists = tmp_path / "lists.jsonl"
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = sampled(data, "file", lists=lists)

    for query in found.queries:
        seen = {taken.item.id for taken in data.interactions(query.user_id)}
        best = [item_id for item_id in order if item_id not in seen][:5]
        assert {item.id for item in query.candidates} == {*best, *found.qrels[query.user_id]}
    lists.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"user 'u00.': 0 unseen items are listed, and 5 beside the target were asked"):
        sampled(data, "file", lists=lists)


# --- filters ---------------------------------------------------------------------------------------------------------


def test_in_a_core_everybody_and_everything_has_enough(make: Make) -> None:
    data = make()
    core = k_core(data, 5)

    assert 0 < len(core.codes) < len(data.codes)
    assert np.bincount(core.codes).min() >= 5
    assert np.diff(core.starts).min() >= 5
    assert set(core.items) == set(core.item_ids)
    kept = {(user, taken) for user in core.user_ids for taken in core.interactions(user)}
    assert kept <= {(user, taken) for user in data.user_ids for taken in data.interactions(user)}
    assert k_core(core, 5).sizes == core.sizes
    with pytest.raises(DataError, match="its 50-core is empty"):
        k_core(data, 50)


def test_what_was_not_liked_can_be_left_out(make: Make) -> None:
    data = make()
    kept = liked(data, 4)
    assert kept.ratings is not None
    assert kept.ratings.min() >= 4
    assert len(kept.items) == N_ITEMS
    with pytest.raises(DataError, match="has no ratings"):
        liked(replace(data, ratings=None), 4)


def test_the_five_core_of_ml_latest_small_is_the_one_that_llamarec_published() -> None:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-latest-small"
    if not folder.is_dir():
        pytest.skip("../shared/data/ml-latest-small is not there")
    import pyarrow.parquet as pq

    data = k_core(read_dataset(folder), 5)

    published = {row["user_id"]: row["test"] for row in pq.read_table(folder / "llamarec-split.parquet").to_pylist()}
    ours = {data.user_ids[case.user]: data.item_ids[data.codes[case.target]] for case in cut(data).cases}
    assert data.sizes == (610, 3650, 90274)
    assert ours == published
