"""Rows that ask nothing of their own: they read what other rows were answered, and rank by all of them together.

Scores of different rows are brought together as choices: a row's scores of one user's candidates become the logarithms
of their softmax, and the mean of these is taken. That is the product of the rows' choices, each to the same power
(Hinton 2002, a product of experts with equal weights), so a row says as much as its scores differ. It suits templates
of one kind; where kinds differ in scale, weights can be learnt (tuning/mix.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewrec_prompt import scoring
from fewrec_prompt.scoring import Log, Row, Scored
from fewrec_prompt.tasks import EnsembleSettings
from fewrec_prompt.types import Query, Ranking


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A row of the table that several rows make up, whether they stand in the table themselves or not."""

    settings: EnsembleSettings
    members: tuple[Row, ...]

    @property
    def name(self) -> str:
        return joined([row.name for row in self.members])

    def read(self, queries: Sequence[Query], log: Log) -> Scored:
        """Rankings from the members' logged answers. What two members both asked counts twice in the time."""
        read = [scoring.read(row, queries, log) for row in self.members]
        together = zip(queries, *(one.rankings for one in read), strict=True)
        rankings = tuple(_together(query, of_user) for query, *of_user in together)
        n_cut = sum(len(query.history) - one.n_history for query, one in zip(queries, rankings, strict=True))
        ms = sum(one.ms_per_user or 0.0 for one in read)
        return Scored(self.name, rankings, self.settings, ms, {"history_items_cut": float(n_cut)})


def joined(names: Sequence[str]) -> str:
    """What the table calls an ensemble of these rows."""
    return " + ".join(names)


def _together(query: Query, rankings: Sequence[Ranking]) -> Ranking:
    """One ranking of several; it used as much history as the one that used least."""
    choices = [log_choice(_in_order(query, ranking)) for ranking in rankings]
    return Ranking.from_scores(query, np.mean(choices, axis=0).tolist(), min(one.n_history for one in rankings))


def log_choice(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax of one user's scores (n_candidates,), in nats."""
    top = scores.max()
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum()))


def _in_order(query: Query, ranking: Ranking) -> np.ndarray:
    """Scores (n_candidates,) in the order of the query's candidates."""
    score_of = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    return np.array([score_of[item.id] for item in query.candidates])
