"""How far numbers over users could be off, and whether two of them differ. Says nothing about what is measured.

Users are the unit everywhere: what was drawn, left out or flipped is a user with all that was measured of them.

* A mean over users: the percentile bootstrap. BCa was considered: for means of some hundred values in [0, 1] its ends
  differ by less than the bootstrap's own noise (docs/LOG.md), and it has no meaning for equal values.
* A number that is no mean over users (`Jackknifed`): the delete-a-group jackknife. The bootstrap draws users twice,
  and coverage shrinks by that.
* Several questions a person: people are drawn with all of theirs (`Bootstrapped`).
* A difference: the paired bootstrap for its size, the paired permutation test for chance.
* The best of many: chosen again on drawn users and looked at on those who were not drawn, for the value that made it
  the best is too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import NormalDist
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.seeds import rng_for

Floats = npt.NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)
LEVEL, N_RESAMPLES, ALPHA, POWER, N_GROUPS, N_CHOICES = 0.95, 10_000, 0.05, 0.8, 100, 2_000
_DRAWS_AT_ONCE = 32_000  # a quarter of a megabyte: what malloc has to map anew each time takes four times as long
_EXACT_UP_TO = 16  # users that differ: 65,536 ways to flip signs
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """A number over users, and where it would lie with other users of the same kind. NaN if no user has a value."""

    value: float
    low: float
    high: float
    n_users: int  # that have a value
    n_excluded: int  # that have none (NaN)


def number(value: float) -> float | None:
    """For JSON, which has no NaN: what nobody has a value of is null."""
    return None if math.isnan(value) else value


def bootstrap_interval(values: Floats, seed: int, level: float = LEVEL, n_resamples: int = N_RESAMPLES) -> Interval:
    """Percentile bootstrap interval of the mean over users (Efron & Tibshirani 1993, chapter 13).

    Users without a value (NaN) are left out and counted. One user, or equal values, give an interval of width 0.
    The same users are drawn for every metric of a seed.
    """
    return bootstrap_intervals({"": values}, seed, level, n_resamples)[""]


def bootstrap_intervals(
    columns: Mapping[Name, Floats], seed: int, level: float = LEVEL, n_resamples: int = N_RESAMPLES
) -> dict[Name, Interval]:
    """`bootstrap_interval` of many columns (n_users,) of the same users: users are drawn once for all of them."""
    if not 0 < level < 1 or n_resamples < 1:
        raise FewrecError(
            f"level {level} and {n_resamples} resamples; give a level between 0 and 1 and resamples from 1"
        )
    found: dict[Name, Interval] = {}
    for names, known, n_excluded in _by_holes(columns):
        ends = np.quantile(_resampled_means(known, seed, n_resamples), [(1 - level) / 2, (1 + level) / 2], axis=0)
        for name, column, low, high in zip(names, known.T, *ends, strict=True):
            found[name] = _interval(column, float(low), float(high), n_excluded)
    return {name: found[name] for name in columns}


def _interval(known: Floats, low: float, high: float, n_excluded: int) -> Interval:
    if not len(known) or (known == known[0]).all():  # the mean of equal values is that value, to the last bit
        mean = float(known[0]) if len(known) else float("nan")
        return Interval(mean, mean, mean, len(known), n_excluded)
    return Interval(float(known.mean()), low, high, len(known), n_excluded)


def paired_interval(a: Floats, b: Floats, seed: int, level: float = LEVEL, n_resamples: int = N_RESAMPLES) -> Interval:
    """Interval of the mean difference a - b over the same users in the same order; those without both are left out."""
    if a.shape != b.shape:
        raise FewrecError(f"{len(a)} and {len(b)} users cannot be paired; give the same users in the same order")
    return bootstrap_interval(a - b, seed, level, n_resamples)


def difference_intervals(
    columns: Mapping[Name, Floats],
    inside: npt.NDArray[np.bool_],
    seed: int,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
) -> dict[Name, Interval]:
    """Interval of the mean of the users `inside` minus that of the others, for columns (n_users,) of the same users.

    They are different people, so each side is drawn by itself.
    """
    found: dict[Name, Interval] = {}
    for names, known, n_excluded in _by_holes(columns):
        side = inside[~np.isnan(columns[names[0]])]
        drawn = _resampled_means(known[side], seed, n_resamples)
        drawn = drawn - _resampled_means(known[~side], seed, n_resamples, "others")
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        both = side.any() and not side.all()
        values = known[side].mean(axis=0) - known[~side].mean(axis=0) if both else np.full(len(names), np.nan)
        for name, value, low, high in zip(names, values, *ends, strict=True):
            found[name] = Interval(float(value), float(low), float(high), len(known), n_excluded)
    return {name: found[name] for name in columns}


@dataclass(frozen=True, slots=True)
class Jackknifed:
    """A number that is no mean over users, and what it is without each group of them in turn.

    Two of the same groups can be subtracted, which gives the number for their difference.
    """

    value: float
    left_out: tuple[float, ...]
    n_users: int
    n_excluded: int = 0

    @classmethod
    def of(cls, statistic: Callable[[Floats], float], n_groups: int, n_users: int, n_excluded: int = 0) -> Jackknifed:
        """Of a statistic of how much each group counts: all 1, then each 0 in turn."""
        weights = np.ones((n_groups, n_groups)) - np.eye(n_groups)
        return cls(statistic(np.ones(n_groups)), tuple(statistic(row) for row in weights), n_users, n_excluded)

    def __sub__(self, other: Jackknifed) -> Jackknifed:
        pairs = zip(self.left_out, other.left_out, strict=True)
        return Jackknifed(self.value - other.value, tuple(a - b for a, b in pairs), self.n_users)

    @property
    def error(self) -> float:
        """Standard error (Kott 2001: the delete-a-group jackknife); NaN for one group."""
        left, n = np.array(self.left_out), len(self.left_out)
        return float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())) if n > 1 else float("nan")

    def interval(self, level: float = LEVEL) -> Interval:
        """The value and as many standard errors on each side as the normal distribution wants."""
        reach = _NORMAL.inv_cdf((1 + level) / 2) * self.error
        return Interval(self.value, self.value - reach, self.value + reach, self.n_users, self.n_excluded)

    @property
    def p_value(self) -> float:
        """Two-sided, that the true value is 0, by the normal distribution."""
        if not self.error:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * _NORMAL.cdf(-abs(self.value) / self.error)) if self.error > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A number over people, and what it is with people drawn with replacement, each with all own questions.

    Several of the same people and seed are drawn alike, so that their mean and their difference are paired. NaN where
    drawn people leave the number undefined; the interval is over the other draws (the cluster bootstrap, Field & Welsh
    2007; percentile).
    """

    value: float
    drawn: Floats  # (n_resamples,)
    n_users: int  # people who count
    n_excluded: int = 0

    @classmethod
    def of(
        cls,
        statistic: Callable[[Floats], float],
        n_people: int,
        seed: int,
        n_excluded: int = 0,
        n_resamples: int = N_RESAMPLES,
    ) -> Bootstrapped:
        """Of a statistic of how often each of `n_people` was drawn, (n_people,)."""
        rng = rng_for(seed, "bootstrap")
        weights = (row for size in _sizes(n_people, n_resamples) for row in _counts(rng, size, n_people))
        drawn = np.fromiter(map(statistic, weights), np.float64, n_resamples)
        return cls(statistic(np.ones(n_people)), drawn, n_people - n_excluded, n_excluded)

    @classmethod
    def mean(cls, several: Sequence[Bootstrapped]) -> Bootstrapped:
        """The number for their mean."""
        value, drawn = np.mean([one.value for one in several]), np.mean([one.drawn for one in several], axis=0)
        return cls(float(value), drawn, several[0].n_users, several[0].n_excluded)

    def __sub__(self, other: Bootstrapped) -> Bootstrapped:
        return replace(self, value=self.value - other.value, drawn=self.drawn - other.drawn)

    def interval(self, level: float = LEVEL) -> Interval:
        """The value, and between which numbers the middle share `level` of all draws lies."""
        known = self.drawn[~np.isnan(self.drawn)]
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (np.nan, np.nan)
        return Interval(self.value, float(low), float(high), self.n_users, self.n_excluded)


def groups_of(user_ids: Sequence[str], n_groups: int = N_GROUPS) -> npt.NDArray[np.intp]:
    """A group for each user, of equal sizes, one each where users are few; the same for the same set of users."""
    order = sorted(range(len(user_ids)), key=lambda at: sha256(user_ids[at].encode("utf-8", "surrogatepass")).digest())
    groups = np.empty(len(user_ids), dtype=np.intp)
    groups[order] = np.arange(len(user_ids)) % n_groups
    return groups


def permutation_p(differences: Mapping[Name, Floats], seed: int, n_resamples: int = N_RESAMPLES) -> dict[Name, float]:
    """Two-sided p of the paired permutation test: how often the mean is as far from 0 when signs fall by chance.

    Columns (n_users,) of the same users; NaN is left out. Exact (all flips) up to 16 users who differ, else Monte Carlo
    with the observed signs counted in, so p is never 0 (Phipson & Smyth 2010, arXiv 1603.05766). NaN without users.
    """
    found: dict[Name, float] = {}
    for names, known, _ in _by_holes(differences):
        moved = known[(known != 0).any(axis=1)]
        p_values = _sign_flips(moved, seed, n_resamples) if len(known) else np.full(len(names), np.nan)
        found |= zip(names, p_values, strict=True)
    return {name: float(found[name]) for name in differences}


def _sign_flips(moved: Floats, seed: int, n_resamples: int) -> Floats:
    """p for each column of the differences (n_users, n_columns)."""
    total = moved.sum(axis=0)
    least = np.abs(total) - 1e-12 * np.abs(moved).sum(axis=0)  # the same sum in another order is the same sum
    exact = len(moved) <= _EXACT_UP_TO
    n_far, n_all = (np.zeros_like(total), 0) if exact else (np.ones_like(total), 1)
    for flipped in _all_flips(len(moved)) if exact else _drawn_flips(len(moved), seed, n_resamples):
        n_far = n_far + (np.abs(total - 2 * (flipped @ moved)) >= least).sum(axis=0)
        n_all += len(flipped)
    return np.asarray(n_far / n_all)


def _all_flips(n_users: int) -> Iterator[Floats]:
    ways = np.arange(2**n_users)
    yield ((ways[:, None] >> np.arange(n_users)) & 1).astype(np.float64)


def _drawn_flips(n_users: int, seed: int, n_resamples: int) -> Iterator[Floats]:
    rng = rng_for(seed, "permutation")
    for size in _sizes(n_users, n_resamples):
        yield rng.integers(0, 2, (size, n_users), dtype=np.int8).astype(np.float64)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p values adjusted for being many (Holm 1979); at most `alpha` below it means: any false claim at most that often.

    NaN stays NaN and is not counted.
    """
    known = sorted(((p, name) for name, p in p_values.items() if p == p), key=lambda pair: pair[0])
    adjusted, least = dict(p_values), 0.0
    for place, (p, name) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - place)))
        adjusted[name] = least
    return adjusted


@dataclass(frozen=True, slots=True)
class Choice(Generic[Name]):
    """What taking the best of several columns is worth, with the uncertainty of the choice in it.

    `expected` is the mean, on users left out, of what is chosen on the others. `first` says how often each column was
    chosen; NaN and nothing where there are no two users with a value.
    """

    expected: float
    first: Mapping[Name, float]


def choice(
    columns: Mapping[Name, Floats], seed: int, *, more: bool = True, n_resamples: int = N_CHOICES
) -> Choice[Name]:
    """Choose the column of the highest mean (else the lowest) on drawn users, again and again.

    Bootstrap bias corrected, as in Tsamardinos, Greasidou & Borboudakis 2018 (arXiv 1708.07180). Columns (n_users,) of
    the same users; of equal means the first column is chosen.
    """
    names = list(columns)
    values = np.stack([columns[name] for name in names], axis=1)
    known = (~np.isnan(values)).astype(np.float64)
    filled = np.nan_to_num(values) * (1 if more else -1)
    chosen, outside = [np.empty(0, dtype=np.intp)], [np.empty(0)]
    rng = rng_for(seed, "choice")
    for size in _sizes(len(values), n_resamples):
        drawn = _counts(rng, size, len(values))
        inside, left = _means(drawn, filled, known), _means((drawn == 0).astype(np.float64), filled, known)
        best = np.nan_to_num(inside, nan=-np.inf).argmax(axis=1)
        chosen.append(best)
        outside.append(left[np.arange(size), best])
    told = ~np.isnan(np.concatenate(outside))
    if not told.any():
        return Choice(math.nan, {})
    shares = np.bincount(np.concatenate(chosen)[told], minlength=len(names)) / told.sum()
    expected = float(np.concatenate(outside)[told].mean()) * (1 if more else -1)
    return Choice(expected, dict(zip(names, shares.tolist(), strict=True)))


def _means(weights: Floats, values: Floats, known: Floats) -> Floats:
    """Weighted means of each column over users who have a value; (n_resamples, n_columns), NaN where nobody has."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ values) / (weights @ known))


def detectable(differences: Floats, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest mean difference that this many users, differing this much, would show with this power.

    (z of 1 - alpha / 2 + z of power) standard errors of the paired differences (Cohen 1988); NaN below two.
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return float("nan")
    return smallest_shown(float(known.std(ddof=1)) / float(np.sqrt(len(known))), alpha, power)


def smallest_shown(error: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The same for a standard error."""
    return (_NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)) * error


def verdict(difference: Interval, smallest: float, p_value: float | None = None, *, shown: str = "") -> str:
    """ "better" or "worse" if the interval of the difference excludes 0, else that it cannot be told, and what could.

    A p value, adjusted for all that is compared beside it, must not exceed 0.05 either. `shown` is how `smallest` is
    written, itself by default.
    """
    if difference.low == difference.high == 0:
        return "the same for every user"
    certain = p_value is None or p_value <= ALPHA
    if certain and difference.low > 0:
        return "better"
    if certain and difference.high < 0:
        return "worse"
    n = difference.n_users
    return f"cannot be told apart (smallest difference that {n} users would show: {shown or f'{smallest:.3g}'})"


def _by_holes(columns: Mapping[Name, Floats]) -> Iterator[tuple[list[Name], Floats, int]]:
    """Columns that the same users have: names, values (n_users, n_columns) without NaN, how many have none."""
    together: dict[bytes, list[Name]] = {}
    for name, values in columns.items():
        together.setdefault(np.isnan(values).tobytes(), []).append(name)
    for names in together.values():
        holes = np.isnan(columns[names[0]])
        yield names, np.stack([columns[name][~holes] for name in names], axis=1), int(holes.sum())


def _resampled_means(values: Floats, seed: int, n_resamples: int, what: str = "bootstrap") -> Floats:
    """Means of each column over users drawn with replacement; (n_resamples, n_columns)."""
    n_users, n_columns = values.shape
    if not n_users:
        return np.full((n_resamples, n_columns), np.nan)
    rng = rng_for(seed, what)
    means = [_counts(rng, size, n_users) @ values / n_users for size in _sizes(n_users, n_resamples)]
    return np.concatenate(means)


def _counts(rng: np.random.Generator, size: int, n_users: int) -> Floats:
    """How often each user is drawn in each of `size` resamples; (size, n_users)."""
    drawn = rng.integers(0, n_users, (size, n_users), dtype=np.int32) + n_users * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users).astype(np.float64)


def _sizes(n_users: int, n_resamples: int) -> list[int]:
    """How many resamples are made at once, until all are."""
    rows = max(1, _DRAWS_AT_ONCE // max(1, n_users))
    return [min(rows, n_resamples - done) for done in range(0, n_resamples, rows)]
