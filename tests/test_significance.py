"""Bootstrap intervals: they cover what they promise, repeat exactly, and say whom they left out."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.significance import (
    Interval,
    Jackknifed,
    bootstrap_interval,
    bootstrap_intervals,
    choice,
    detectable,
    difference_intervals,
    groups_of,
    holm,
    paired_interval,
    permutation_p,
    verdict,
)

VALUES = np.random.default_rng(3).beta(0.5, 1.0, 200)


def test_the_same_seed_gives_the_same_interval_to_the_last_bit() -> None:
    assert bootstrap_interval(VALUES, seed=7) == bootstrap_interval(VALUES.copy(), seed=7)
    assert bootstrap_interval(VALUES, seed=7) != bootstrap_interval(VALUES, seed=8)


def test_the_interval_lies_where_theory_puts_it() -> None:
    """200 users: the mean is nearly normal, so 1.96 standard errors on each side, within the bootstrap's own noise."""
    interval = bootstrap_interval(VALUES, seed=0)
    error = VALUES.std() / math.sqrt(len(VALUES))
    assert interval.value == pytest.approx(VALUES.mean(), abs=1e-15)
    assert interval.low == pytest.approx(VALUES.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(VALUES.mean() + 1.96 * error, abs=0.1 * error)


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    """Reciprocal ranks of 80 users, target uniform on 20 places; 400 studies. Three standard errors of slack."""
    rng = np.random.default_rng(11)
    truth = float(np.mean(1 / np.arange(1, 21)))
    studies = (bootstrap_interval(1 / rng.integers(1, 21, 80), seed=i, n_resamples=1000) for i in range(400))
    held = sum(interval.low <= truth <= interval.high for interval in studies)
    assert 400 * (0.95 - 0.035) <= held <= 400 * (0.95 + 0.035)


def test_users_without_a_value_are_left_out_and_counted() -> None:
    holes = np.concatenate([VALUES[:50], [np.nan] * 3, VALUES[50:]])
    full, holed = bootstrap_interval(VALUES, seed=0), bootstrap_interval(holes, seed=0)
    assert (holed.value, holed.low, holed.high) == (full.value, full.low, full.high)
    assert (holed.n_users, holed.n_excluded) == (200, 3)


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7, [0.0, 0.0]])
def test_equal_values_give_an_interval_of_width_zero(values: list[float]) -> None:
    assert bootstrap_interval(np.array(values), seed=0) == Interval(values[0], values[0], values[0], len(values), 0)


def test_nobody_with_a_value_gives_no_number() -> None:
    for values in ([], [np.nan, np.nan]):
        interval = bootstrap_interval(np.array(values, dtype=float), seed=0)
        assert math.isnan(interval.value)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert (interval.n_users, interval.n_excluded) == (0, len(values))


def test_a_higher_level_is_wider() -> None:
    wide, narrow = bootstrap_interval(VALUES, seed=0, level=0.99), bootstrap_interval(VALUES, seed=0, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_users_do_not_need_a_table_of_all_draws() -> None:
    """20,000 users x 10,000 draws would be 1.6 GB of indices."""
    values = np.random.default_rng(0).random(20_000)
    tracemalloc.start()
    bootstrap_interval(values, seed=0, n_resamples=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize(("level", "n_resamples"), [(95, 100), (0, 100), (1.0, 100), (0.95, 0)])
def test_a_level_in_per_cent_is_refused(level: float, n_resamples: int) -> None:
    with pytest.raises(FewrecError, match="give a level between 0 and 1"):
        bootstrap_interval(VALUES, seed=0, level=level, n_resamples=n_resamples)


def test_a_constant_gain_is_certain_however_much_users_differ() -> None:
    interval = paired_interval(VALUES + 0.25, VALUES, seed=0)
    assert interval.low == pytest.approx(0.25)
    assert interval.high == pytest.approx(0.25)


def test_pairs_with_a_hole_on_either_side_are_left_out() -> None:
    interval = paired_interval(np.array([1.0, np.nan, 1.0, 1.0]), np.array([0.0, 0.0, np.nan, 0.0]), seed=0)
    assert interval == Interval(1.0, 1.0, 1.0, 2, 2)


def test_different_users_cannot_be_paired() -> None:
    with pytest.raises(FewrecError, match="3 and 2 users cannot be paired"):
        paired_interval(np.zeros(3), np.zeros(2), seed=0)


def test_columns_together_are_the_columns_alone() -> None:
    holed = np.where(np.arange(len(VALUES)) % 7 == 0, np.nan, VALUES)
    columns = {"a": VALUES, "b": holed, "c": VALUES**2, "d": np.full(len(VALUES), np.nan), "e": np.ones(len(VALUES))}
    together = bootstrap_intervals(columns, seed=3)
    assert list(together) == list(columns)
    for name in "abce":
        alone = bootstrap_interval(columns[name], seed=3)
        assert together[name].low == pytest.approx(alone.low, abs=1e-12)
        assert together[name].high == pytest.approx(alone.high, abs=1e-12)
        assert (together[name].value, together[name].n_excluded) == (alone.value, alone.n_excluded)
    assert math.isnan(together["d"].value)


def test_the_percentile_interval_is_where_bca_would_put_it() -> None:
    """Which is why there is no BCa here: its ends are nearer than two bootstraps are to each other."""
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.bootstrap((VALUES,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    ours, again = bootstrap_interval(VALUES, seed=0), bootstrap_interval(VALUES, seed=1)
    error = VALUES.std() / math.sqrt(len(VALUES))
    noise = abs(ours.low - again.low) + abs(ours.high - again.high)
    assert abs(ours.low - theirs.low) + abs(ours.high - theirs.high) < noise + 0.1 * error


# --- chance


def moved(n: int, shift: float, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def test_few_users_are_flipped_in_every_way() -> None:
    values = np.array([0.5, -0.2, 0.0, 0.9, 0.3])
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = np.mean([total >= abs(values.sum()) - 1e-12 for total in sums])
    assert permutation_p({"m": values}, seed=0)["m"] == pytest.approx(expected)


@pytest.mark.parametrize(("n", "tolerance"), [(12, 1e-12), (200, 0.02)])
def test_the_permutation_test_agrees_with_scipy(n: int, tolerance: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for shift in (0.0, 0.1, 0.3):
        values = moved(n, shift)
        theirs = stats.permutation_test(
            (values, np.zeros(n)), lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=9999,
            rng=np.random.default_rng(0),
        ).pvalue  # fmt: skip
        assert permutation_p({"m": values}, seed=0)["m"] == pytest.approx(theirs, abs=tolerance)


def test_p_is_never_zero_and_the_same_for_the_same_seed() -> None:
    values = {"m": moved(300, 2.0), "n": moved(300, 0.1)}
    assert permutation_p(values, seed=1) == permutation_p(values, seed=1)
    assert permutation_p(values, seed=1)["m"] == pytest.approx(1 / 10_001)


def test_without_a_difference_p_is_one() -> None:
    p = permutation_p({"zero": np.zeros(50), "none": np.full(50, np.nan)}, seed=0)
    assert p["zero"] == 1.0
    assert math.isnan(p["none"])


def test_one_in_twenty_is_called_different_by_chance() -> None:
    """400 tables without any difference; three standard errors of slack."""
    rng = np.random.default_rng(9)
    columns = {str(i): rng.choice([-0.4, 0.0, 0.1, 0.5], 60, p=[0.25, 0.4, 0.1, 0.25]) - 0.035 for i in range(400)}
    found = sum(p <= 0.05 for p in permutation_p(columns, seed=0, n_resamples=1000).values())
    assert found <= 400 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 400))


def test_holm_multiplies_the_smallest_by_how_many_there_are() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "none": math.nan, "d": 0.005})
    assert adjusted["d"] == pytest.approx(4 * 0.005)
    assert adjusted["a"] == pytest.approx(3 * 0.01)
    assert adjusted["c"] == adjusted["b"] == pytest.approx(2 * 0.03)  # never below the one before
    assert math.isnan(adjusted["none"])
    assert holm({"x": 0.6, "y": 0.7}) == {"x": 1.0, "y": 1.0}


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    """400 studies of 80 users at exactly that size, by the interval and the permutation test."""
    smallest = 2.8015852 / math.sqrt(80)  # of users who differ by one standard deviation
    studies = {str(i): moved(80, smallest, seed=100 + i) for i in range(400)}
    assert np.mean([detectable(study) for study in studies.values()]) == pytest.approx(smallest, rel=0.02)
    p_values = permutation_p(studies, seed=0, n_resamples=1000)
    assert np.mean([p <= 0.05 for p in p_values.values()]) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.03, None, "better"),
        (0.01, 0.03, 0.04, "better"),
        (-0.03, -0.01, 0.01, "worse"),
        (-0.01, 0.03, 0.04, "cannot be told apart (smallest difference that 90 users would show: 0.028)"),
        (0.01, 0.03, 0.06, "cannot be told apart (smallest difference that 90 users would show: 0.028)"),
        (0.0, 0.0, None, "the same for every user"),
        (math.nan, math.nan, math.nan, "cannot be told apart (smallest difference that 90 users would show: 0.028)"),
    ],
)
def test_better_is_said_only_where_the_interval_says_so(low: float, high: float, p: float | None, said: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 90, 0), 0.028, p) == said


# --- numbers that are no means over users


def jackknifed(values: np.ndarray, n_groups: int = 100) -> Jackknifed:
    groups = groups_of([f"u{i}" for i in range(len(values))], n_groups)
    n_groups = int(groups.max()) + 1
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    return Jackknifed.of(lambda weights: float(weights @ sums / (weights @ counts)), n_groups, len(values))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    error = VALUES[:90].std(ddof=1) / math.sqrt(90)
    one_each = jackknifed(VALUES[:90])
    assert one_each.error == pytest.approx(error, rel=1e-9)
    assert one_each.interval().high == pytest.approx(VALUES[:90].mean() + 1.959964 * error)
    assert jackknifed(VALUES).error == pytest.approx(VALUES.std(ddof=1) / math.sqrt(200), rel=0.25)


def test_the_difference_of_two_is_paired() -> None:
    """The same users: what both share goes out."""
    difference = jackknifed(VALUES + 0.1 + moved(200, 0.0) / 1000) - jackknifed(VALUES)
    assert difference.value == pytest.approx(0.1, abs=1e-3)
    assert difference.error < 0.001
    assert difference.p_value < 1e-9
    assert (jackknifed(VALUES) - jackknifed(VALUES)).p_value == 1.0


def test_groups_do_not_depend_on_the_order_of_users() -> None:
    names = [f"u{i}" for i in range(250)]
    there, back = groups_of(names), groups_of(names[::-1])
    assert list(there) == list(back[::-1])
    assert set(np.bincount(there)) == {2, 3}
    assert len(set(groups_of(names[:40]))) == 40


def test_two_groups_of_people_are_drawn_apart() -> None:
    a, b = moved(150, 0.5), moved(60, 0.0, seed=5)
    inside = np.arange(210) < 150
    interval = difference_intervals({"m": np.concatenate([a, b])}, inside, seed=0)["m"]
    error = math.sqrt(a.var() / 150 + b.var() / 60)
    assert interval.value == pytest.approx(a.mean() - b.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert math.isnan(difference_intervals({"m": a}, np.ones(150, dtype=bool), seed=0)["m"].low)


# --- the best of many --------------------------------------------------------------------------------------------


def test_of_equal_columns_nothing_is_gained_by_choosing() -> None:
    found = choice({"a": VALUES, "b": VALUES.copy()}, seed=0)
    assert found.first == {"a": 1.0, "b": 0.0}
    assert found.expected == pytest.approx(VALUES.mean(), abs=0.005)


def test_the_best_of_many_that_are_equally_good_is_expected_to_be_as_good_as_the_others() -> None:
    """Fifty columns of pure noise around 0.3: the highest mean is luck, and what is expected of it is 0.3."""
    rng = np.random.default_rng(5)
    columns = {number: rng.normal(0.3, 0.4, 200) for number in range(50)}
    top = max(column.mean() for column in columns.values())

    found = choice(columns, seed=0)

    assert top > 0.34
    assert found.expected < 0.32
    assert sum(found.first.values()) == pytest.approx(1.0)
    assert max(found.first.values()) < 0.6


def test_what_is_better_for_everybody_is_always_chosen() -> None:
    found = choice({"worse": VALUES, "better": VALUES + 0.5}, seed=0)
    assert found.first == {"worse": 0.0, "better": 1.0}
    assert found.expected == pytest.approx((VALUES + 0.5).mean(), abs=0.005)
    assert choice({"worse": VALUES, "better": VALUES - 0.5}, seed=0, more=False).first["better"] == 1.0


def test_users_without_a_value_do_not_count_in_a_choice() -> None:
    holes = np.where(np.arange(200) < 50, np.nan, VALUES)
    filled = choice({"a": holes, "b": holes - 0.1}, seed=0)
    assert filled.expected == pytest.approx(VALUES[50:].mean(), abs=0.01)
    nothing = choice({"a": np.full(3, np.nan)}, seed=0)
    assert (math.isnan(nothing.expected), nothing.first) == (True, {})
    assert math.isnan(choice({"a": np.array([1.0])}, seed=0).expected)  # the only user is never left out


def test_a_choice_repeats_to_the_last_bit() -> None:
    columns = {"a": VALUES, "b": VALUES[::-1].copy()}
    assert choice(columns, seed=1) == choice(columns, seed=1) != choice(columns, seed=2)
