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

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import FewrecError, did_you_mean

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Function: TypeAlias = Callable[[Floats, Bools, int, int | None], float]
Depth: TypeAlias = Literal["optional", "required", "none"]

_TABLE: dict[str, tuple[Function, Depth]] = {}
_NAME = re.compile(r"([A-Za-z]+)(?:@([1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class RankingMetric:
    """A metric as it was named, e.g. nDCG@10. Call it with one user's scores, relevance, number of relevant items."""

    name: str
    function: Function
    k: int | None

    def __call__(self, scores: Floats, relevant: Bools, n_relevant: int) -> float:
        """The value in [0, 1]; NaN if nothing is relevant."""
        return self.function(scores, relevant, n_relevant, self.k)


def metric(name: str, depth: Depth = "optional") -> Callable[[Function], Function]:
    """Enter a function into the table of metrics. `depth` says whether its name takes an @k."""

    def enter(function: Function) -> Function:
        def value(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
            return float(function(scores, relevant, n_relevant, k)) if n_relevant else float("nan")

        value.__name__, value.__doc__ = function.__name__, function.__doc__
        _TABLE[name] = value, depth
        return value

    return enter


def metric_names() -> list[str]:
    """Our own metrics as they are written, e.g. nDCG@k (k stands for a number, brackets for what may be left out)."""
    tail = {"optional": "[@k]", "required": "@k", "none": ""}
    return [name + tail[depth] for name, (_, depth) in _TABLE.items()]


def is_own_name(name: str) -> bool:
    """Whether the name belongs to this grammar, rightly spelt or not: it carries an @, or differs in case only."""
    if "/" in name or name.endswith(".py"):
        return False
    return "@" in name or name.lower() in {own.lower() for own in _TABLE}


def parse_metric(name: str) -> RankingMetric:
    """The metric behind a name such as nDCG@10, HR@5 or MRR. Raises FewrecError with the nearest name."""
    match = _NAME.fullmatch(name)
    if not match and "@" in name:
        raise FewrecError(f"metric {name!r}: write a name, or a name and a depth from 1 up, e.g. nDCG@10")
    family, k = match.groups() if match else (name, None)
    if family not in _TABLE:
        raise FewrecError(f"unknown metric {name!r}; {_nearest(family)}")
    function, depth = _TABLE[family]
    if k and depth == "none":
        raise FewrecError(f"metric {name!r}: {family} looks at the whole list and takes no depth; write {family!r}")
    if not k and depth == "required":
        raise FewrecError(f"metric {name!r}: {family} needs a depth; write e.g. '{family}@10'")
    return RankingMetric(name, function, int(k) if k else None)


def _nearest(family: str) -> str:
    # difflib minds the case: to it, ndcg and nDCG are strangers
    same = next((own for own in _TABLE if own.lower() == family.lower()), family)
    return did_you_mean(same, _TABLE)


@metric("nDCG")
def ndcg(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Discounted gain of the first k places over the best possible with `n_relevant` relevant items.

    Binary gain, log2 discount (Järvelin & Kekäläinen 2002).
    """
    expected = _chance_at_each_place(scores, relevant)[:k]
    best = n_relevant if k is None else min(n_relevant, k)
    return float((expected * _discount(len(expected))).sum() / _discount(best).sum())


@metric("HR", depth="required")
def hit_rate(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """1 if at least one of the first k places holds something relevant, else 0."""
    return float(1 - _chance_of_nothing_yet(scores, relevant)[: None if k is None else k + 1][-1])


@metric("MRR")
def mrr(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """1 / place of the first relevant item; 0 if there is none on the first k places (Voorhees 1999)."""
    first = -np.diff(_chance_of_nothing_yet(scores, relevant))[:k]
    return float((first / np.arange(1, len(first) + 1)).sum())


@metric("Recall", depth="required")
def recall(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Share of the relevant items that stand on the first k places."""
    return float(_chance_at_each_place(scores, relevant)[:k].sum() / n_relevant)


@metric("Precision", depth="required")
def precision(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Share of the first k places that hold something relevant; places beyond the end of the list hold nothing."""
    return float(_chance_at_each_place(scores, relevant)[:k].sum() / (k or len(scores)))


@metric("MAP")
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


@metric("AUC", depth="none")
def auc(scores: Floats, relevant: Bools, n_relevant: int, k: int | None) -> float:
    """Chance that a relevant item scores above a candidate that is not relevant; an item never found always loses.

    NaN if every candidate is relevant: there is no pair to compare.
    """
    good, bad = scores[relevant][:, None], scores[~relevant]
    if not bad.size:
        return float("nan")
    return float(((good > bad).sum() + (good == bad).sum() / 2) / (n_relevant * bad.size))


def _tie_groups(scores: Floats, relevant: Bools) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Group number of each place, best first; size and number of relevant candidates of each group."""
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    hits: Floats = np.bincount(group, weights=relevant, minlength=len(size)).astype(np.float64)
    return np.repeat(np.arange(len(size)), size), size, hits


def _chance_at_each_place(scores: Floats, relevant: Bools) -> Floats:
    """Chance that each place, best first, holds something relevant; shape (n_candidates,)."""
    group, size, hits = _tie_groups(scores, relevant)
    chance: Floats = (hits / size)[group]
    return chance


def _chance_of_nothing_yet(scores: Floats, relevant: Bools) -> Floats:
    """Chance that the first 0, 1, … n places hold nothing relevant; shape (n_candidates + 1,)."""
    group, size, hits = _tie_groups(scores, relevant)
    left = size[group] - (np.arange(len(scores)) - (np.cumsum(size) - size)[group])  # of the group, at each place
    # where a group's relevant ones fill all that is left, the factor is 0: nothing after that place matters any more
    stays = np.maximum(left - hits[group], 0) / left
    return np.concatenate([[1.0], np.cumprod(stays)])


def _discount(n: int) -> Floats:
    return 1 / np.log2(np.arange(2, n + 2))
