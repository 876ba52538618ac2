"""What answers are learnt against: drawn anew, never what the person took, and shared where people can share it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fewrec_prompt.data.training import Training
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.negatives import HARDER, Negatives
from fewrec_prompt.types import Interaction, Item, Query, Ranking

ITEMS = [Item(f"i{n}", f"Film {n}") for n in range(24)]
PEOPLE = ("a", "b", "c")
TAKEN = {"a": range(4), "b": range(2, 8), "c": range(12)}


def catalogue(items: list[Item], taken: dict[str, range]) -> Training:
    pairs = np.array([(user, code) for user, codes in enumerate(taken.values()) for code in codes]).reshape(-1, 2)
    by_id = {item.id: item for item in items}
    return Training(by_id, tuple(by_id), tuple(taken), pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64))


def asked(n: int = 6) -> list[Example]:
    seen = (Interaction(ITEMS[0]),)
    return [Example(Query(name, seen, tuple(ITEMS[12 + at : 12 + at + n])), (0,)) for at, name in enumerate(PEOPLE)]


def never(_query: Query) -> Ranking:
    raise AssertionError("nothing is ranked")


def others(example: Example) -> list[str]:
    return [item.id for at, item in enumerate(example.query.candidates) if at not in example.relevant]


@pytest.mark.parametrize("name", ["uniform", "shared", "popularity"])
def test_nobody_is_asked_about_what_they_took(name: Any) -> None:
    draw = Negatives(name, catalogue(ITEMS, TAKEN), 0)
    for epoch in range(20):
        for before, found in zip(asked(), draw(asked(), epoch, never), strict=True):
            person, answer = found.query.user_id, before.query.candidates[0]
            assert found.query.candidates[found.relevant[0]] == answer
            assert len(set(others(found))) == 5
            assert not set(others(found)) & {answer.id, *(f"i{code}" for code in TAKEN[person])}


@pytest.mark.parametrize("name", ["uniform", "shared"])
def test_each_persons_are_uniform_over_what_they_did_not_take(name: Any) -> None:
    """Of 24 items the first person took 4 and answers with 1; four standard errors of 1,000 passes."""
    draw = Negatives(name, catalogue(ITEMS, TAKEN), 0)
    counts = Counter(one for epoch in range(1000) for one in others(draw(asked(), epoch, never)[0]))
    assert len(counts) == 19
    assert all(abs(n / 1000 - 5 / 19) < 4 * (5 / 19 * 14 / 19 / 1000) ** 0.5 for n in counts.values())


def test_people_of_a_step_share_what_they_can() -> None:
    """Among 19, 17 and 11 free items the first 5 of one order: few more than 5 in all, other ones every pass."""
    many: dict[str, list[int]] = {}
    for name in ("uniform", "shared"):
        draw = Negatives(name, catalogue(ITEMS, TAKEN), 0)  # type: ignore[arg-type]
        steps = [draw(asked(), epoch, never) for epoch in range(50)]
        assert len({tuple(sorted(others(one[0]))) for one in steps}) > 40
        many[name] = [len({item for one in step for item in others(one)}) for step in steps]
    assert np.mean(many["shared"]) < np.mean(many["uniform"]) - 1.5


def test_hard_ones_are_the_best_of_many_as_the_model_ranks_them() -> None:
    def by_number(query: Query) -> Ranking:
        return Ranking.from_scores(query, [-float(item.id[1:]) for item in query.candidates], 1)

    training = catalogue(ITEMS, TAKEN)
    for epoch in range(5):
        hard = Negatives("hard", training, 0)(asked(2), epoch, by_number)
        many = Negatives("uniform", training, 0)(asked(2 * HARDER), epoch, never)
        for one, drawn in zip(hard, many, strict=True):
            assert others(one) == [min(others(drawn), key=lambda item_id: int(item_id[1:]))]
