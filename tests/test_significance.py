"""Bootstrap intervals: they cover what they promise, repeat exactly, and say whom they left out."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.significance import Interval, bootstrap_interval, paired_interval

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
