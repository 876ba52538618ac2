"""Matrix factorisation through the package `implicit`: ALS and BPR. One thread, so that a seed gives one result.

The settings are the package's customary ones and were tuned on nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewrec_prompt.data.training import Training
from fewrec_prompt.types import Query, Ranking

N_FACTORS = 64


@dataclass(frozen=True, slots=True)
class Als:
    """Alternating least squares (Hu, Koren & Volinsky 2008); a person's factors are solved for from the history."""

    training: Training
    model: Any  # implicit's

    def rank(self, query: Query) -> Ranking:
        taken = [self.training.place[seen.item.id] for seen in query.history]
        person = self.model.recalculate_user(0, _row(taken, len(self.training.item_ids)))
        return _ranked(query, self.training, self.model.item_factors @ person)


@dataclass(frozen=True, slots=True)
class Bpr:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618).

    A person known from training has factors of their own; anybody else the mean of those of the history's items.
    """

    training: Training
    model: Any
    place: dict[str, int]  # of users

    def rank(self, query: Query) -> Ranking:
        known = self.place.get(query.user_id)
        taken = [self.training.place[seen.item.id] for seen in query.history]
        person = self.model.item_factors[taken].mean(axis=0) if known is None else self.model.user_factors[known]
        return _ranked(query, self.training, self.model.item_factors @ person)


def als(training: Training, seed: int) -> Als:
    """15 rounds, regularisation 0.05, taken items weighted 40 times (as the paper has it)."""
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=N_FACTORS, regularization=0.05, alpha=40.0, iterations=15, num_threads=1, random_state=seed
    )
    model.fit(_matrix(training), show_progress=False)
    return Als(training, model)


def bpr(training: Training, seed: int) -> Bpr:
    """100 rounds, learning rate and regularisation 0.01."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(factors=N_FACTORS, iterations=100, num_threads=1, random_state=seed)
    model.fit(_matrix(training), show_progress=False)
    return Bpr(training, model, {user_id: place for place, user_id in enumerate(training.user_ids)})


def _matrix(training: Training) -> Any:
    """People by items: 1 where something was taken, however often."""
    from scipy.sparse import csr_matrix

    shape = len(training.user_ids), len(training.item_ids)
    matrix = csr_matrix((np.ones(len(training.codes), dtype=np.float32), (training.users, training.codes)), shape)
    matrix.data[:] = 1.0
    return matrix


def _row(taken: list[int], n_items: int) -> Any:
    from scipy.sparse import csr_matrix

    distinct = sorted(set(taken))
    return csr_matrix((np.ones(len(distinct), dtype=np.float32), ([0] * len(distinct), distinct)), (1, n_items))


def _ranked(query: Query, training: Training, scores: Any) -> Ranking:
    return Ranking.from_scores(query, [float(scores[training.place[item.id]]) for item in query.candidates])
