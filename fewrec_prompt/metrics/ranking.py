"""Ranking metrics of one user, with ties at their expectation. Pure numpy: no files, no `evaluate`, no averaging.

Every function takes the scores of the candidates (higher is better, any sign), which of them are relevant, how many
relevant items there are in all, and a depth k (None: the whole list). A relevant item that is no candidate was never
found: it counts in `n_relevant` and nowhere else. All values lie in [0, 1]; NaN where nothing is relevant.

Candidates of equal score form a tie group; within it every order is taken as equally likely, and the value is the exact
mean over these orders. With a group of g candidates, r of them relevant, that stands after s better candidates:

* the chance that a given place of the group holds something relevant is r / g. DCG, recall and precision are sums over
  places, so they are computed from these chances (McSherry & Najork 2008);
* the chance that the first m places of the group hold nothing relevant is C(g-r, m) / C(g, m), which is the product of
  (g-r-i) / (g-i) for i < m. Only the first group with something relevant matters for the first relevant place, from
  which HR and MRR follow;
* given something relevant at the j-th place of the group (from 0), j * (r-1) / (g-1) relevant ones are expected on the
  places before it in the group, which gives average precision;
* AUC counts a pair of equal scores as half.

A scorer that says nothing (all scores equal) therefore gets what a random order gets on average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import numpy as np

from fewrec_prompt.metrics.naming import Bools, Codes, Depth, Floats, metric

T = TypeVar("T")
Formula = Callable[[Floats, Bools, int, int | None], float]


def ranking_metric(name: str, depth: Depth = "optional") -> Callable[[Formula], Formula]:
    """Enter a formula into the table; its value is NaN for a user for whom nothing is relevant."""

    def enter(formula: Formula) -> Formula:
        @wraps(formula)
        def value(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
            return float(formula(scores, relevant, n_relevant, k)) if n_relevant else float("nan")

        metric(name, depth)(value)
        return value

    return enter


@ranking_metric("nDCG")
def ndcg(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Discounted gain of the first k places over the best possible with `n_relevant` relevant items.

    Binary gain, log2 discount (Järvelin & Kekäläinen 2002).
    """
    expected = _chance_at_each_place(scores, relevant)[:k]
    best = n_relevant if k is None else min(n_relevant, k)
    return float((expected * _discount(len(expected))).sum() / _discount(best).sum())


@ranking_metric("HR", depth="required")
def hit_rate(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """1 if at least one of the first k places holds something relevant, else 0."""
    return float(1 - _chance_of_nothing_yet(scores, relevant)[: None if k is None else k + 1][-1])


@ranking_metric("MRR")
def mrr(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """1 / place of the first relevant item; 0 if there is none on the first k places (Voorhees 1999)."""
    first = -np.diff(_chance_of_nothing_yet(scores, relevant))[:k]
    return float((first / np.arange(1, len(first) + 1)).sum())


@ranking_metric("Recall", depth="required")
def recall(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Share of the relevant items that stand on the first k places."""
    return float(_chance_at_each_place(scores, relevant)[:k].sum() / n_relevant)


@ranking_metric("Precision", depth="required")
def precision(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Share of the first k places that hold something relevant; places beyond the end of the list hold nothing."""
    return float(_chance_at_each_place(scores, relevant)[:k].sum() / (k or len(scores)))


@ranking_metric("MAP")
def average_precision(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Mean over all relevant items of the precision at their place; 0 for those not on the first k places.

    The divisor is `n_relevant` at every depth, as in trec_eval's map and map_cut.
    """
    group, size, hits = _tie_groups(scores, relevant)
    start, hits_before = np.cumsum(size) - size, np.cumsum(hits) - hits
    place = np.arange(len(scores))
    inside = (place - start[group]) * (hits - 1)[group] / np.maximum(size - 1, 1)[group]
    precision_if_relevant = (hits_before[group] + inside + 1) / (place + 1)
    return float(((hits / size)[group] * precision_if_relevant)[:k].sum() / n_relevant)


@ranking_metric("AUC", depth="none")
def auc(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Chance that a relevant item scores above a candidate that is not relevant; an item never found always loses.

    NaN if every candidate is relevant: there is no pair to compare.
    """
    good, bad = scores[relevant][:, None], scores[~relevant]
    if not bad.size:
        return float("nan")
    return float(((good > bad).sum() + (good == bad).sum() / 2) / (n_relevant * bad.size))


def _once_a_user(formula: Callable[[Floats, Bools], T]) -> Callable[[Floats, Bools], T]:
    """The metrics of one user ask for the same: what was worked out for the latest users is given again."""

    @lru_cache(maxsize=8)
    def kept(scores: bytes, relevant: bytes) -> T:
        return formula(np.frombuffer(scores), np.frombuffer(relevant, dtype=np.bool_))

    @wraps(formula)
    def value(scores: Floats, relevant: Bools) -> T:
        return kept(scores.astype(np.float64).tobytes(), relevant.tobytes())

    return value


@_once_a_user
def _tie_groups(scores: Floats, relevant: Bools) -> tuple[Codes, Codes, Floats]:
    """Group number of each place, best first; size and number of relevant candidates of each group."""
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    hits: Floats = np.bincount(group, weights=relevant, minlength=len(size)).astype(np.float64)
    return np.repeat(np.arange(len(size)), size), size, hits


@_once_a_user
def _chance_at_each_place(scores: Floats, relevant: Bools) -> Floats:
    """Chance that each place, best first, holds something relevant; shape (n_candidates,)."""
    group, size, hits = _tie_groups(scores, relevant)
    chance: Floats = (hits / size)[group]
    return chance


@_once_a_user
def _chance_of_nothing_yet(scores: Floats, relevant: Bools) -> Floats:
    """Chance that the first 0, 1, … n places hold nothing relevant; shape (n_candidates + 1,)."""
    group, size, hits = _tie_groups(scores, relevant)
    left = size[group] - (np.arange(len(scores)) - (np.cumsum(size) - size)[group])  # of the group, at each place
    # where a group's relevant ones fill all that is left, the factor is 0: nothing after that place matters any more
    stays = np.maximum(left - hits[group], 0) / left
    return np.concatenate([[1.0], np.cumprod(stays)])


def chance_in_top(scores: Floats, k: int) -> Floats:
    """Chance that each candidate, in the order given, stands on the first k places; shape (n_candidates,)."""
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    left = k - (np.cumsum(size) - size)  # places for each group
    chance: Floats = np.clip(left / size, 0.0, 1.0)[group]
    return chance


def exposure(scores: Floats, k: int) -> Floats:
    """Expected 1 / log2(place + 1) of each candidate, in the order given, 0 beyond the first k places.

    How much an item is looked at, with the discount of DCG (Singh & Joachims 2018, arXiv 1802.07281). The items of a
    tie group share what its places have.
    """
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    looked_at = np.zeros(len(scores))
    looked_at[:k] = _discount(min(k, len(scores)))
    return np.asarray((np.add.reduceat(looked_at, np.cumsum(size) - size) / size)[group])


@lru_cache(maxsize=256)
def _discount(n: int) -> Floats:
    return 1 / np.log2(np.arange(2, n + 2))
