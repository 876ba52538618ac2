"""AUC where people answer several questions of few candidates, perhaps of one: over all people, or person by person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fewrec_prompt.metrics.naming import Codes, Floats, Statistic, metric
from fewrec_prompt.metrics.ranking import auc
from fewrec_prompt.metrics.users import Mean, Shelf, UserScores, people_of

OF_SCORES = ("pooled-AUC", "user-AUC")  # those of this file: all that they need are scores and answers


@metric("pooled-AUC", "none", kind="run")
def pooled_auc(users: Sequence[UserScores], _shelf: Shelf, groups: Codes, _k: None) -> Statistic:
    """Chance that a relevant item of any user scores above an item of any user that is not relevant.

    Scores of different users are compared, which AUC never does: a scorer that knows who likes much and nothing of what
    can have a high one. A relevant item that is no candidate always loses.
    """
    sizes = [len(user.scores) for user in users]
    levels, level = np.unique(np.concatenate([user.scores for user in users]), return_inverse=True)
    relevant = np.concatenate([user.relevant for user in users])
    group = np.repeat(groups, sizes)
    n_relevant = np.bincount(groups, [user.n_relevant for user in users])

    def value(weights: Floats) -> float:
        weight = weights[group]
        good = np.bincount(level[relevant], weight[relevant], len(levels))
        bad = np.bincount(level[~relevant], weight[~relevant], len(levels))
        n_pairs = (weights @ n_relevant) * bad.sum()
        return float((good * (np.cumsum(bad) - bad / 2)).sum() / n_pairs) if n_pairs else float("nan")

    return value


@metric("user-AUC", "none", kind="run")
def user_auc(users: Sequence[UserScores], _shelf: Shelf, groups: Codes, _k: None) -> Statistic:
    """Mean over people of the AUC of all that a person was asked, whatever number of questions that took.

    Only scores of one person are compared, so knowing who likes much earns nothing. Undefined for people of whose
    candidates all or none are relevant: they are left out and counted.
    """
    who, people = people_of([user.user_id for user in users])
    group = np.zeros(len(people), dtype=np.intp)
    group[who] = groups
    asked: list[list[UserScores]] = [[] for _ in people]
    for user, place in zip(users, who.tolist(), strict=True):
        asked[place].append(user)
    return Mean(np.array(list(map(_auc, asked))), group)


def _auc(questions: Sequence[UserScores]) -> float:
    """The AUC of one person's questions taken together."""
    scores, relevant = (np.concatenate([getattr(one, name) for one in questions]) for name in ("scores", "relevant"))
    n_relevant = sum(one.n_relevant for one in questions)
    return auc(scores, relevant, n_relevant, None) if n_relevant else float("nan")
