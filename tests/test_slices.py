"""Users cut into groups: who is where, how good for whom, and how far apart, with intervals."""

from __future__ import annotations

import numpy as np
import pytest

from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.slices import attributes, item_groups, slices, thirds

RNG = np.random.default_rng(6)
WORDS = ["F"] * 60 + ["M"] * 140
VALUES = np.where(np.array(WORDS) == "F", 0.3, 0.5) + RNG.normal(0, 0.1, 200)


def test_a_gap_that_is_there_is_found_with_its_interval() -> None:
    women, men = slices({("complete", "MRR"): VALUES}, {"user.gender": WORDS}, seed=0)
    assert (women.group, women.mean.n_users, men.group, men.mean.n_users) == ("F", 60, "M", 140)
    assert women.mean.value == pytest.approx(VALUES[:60].mean())
    assert women.gap.value == pytest.approx(VALUES[:60].mean() - VALUES[60:].mean())
    assert women.gap.high < 0 < men.gap.low
    assert men.gap.value == pytest.approx(-women.gap.value)


def test_groups_by_chance_have_a_gap_that_could_be_nothing() -> None:
    """100 cuts at random; 95 in 100 intervals hold 0, within three standard errors."""
    cuts = {str(i): [str(word) for word in RNG.permutation(["a", "b"] * 100)] for i in range(100)}
    found = slices({("complete", "MRR"): RNG.normal(0, 1, 200)}, cuts, seed=0)
    held = np.mean([one.gap.low <= 0 <= one.gap.high for one in found if one.group == "a"])
    assert held >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100)


def test_users_of_whom_nothing_is_known_are_in_no_group_but_among_the_others() -> None:
    words = [None if at % 10 == 0 else word for at, word in enumerate(WORDS)]
    women, _ = slices({("complete", "MRR"): VALUES}, {"user.gender": words}, seed=0)
    assert women.mean.n_users == 54
    assert women.gap.n_users == 200


def test_one_group_cuts_nothing_and_equal_numbers_are_one_group() -> None:
    assert thirds([10.0] * 7) == ["low"] * 7
    assert slices({("complete", "MRR"): VALUES}, {"history length": thirds([10.0] * 200)}, seed=0) == []


def test_thirds_come_in_their_order_and_are_as_large_as_can_be() -> None:
    words = thirds([float(number) for number in range(200)] + [np.nan])
    assert [words.count(one) for one in ("low", "middle", "high", None)] == [67, 66, 67, 1]
    assert [one.group for one in slices({("r", "m"): VALUES}, {"x": words[:200]}, seed=0)] == ["low", "middle", "high"]


def test_attributes_are_those_of_people_targets_and_histories(films: Dataset) -> None:
    found = leave_one_out(films, n_users=100)
    known = attributes(found)
    assert {"history length", "activity", "target popularity", "target", "user.gender", "user.age"} <= known.keys()
    assert all(len(words) == 100 for words in known.values())
    assert set(known["user.gender"]) == {"F", "M"}
    assert set(known["user.age"]) == {"low", "middle", "high"}
    assert not {"user.zip_code", "user.occupation"} & known.keys()  # codes that are no numbers; too many words
    first = found.queries[0].user_id
    assert known["user.gender"][0] == dict(films.users[first])["gender"]
    rare = [found.popularity[next(iter(found.qrels[query.user_id]))] < 5 for query in found.queries]
    assert [word == "cold" for word in known["target"]] == rare


def test_groups_of_items_are_thirds_of_popularity_and_fields_of_few_words(films: Dataset) -> None:
    queries = leave_one_out(films, n_users=100)
    groups = item_groups(queries)
    offered = {item.id for query in queries.queries for item in query.candidates}
    thirds_of = [groups[f"popularity {third}"] for third in ("low", "middle", "high")]
    assert sum(map(len, thirds_of)) == len(offered)
    assert frozenset().union(*thirds_of) == offered
    rarest, most = ([queries.popularity.get(one, 0) for one in thirds_of[at]] for at in (0, 2))
    assert max(rarest) < min(most)
