"""How far a mean over users could be off: bootstrap intervals. Says nothing about what is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.seeds import rng_for

_DRAWS_AT_ONCE = 1_000_000  # 16 MB: bounds memory, whatever the number of users


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users, and where it would lie with other users of the same kind. NaN if no user has a value."""

    value: float
    low: float
    high: float
    n_users: int  # that have a value
    n_excluded: int  # that have none (NaN)


def bootstrap_interval(
    values: npt.NDArray[np.float64], seed: int, level: float = 0.95, n_resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of the mean over users (Efron & Tibshirani 1993, chapter 13).

    Users without a value (NaN) are left out and counted. One user, or equal values, give an interval of width 0.
    The same users are drawn for every metric of a seed.
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise FewrecError(
            f"level {level} and {n_resamples} resamples; give a level between 0 and 1 and resamples from 1"
        )
    known = values[~np.isnan(values)]
    n_excluded = len(values) - len(known)
    if not len(known) or (known == known[0]).all():  # the mean of equal values is that value, to the last bit
        mean = float(known[0]) if len(known) else float("nan")
        return Interval(mean, mean, mean, len(known), n_excluded)
    low, high = np.quantile(_resampled_means(known, seed, n_resamples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(known.mean()), float(low), float(high), len(known), n_excluded)


def paired_interval(
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    seed: int,
    level: float = 0.95,
    n_resamples: int = 10_000,
) -> Interval:
    """Interval of the mean difference a - b over the same users in the same order; those without both are left out."""
    if a.shape != b.shape:
        raise FewrecError(f"{len(a)} and {len(b)} users cannot be paired; give the same users in the same order")
    return bootstrap_interval(a - b, seed, level, n_resamples)


def _resampled_means(values: npt.NDArray[np.float64], seed: int, n_resamples: int) -> npt.NDArray[np.float64]:
    rng = rng_for(seed, "bootstrap")
    rows = max(1, _DRAWS_AT_ONCE // len(values))
    sizes = [min(rows, n_resamples - done) for done in range(0, n_resamples, rows)]
    return np.concatenate([values[rng.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])
