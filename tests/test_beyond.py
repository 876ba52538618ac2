"""Metrics that look at more than one user's hits: against every order of tied items, by hand, and scikit-learn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.metrics import (
    Shelf,
    UserScores,
    check_metrics,
    measure,
    measure_all,
    measure_run,
    parse_metric,
    probabilities,
    unit_of,
)
from fewrec_prompt.metrics.ranking import exposure
from fewrec_prompt.significance import groups_of
from fewrec_prompt.types import Item

POPULARITY = {"a": 7, "b": 0, "c": 3, "d": 3, "e": 1, "f": 0}
TRAITS = {"a": "Comedy, Drama", "b": "Drama", "c": "Comedy", "d": "War", "e": "Drama, War", "f": "Comedy, Drama"}
SHELF = Shelf.of(POPULARITY, [Item(one, one, (("genres", text),)) for one, text in TRAITS.items()])
SOME = ["nDCG@3", "coverage@2", "ECE", "AUC", "novelty@2", "pooled-AUC"]


def person(
    scores: list[float], relevant: list[int], ids: str = "abcdef", history: str = "a", name: str = "u1", kind: str = ""
) -> UserScores:
    values = np.array(scores, dtype=float)
    chances = probabilities(kind, values)
    return UserScores(
        name, values, np.array(relevant, dtype=bool), sum(relevant), tuple(ids[: len(scores)]), tuple(history), chances
    )


def of_run(name: str, users: list[UserScores], shelf: Shelf = SHELF) -> float:
    return measure_run([name], users, shelf)[name].value


def orders(scores: list[int]) -> Iterator[list[int]]:
    """Every ranking, as positions of the candidates, that these scores allow; each equally likely."""
    for order in itertools.permutations(range(len(scores))):
        yield sorted(order, key=lambda at: -scores[at])


def mean_over_orders(scores: list[int], value: Callable[[list[int]], float]) -> float:
    return float(np.mean([value(order) for order in orders(scores)]))


TIED = st.lists(st.integers(-2, 0), min_size=2, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(scores=TIED, k=st.integers(2, 6))
def test_ties_are_the_mean_over_all_orders(scores: list[int], k: int) -> None:
    one = person([float(score) for score in scores], [0] * len(scores))
    total = sum(POPULARITY.values()) + len(POPULARITY)

    def novelty(order: list[int]) -> float:
        return float(np.mean([math.log2(total / (POPULARITY["abcdef"[at]] + 1)) for at in order[:k]]))

    def diversity(order: list[int]) -> float:
        sets = [set(TRAITS["abcdef"[at]].split(", ")) for at in order[:k]]
        return float(np.mean([1 - len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]))

    def bias(order: list[int]) -> float:
        return float(np.corrcoef(np.argsort(order), np.arange(len(order)))[0, 1])

    values = measure([f"novelty@{k}", f"diversity@{k}", "position-bias"], [one], SHELF)
    for column, plain in zip(values.values(), (novelty, diversity, bias), strict=True):
        assert column[0] == pytest.approx(mean_over_orders(scores, plain), abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    first=st.lists(st.integers(-1, 0), min_size=3, max_size=4),
    second=st.lists(st.integers(-1, 0), min_size=4, max_size=4),
)
def test_coverage_is_the_mean_over_all_orders_of_both_users(first: list[int], second: list[int]) -> None:
    users = [person([*map(float, first)], [0] * len(first)), person([*map(float, second)], [0] * 4, "bcde", name="u2")]
    lists = [
        [{ids[at] for at in order[:2]} for order in orders(scores)]
        for scores, ids in ((first, "abcdef"), (second, "bcde"))
    ]
    expected = np.mean([len(a | b) / 6 for a, b in itertools.product(*lists)])
    assert of_run("coverage@2", users) == pytest.approx(expected, abs=1e-12)


def test_items_without_genres_differ_by_the_words_of_their_titles() -> None:
    shelf = Shelf.of({"x": 1, "y": 1}, [Item("x", "Toy Story (1995)"), Item("y", "Toy Story 2 (1999)")])
    assert measure(["diversity@2"], [person([1, 0], [0, 0], "xy")], shelf)["diversity@2"] == pytest.approx([1 - 2 / 5])


def test_one_item_has_nothing_to_differ_from() -> None:
    values = measure(["diversity@1", "position-bias"], [person([1.0], [1])], SHELF)
    assert all(math.isnan(column[0]) for column in values.values())


def test_position_bias_is_one_where_the_order_of_the_prompt_is_the_ranking() -> None:
    users = [person([3, 2, 1], [0, 0, 0]), person([1, 2, 3], [0, 0, 0]), person([5, 5, 5], [0, 0, 0])]
    np.testing.assert_allclose(measure(["position-bias"], users, SHELF)["position-bias"], [1, -1, 0])


def test_gini_is_zero_for_equal_exposure_and_near_one_for_a_single_item() -> None:
    everybody = [person([1.0], [0], item, name=item) for item in "abcdef"]
    assert of_run("Gini@1", everybody) == pytest.approx(0)
    assert of_run("Gini@1", [person([1.0], [0], "a", name=name) for name in "abcdef"]) == pytest.approx(5 / 6)


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    users = [person([9, 8, 1, 0, 0, 0], [0] * 6), person([1, 5, 4, 0, 0, 0], [0] * 6, name="u2")]
    exposure = [1, 2, 1, 0, 0, 0]
    mean_gap = np.mean([abs(a - b) for a in exposure for b in exposure])
    assert of_run("Gini@2", users) == pytest.approx(mean_gap / (2 * np.mean(exposure)))


def test_popularity_lift_compares_what_is_shown_with_what_was_taken() -> None:
    users = [person([9, 0, 0], [0] * 3, "abc", "cc"), person([0, 0, 9], [0] * 3, "abc", "ae", name="u2")]
    assert of_run("popularity-lift@1", users) == pytest.approx((7 + 3) / (3 + (7 + 1) / 2) - 1)


def test_pooled_auc_sees_what_auc_of_each_user_cannot() -> None:
    """Perfect within each user, and the scales of the two are apart."""
    users = [person([2, 1], [1, 0]), person([-5, -6], [1, 0], name="u2")]
    assert list(measure(["AUC"], users)["AUC"]) == [1.0, 1.0]
    assert of_run("pooled-AUC", users) == pytest.approx(3 / 4)


# --- scikit-learn


def people(n: int, kind: str = "judge") -> list[UserScores]:
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 7, n)
    return [
        person([*rng.integers(-5, 5, size).astype(float)], [*(rng.random(size) < 0.4)], name=f"u{i}", kind=kind)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("kind", ["judge", "choose"])
def test_yes_and_no_agree_with_scikit_learn_on_a_thousand_users(kind: str) -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    users = people(1000, kind)
    truth = np.concatenate([user.relevant for user in users])
    chances = np.concatenate([user.probabilities for user in users])
    yes = chances >= 0.5
    assert of_run("yes-precision", users) == pytest.approx(theirs.precision_score(truth, yes), abs=1e-9)
    assert of_run("yes-recall", users) == pytest.approx(theirs.recall_score(truth, yes), abs=1e-9)
    assert of_run("yes-F1", users) == pytest.approx(theirs.f1_score(truth, yes), abs=1e-9)
    own = measure(["yes-accuracy", "Brier", "log-loss"], users)
    sizes = [len(user.scores) for user in users]
    pooled = {name: np.average(values, weights=sizes) for name, values in own.items()}
    assert pooled["yes-accuracy"] == pytest.approx(theirs.accuracy_score(truth, yes), abs=1e-9)
    assert pooled["Brier"] == pytest.approx(theirs.brier_score_loss(truth, chances), abs=1e-9)
    assert pooled["log-loss"] == pytest.approx(theirs.log_loss(truth, chances), abs=1e-9)


def test_pooled_auc_agrees_with_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    users = people(1000)
    scores, truth = (np.concatenate([getattr(user, name) for user in users]) for name in ("scores", "relevant"))
    assert of_run("pooled-AUC", users) == pytest.approx(theirs.roc_auc_score(truth, scores), abs=1e-9)


def test_calibration_error_agrees_with_scikit_learns_curve() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    users = people(1000)
    chances, truth = (np.concatenate([getattr(user, name) for user in users]) for name in ("probabilities", "relevant"))
    shares, means = calibration.calibration_curve(truth, chances, n_bins=10)
    counts = np.histogram(chances, np.linspace(0, 1, 11))[0]
    expected = (np.abs(shares - means) * counts[counts > 0]).sum() / len(truth)
    assert of_run("ECE", users) == pytest.approx(expected, abs=1e-9)


def test_an_honest_scorer_has_no_calibration_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(1)
    chances = rng.random((2000, 5))
    truth = rng.random(chances.shape) < chances
    logits = np.log(chances / (1 - chances))
    honest, boastful = (
        [
            person([*row], [*hits], "abcde", name=f"u{i}", kind="judge")
            for i, (row, hits) in enumerate(zip(rows, truth, strict=True))
        ]
        for rows in (logits, 3 * logits)
    )
    assert of_run("ECE", honest) < 0.02
    assert of_run("ECE", boastful) > 0.1


# --- what is a probability, and what is not


def test_probabilities_are_what_the_kind_of_answer_says() -> None:
    scores = np.array([0.0, math.log(3), -800.0])
    np.testing.assert_allclose(probabilities("judge", scores), [0.5, 0.75, 0.0], atol=1e-12)
    np.testing.assert_allclose(probabilities("choose", scores), [0.25, 0.75, 0.0], atol=1e-12)
    assert [probabilities(kind, scores) for kind in ("rate", "complete", None)] == [None] * 3


def test_without_probabilities_there_is_no_number() -> None:
    measured = measure_all(["Brier", "ECE", "yes-F1", "MRR"], [person([2, 1], [1, 0])], SHELF)
    assert math.isnan(measured.per_user["Brier"][0])
    assert math.isnan(measured.of_run["ECE"].interval().low)
    assert math.isnan(measured.of_run["yes-F1"].value)
    assert measured.per_user["MRR"][0] == 1


# --- names and groups


def test_metrics_come_in_the_order_they_were_asked_for() -> None:
    measured = measure_all(SOME, [person([2, 1], [1, 0]), person([1, 2], [1, 0], name="u2")], SHELF)
    assert list(measured.names) == SOME
    assert set(measured.of_run) == {"coverage@2", "ECE", "pooled-AUC"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("Coverage@10", "Did you mean 'coverage'"), ("coverage", "'coverage@10'"), ("gini@2", "Did you mean 'Gini'"),
     ("novelti@5", "Did you mean 'novelty'"), ("ece", "Did you mean 'ECE'"), ("ECE@5", "takes no depth")],
)  # fmt: skip
def test_a_wrong_name_says_what_is_right(name: str, said: str) -> None:
    with pytest.raises(FewrecError, match=said):
        check_metrics([name])


def test_what_is_no_share_is_not_shown_in_per_cent() -> None:
    assert [unit_of(name) for name in ("nDCG@10", "novelty@5", "log-loss", "some_metric")] == [
        "share", "bits", "nats", "share",
    ]  # fmt: skip


def test_without_a_group_means_as_if_its_users_had_never_been() -> None:
    users = people(230)
    groups = groups_of([user.user_id for user in users])
    for name in ("coverage@2", "Gini@2", "pooled-AUC", "ECE", "yes-F1", "popularity-lift@2"):
        value = parse_metric(name)(users, SHELF, groups)
        weights = np.ones(100)
        weights[7] = 0
        left = [user for user, group in zip(users, groups, strict=True) if group != 7]
        assert value(weights) == pytest.approx(of_run(name, left), abs=1e-12), name


# --- groups of items


GROUPED = Shelf(POPULARITY, groups={"maker X": frozenset("ab"), "maker Y": frozenset("cd"), "maker Z": frozenset("z")})


def test_exposure_is_the_discount_of_the_places_and_ties_share_theirs() -> None:
    """Places 1 to 3 are looked at 1, 0.6309 and 0.5 times."""
    assert exposure(np.array([1.0, 3.0, 2.0, 0.0]), 3) == pytest.approx([0.5, 1, 1 / math.log2(3), 0])
    assert exposure(np.array([1.0, 3.0, 1.0, 1.0]), 2) == pytest.approx(
        [1 / math.log2(3) / 3, 1, *[1 / math.log2(3) / 3] * 2]
    )


def test_the_gap_of_exposure_by_hand() -> None:
    """Places are c, a, b, d; of the first two a makes 0.6309 of 1.6309, and is of a group of half of the candidates."""
    values = measure(["exposure-gap@2"], [person([3, 2, 4, 1], [1, 0, 0, 0])], GROUPED)
    gap = 0.63092975 / 1.63092975 - 0.5
    assert {name: column.tolist() for name, column in values.items()} == {
        "exposure-gap@2.maker X": [pytest.approx(gap)],
        "exposure-gap@2.maker Y": [pytest.approx(-gap)],
        "exposure-gap@2.maker Z": [0.0],
    }
    assert unit_of("exposure-gap@2.maker X") == "share"


@given(TIED, st.integers(1, 6))
def test_ties_have_the_exposure_of_all_their_orders(scores: list[int], k: int) -> None:
    def of_first(order: list[int]) -> float:
        place = order.index(0) + 1
        return 1 / math.log2(place + 1) if place <= k else 0.0

    assert exposure(np.array(scores, dtype=float), k)[0] == pytest.approx(mean_over_orders(scores, of_first))


def test_a_scorer_that_says_nothing_has_no_gap() -> None:
    values = measure(["exposure-gap@3"], [person([0] * 6, [1, 0, 0, 0, 0, 0])], GROUPED)
    assert all(column.tolist() == [pytest.approx(0, abs=1e-12)] for column in values.values())
