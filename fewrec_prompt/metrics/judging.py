"""How far yes or no, and the probability of it, can be believed, candidate by candidate.

A probability is what a verbalizer gives as one (`probabilities`):

* `judge`: p(yes) / (p(yes) + p(no)), the logistic function of its score;
* `choose`: p(label) over the sum of all candidates' labels, so the candidates of a user share one;
* `rate`, `complete` and baselines give none, and these metrics have no value (NaN) for them. How likely a title is
  says nothing about how likely it is to be taken.

A calibration moves scores, and with them these probabilities. Yes is 1/2 or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from fewrec_prompt.metrics.naming import Better, Bools, Codes, Floats, Statistic, Unit, metric
from fewrec_prompt.metrics.users import Shelf, UserScores

Judgement: TypeAlias = Callable[[Floats, Floats], Floats]
N_BINS = 10
_TINY = float(np.finfo(np.float64).eps)  # what scikit-learn clips probabilities to


def probabilities(kind: str | None, scores: Floats) -> Floats | None:
    """The probability of each candidate that scores of this kind of verbalizer stand for; None if they are none."""
    if kind == "judge":
        return 0.5 * (1 + np.tanh(scores / 2))
    if kind == "choose":
        shares = np.exp(scores - scores.max())
        return np.asarray(shares / shares.sum())
    return None


def _per_user(name: str, unit: Unit = "share", better: Better = "more") -> Callable[[Judgement], None]:
    """Enter the mean over a user's candidates of a function of probability and truth (0 or 1)."""

    def enter(function: Judgement) -> None:
        def value(user: UserScores, _shelf: Shelf, _k: None) -> float:
            if user.probabilities is None:
                return float("nan")
            return float(function(user.probabilities, user.relevant.astype(np.float64)).mean())

        value.__doc__ = function.__doc__
        metric(name, "none", kind="user", unit=unit, better=better)(value)

    return enter


@_per_user("yes-accuracy")
def _accuracy(chance: Floats, truth: Floats) -> Floats:
    """Share of a user's candidates on which yes or no is right."""
    return np.asarray((chance >= 0.5) == (truth == 1), dtype=np.float64)


@_per_user("log-loss", "nats", "less")
def _log_loss(chance: Floats, truth: Floats) -> Floats:
    """-log of the probability given to what was true, in nats; less is better."""
    given = np.clip(np.where(truth == 1, chance, 1 - chance), _TINY, 1.0)
    return np.asarray(-np.log(given))


@_per_user("Brier", "number", "less")
def _brier(chance: Floats, truth: Floats) -> Floats:
    """Squared distance of probability and truth (Brier 1950); less is better."""
    return (chance - truth) ** 2


def _of_counts(name: str) -> Callable[[Callable[[Floats], float]], None]:
    """Enter a function of (yes and relevant, yes, relevant), counted over all candidates of all users."""

    def enter(function: Callable[[Floats], float]) -> None:
        def prepare(users: Sequence[UserScores], _shelf: Shelf, groups: Codes, _k: None) -> Statistic:
            counts = _by_group(np.array([_counts(user) for user in users]), groups)
            return lambda weights: function(weights @ counts)

        prepare.__doc__ = function.__doc__
        metric(name, "none", kind="run")(prepare)

    return enter


@_of_counts("yes-precision")
def _precision(counts: Floats) -> float:
    """Share of the candidates judged yes that are relevant; NaN if there is none."""
    return _share(counts[0], counts[1])


@_of_counts("yes-recall")
def _recall(counts: Floats) -> float:
    """Share of the relevant candidates that are judged yes."""
    return _share(counts[0], counts[2])


@_of_counts("yes-F1")
def _f1(counts: Floats) -> float:
    """Harmonic mean of yes-precision and yes-recall (van Rijsbergen 1979)."""
    return _share(2 * counts[0], counts[1] + counts[2])


@metric("ECE", "none", kind="run", better="less")
def calibration_error(users: Sequence[UserScores], _shelf: Shelf, groups: Codes, _k: None) -> Statistic:
    """Expected calibration error over ten bins of equal width, of all candidates (Guo et al. 2017, arXiv 1706.04599).

    Less is better. 0 for a scorer that always gives the base rate: it says how honest, not how good.
    """
    bins = _by_group(np.array([_bins(user) for user in users]), groups)

    def value(weights: Floats) -> float:
        n, chance, truth = (weights @ bins).reshape(3, N_BINS)
        return _share(float(np.abs(chance - truth).sum()), float(n.sum()))

    return value


def _counts(user: UserScores) -> Floats:
    if user.probabilities is None:
        return np.full(3, np.nan)
    yes = user.probabilities >= 0.5
    return np.array([(yes & user.relevant).sum(), yes.sum(), user.relevant.sum()], dtype=np.float64)


def _bins(user: UserScores) -> Floats:
    """The sums of `bins` on end; (3 * N_BINS,)."""
    if user.probabilities is None:
        return np.full(3 * N_BINS, np.nan)
    return bins(user.probabilities, user.relevant).ravel()


def bins(chance: Floats, relevant: Bools) -> Floats:
    """How many candidates fall into each of ten bins of equal width, the sums of chance and of truth; (3, N_BINS)."""
    place = np.minimum((chance * N_BINS).astype(np.intp), N_BINS - 1)
    sums = (None, chance, relevant.astype(np.float64))
    return np.stack([np.bincount(place, weights, N_BINS) for weights in sums])


def _by_group(rows: Floats, groups: Codes) -> Floats:
    """Sums of the users' rows by group; (n_groups, n_columns)."""
    sums = np.zeros((int(groups.max()) + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
