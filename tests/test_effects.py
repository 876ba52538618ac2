"""What others made of an item: worked out by hand, never with the own label, and a weight that labels speak for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import pytest

from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.training import from_pairs
from fewrec_prompt.mixing import fit_mix
from fewrec_prompt.recommender import Answers, Recommender
from fewrec_prompt.shots import Shots
from fewrec_prompt.tuning import mixed
from fewrec_prompt.tuning.effects import SHRINKAGE, Judges, judges, key_of, takers
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.features import EFFECT, HISTORY, POPULARITY
from fewrec_prompt.types import Interaction, Item, Query

T = TypeVar("T")
FILMS = {name: Item(name, name.title()) for name in ("heat", "up", "brat", "ronin")}


def keyed(by_name: Mapping[str, T]) -> dict[str, T]:
    return {key_of(FILMS[name]): value for name, value in by_name.items()}


def example(person: str, rated: dict[str, float | None], asked: str, liked: bool) -> Example:
    history = tuple(Interaction(FILMS[name], rating) for name, rating in rated.items())
    return Example(Query(person, history, (FILMS[asked],)), (0,) if liked else ())


def test_labels_are_of_histories_and_answers_and_of_a_persons_rows_together() -> None:
    rows = [
        example("a", {"heat": 5.0, "up": 3.5}, "brat", True),
        example("a#2", {"brat": 4.0, "up": None}, "ronin", False),
    ]
    assert judges(rows).liked == {"a": keyed({"heat": True, "up": False, "brat": True, "ronin": False})}


def test_effects_worked_out_by_hand() -> None:
    """a likes 2 of 2 and b 0 of 1; means are drawn to a half by five labels, effects to 0."""
    found = Judges({"a": {"heat": True, "up": True}, "b": {"heat": False}}).effects
    of_a, of_b = (2 + 2.5) / 7, (0 + 2.5) / 6
    assert SHRINKAGE == 5
    assert found == pytest.approx({"heat": ((1 - of_a) + (0 - of_b)) / 7, "up": (1 - of_a) / 6})
    assert Judges({}).effects == {}


def test_whoever_likes_everything_says_nothing_of_an_item() -> None:
    """The person's own mean is taken out: an item is not good because those who like much judged it."""
    easy = {f"easy {n}": {"heat": True, "brat": True} for n in range(50)}
    hard = {f"hard {n}": {"up": False, "brat": False} for n in range(50)}
    found = Judges(easy | hard).effects
    assert found["heat"] > 0 > found["up"], "two labels a person do not say all of the mean"
    many = {
        name: own | {f"{n} more": next(iter(own.values())) for n in range(500)} for name, own in (easy | hard).items()
    }
    assert abs(Judges(many).effects["heat"]) < found["heat"] / 20


def test_whoever_took_something_is_counted_once_and_not_for_themselves() -> None:
    """a took heat before what is shown, up is shown, brat is the answer of both, who are asked twice and once."""
    whole = from_pairs(FILMS, [("a", "heat"), ("a", "up"), ("b", "up")])
    up, answer = (Interaction(FILMS["up"]),), (FILMS["ronin"], FILMS["brat"])
    rows = [Example(Query(name, up, answer), (1,)) for name in ("a", "a#2", "b")]
    found, keys = takers(rows, whole), list(keyed(FILMS))
    assert found.effects == pytest.approx(keyed({"heat": math.log(2), "up": math.log(3), "brat": math.log(3)}))
    expected = keyed({"heat": 0.0, "up": math.log(2), "brat": math.log(2), "ronin": 0.0})
    assert found.without("a", keys) == pytest.approx(expected)
    assert found.without("b", keys) == pytest.approx(takers(rows[:2], whole).effects | keyed({"ronin": 0.0}))
    assert found.without("nobody", keys[:1]) == pytest.approx(keyed({"heat": math.log(2)}))
    assert takers(rows, None).effects == pytest.approx(keyed({"up": math.log(3), "brat": math.log(3)}))


def test_who_judged_is_left_out_as_if_never_heard() -> None:
    liked = {"a": {"heat": True, "up": False}, "b": {"heat": False}, "c": {"heat": True, "up": True}}
    for name in liked:
        rest = Judges({other: own for other, own in liked.items() if other != name}).effects
        assert Judges(liked).without(name, ["heat", "up", "brat"]) == pytest.approx({"brat": 0.0, "up": 0.0} | rest)


def test_the_same_id_in_other_data_is_another_item() -> None:
    assert key_of(FILMS["heat"]) == key_of(Item("heat", "Heat", (("year", 1995),)))
    assert len({key_of(FILMS["heat"]), key_of(Item("heat", "Up")), key_of(Item("up", "Heat"))}) == 3


def shots() -> Shots:
    """Forty people: each liked one of two films that they know, and heat whoever is asked about it, up nobody."""
    rows = []
    for n in range(40):
        known: dict[str, float | None] = {"brat": 5.0 if n % 2 else 1.0, "ronin": 1.0 if n % 2 else 5.0}
        asked = "heat" if n % 4 < 2 else "up"
        rows.append(example(f"u{n}", known, asked, asked == "heat"))
    return Shots(tuple(rows), (), QuerySet((), {}, {}, {}, {}))


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recommender]:
    """A row that scores everything alike: what a mix over it learns it has from labels."""
    monkeypatch.setattr(mixed, "features_of", lambda name, *_: {f"{name} score": np.zeros(1)})
    monkeypatch.setattr("fewrec_prompt.mixing.prior_of", lambda name, _: {f"{name} score": 1.0})
    return {"row": None}  # type: ignore[dict-item]


def test_an_own_label_is_never_among_what_it_is_foretold_from(
    row: dict[str, Recommender], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning one person's label round changes the features of all others, and none of this person's own."""
    seen: list[list[float]] = []
    monkeypatch.setattr(
        "fewrec_prompt.mixing.fit", lambda _, logged, *__: seen.append([float(one[EFFECT][0]) for one in logged])
    )
    monkeypatch.setattr("fewrec_prompt.mixing.replace", lambda made, **_: made)
    found, answers = shots(), [[None]] * 40
    turned = (example("u0", {"brat": 1.0, "ronin": 5.0}, "heat", liked=False), *found.learnt[1:])
    for learnt in (found.learnt, turned):
        fit_mix(Shots(learnt, (), found.queries), row, answers)  # type: ignore[arg-type]
    before, after = seen
    assert before[0] == after[0] != 0
    asked_heat = [n for n in range(1, 40) if n % 4 < 2]
    assert all(before[n] > after[n] for n in asked_heat)
    assert before[0] == judges(found.learnt).without("u0", keyed({"heat": 0}))[key_of(FILMS["heat"])]


def test_a_mix_learns_what_others_liked_and_ranks_strangers_by_it(row: dict[str, Recommender]) -> None:
    made = fit_mix(shots(), row, [[None]] * 40)  # type: ignore[list-item]
    assert made.names == ("row score", HISTORY, EFFECT)
    assert made.weights[2] > 0
    assert set(made.effects) == set(keyed(FILMS))
    scores = {}
    answers: list[Answers] = [None]  # type: ignore[list-item]
    for name in ("heat", "up", "unknown"):
        asked = Query("stranger", (), (FILMS.get(name, Item(name, name)),))
        (scores[name],) = mixed.MixRecommender(row, made).scores(asked, answers)
    assert scores["heat"] > scores["unknown"] > scores["up"]


def lists(n: int = 40, answer: str = "heat") -> Shots:
    """People who took brat, are asked among heat, up and ronin, and took the first of these."""
    asked = FILMS["heat"], FILMS["up"], FILMS["ronin"]
    place = [item.id for item in asked].index(answer)
    rows = [Example(Query(f"u{who}", (Interaction(FILMS["brat"]),), asked), (place,)) for who in range(n)]
    return Shots(tuple(rows), (), QuerySet((), {}, {}, {}, {}))


@pytest.fixture
def row_of_lists(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recommender]:
    """A row that is wrong about all of them."""
    monkeypatch.setattr(mixed, "features_of", lambda name, *_: {f"{name} score": np.array([0.0, 1.0, 2.0])})
    monkeypatch.setattr("fewrec_prompt.mixing.prior_of", lambda name, _: {f"{name} score": 1.0})
    return {"row": None}  # type: ignore[dict-item]


def test_a_mix_of_lists_learns_what_others_took(row_of_lists: dict[str, Recommender]) -> None:
    """Each of them from all others; where everybody's popularity may be looked at, that takes its place."""
    found = lists()
    made = fit_mix(found, row_of_lists, [[None]] * 40)  # type: ignore[list-item]
    assert made.names == ("row score", EFFECT)
    assert made.effects == pytest.approx(keyed({"heat": math.log(41), "brat": math.log(41)}))
    query = Query("stranger", (), found.learnt[0].query.candidates)
    scores = mixed.MixRecommender(row_of_lists, made).scores(query, [None])  # type: ignore[list-item]
    assert scores.argmax() == 0
    known = fit_mix(found, row_of_lists, [[None]] * 40, {"heat": 3})  # type: ignore[list-item]
    assert known.names == ("row score", POPULARITY)
    assert known.effects == {}


def test_an_own_answer_is_not_counted_for_itself(row_of_lists: dict[str, Recommender]) -> None:
    """One person alone: nobody else took anything, so nothing is to be learnt from it."""
    made = fit_mix(lists(1), row_of_lists, [[None]])  # type: ignore[list-item]
    assert dict(zip(made.names, made.weights, strict=True))[EFFECT] == 0.0


def test_whose_history_has_no_rating_is_taken_for_anybody(row: dict[str, Recommender]) -> None:
    """And not for who likes nothing: the mean of those learnt from stands for them."""
    made = fit_mix(shots(), row, [[None]] * 40)  # type: ignore[list-item]
    assert made.usual == 3.0
    scores = []
    for rated in ({}, {"brat": 3.0}, {"brat": 1.0}):
        asked = example("stranger", rated, "up", True).query
        scores.append(mixed.MixRecommender(row, made).scores(asked, [None])[0])  # type: ignore[list-item]
    assert scores[0] == scores[1]
    assert made.weights[1] == pytest.approx((scores[1] - scores[2]) / 2)
