"""Rows of one number an item, the same for everybody: chance, what everybody takes, what was taken last.

And one of a number a person: how much of the own history was liked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fewrec_prompt.data.dataset import LONG_AGO
from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Query, Ranking


@dataclass(frozen=True, slots=True)
class Random:
    """All candidates alike. Metrics take ties at their expectation, so this row is chance itself, without its noise."""

    training: Training
    seed: int

    def rank(self, query: Query) -> Ranking:
        return Ranking.from_scores(query, [0.0] * len(query.candidates))


@dataclass(frozen=True, slots=True)
class Popularity:
    """By how often each item was taken, in interactions that hold none of the answers."""

    training: Training
    seed: int

    def rank(self, query: Query) -> Ranking:
        return Ranking.from_scores(query, [float(self.training.popularity[item.id]) for item in query.candidates])


@dataclass(frozen=True, slots=True)
class Recency:
    """By when each item was last taken by anybody; what nobody took comes last."""

    last: Mapping[str, float]  # seconds since 1970

    def rank(self, query: Query) -> Ranking:
        never = min(self.last.values(), default=0.0) - 1
        return Ranking.from_scores(query, [self.last.get(item.id, never) for item in query.candidates])


@dataclass(frozen=True, slots=True)
class ShareLiked:
    """By the mean rating of the history, of likes and dislikes the share of liked items: who liked much likes this.

    All candidates of a question are alike, so it says something only where questions are compared (pooled-AUC,
    user-AUC). On TALLRec's films it has a higher AUC than the model (eval/published.toml).
    """

    training: Training
    seed: int

    def rank(self, query: Query) -> Ranking:
        """Raises DataError for a history without ratings."""
        if query.mean_rating is None:
            raise DataError(
                f"user {query.user_id!r}: no history item has a rating or a label, which the baseline 'share-liked' "
                "goes by; leave it out"
            )
        return Ranking.from_scores(query, [query.mean_rating] * len(query.candidates))


def recency(training: Training, _seed: int) -> Recency:
    """Raises DataError where interactions have no times, or only positions in each person's list."""
    if training.times is None or not (training.times >= LONG_AGO).any():
        raise DataError("baseline 'recency' needs times by the clock, and this data has none; leave it out")
    last = np.full(len(training.item_ids), -np.inf)
    np.fmax.at(last, training.codes, training.times)
    taken = zip(training.item_ids, last.tolist(), strict=True)
    return Recency({item_id: time for item_id, time in taken if np.isfinite(time)})
