"""Rows that ask nothing of their own: they read what other rows were answered, and rank by all of them together.

Scores of different rows are brought together as choices: a row's scores of one user's candidates become the logarithms
of their softmax, and the mean of these is taken. That is the product of the rows' choices, each to the same power
(Hinton 2002, a product of experts with equal weights), so a row says as much as its scores differ. It suits templates
of one kind; where kinds differ in scale, weights can be learnt (tuning/mix.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fewrec_prompt import scoring
from fewrec_prompt.scoring import Log, Row, Scored
from fewrec_prompt.task_settings import EnsembleSettings
from fewrec_prompt.tuning.features import POPULARITY
from fewrec_prompt.types import Query, Ranking

if TYPE_CHECKING:
    from fewrec_prompt.tuning.mixed import MixRecommender


class Together(Protocol):
    """A row of the table that other rows make up, whether they stand in the table themselves or not."""

    @property
    def members(self) -> tuple[Row, ...]: ...

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        """What a record says of learnt weights."""
        ...

    @property
    def name(self) -> str: ...

    def read(self, queries: Sequence[Query], log: Log) -> Scored:
        """Rankings from the members' logged answers. What two members both asked counts twice in the time."""
        ...


@dataclass(frozen=True, slots=True)
class Ensemble:
    """All members count alike."""

    settings: EnsembleSettings
    members: tuple[Row, ...]
    adapter: None = None

    @property
    def name(self) -> str:
        return called(self.settings, [row.name for row in self.members])

    def read(self, queries: Sequence[Query], log: Log) -> Scored:
        """Rankings by the mean of the members' choices."""
        read = [scoring.read(row, queries, log) for row in self.members]
        together = zip(queries, *(one.rankings for one in read), strict=True)
        rankings = tuple(_together(query, of_user) for query, *of_user in together)
        ms = sum(one.ms_per_user or 0.0 for one in read)
        return Scored(self.name, rankings, self.settings, ms, _notes(queries, rankings))


@dataclass(frozen=True, slots=True)
class Mixed:
    """Members count by the weights of a learnt mix."""

    settings: EnsembleSettings
    members: tuple[Row, ...]
    recommender: MixRecommender
    adapter: Mapping[str, Any]

    @property
    def name(self) -> str:
        return called(self.settings, [row.name for row in self.members])

    def read(self, queries: Sequence[Query], log: Log) -> Scored:
        """Rankings by the mix."""
        rankings, ms = [], []
        for query in queries:
            answers, costs = zip(*(scoring.logged(row, query, log) for row in self.members), strict=True)
            scores = self.recommender.scores(query, answers).tolist()
            rankings.append(Ranking.from_scores(query, scores, min(one.n_history for one in answers)))
            ms.append(sum(costs))
        return Scored(self.name, tuple(rankings), self.settings, float(np.mean(ms)), _notes(queries, rankings))


def together(
    settings: EnsembleSettings, members: Sequence[Row], counts: Mapping[str, int], *, force: bool = False
) -> Together:
    """The row that these settings describe. `counts` are the interactions of items, for a mix that looks at them.

    Raises AdapterError for a mix that belongs to other rows.
    """
    if settings.mix is None:
        return Ensemble(settings, tuple(members))
    from fewrec_prompt.tuning import mixed

    rows = {row.name: row.recommender for row in members}
    mix, about = mixed.load(Path(settings.mix), rows, force=force)
    known = counts if POPULARITY in mix.names else None
    return Mixed(settings, tuple(members), mixed.MixRecommender(rows, mix, known), about)


def called(settings: EnsembleSettings, names: Sequence[str]) -> str:
    """What the table calls an ensemble of rows of these names."""
    return " + ".join(names) + (f" mix {Path(settings.mix).name}" if settings.mix else "")


def _notes(queries: Sequence[Query], rankings: Sequence[Ranking]) -> dict[str, float]:
    n_cut = sum(len(query.history) - one.n_history for query, one in zip(queries, rankings, strict=True))
    return {"history_items_cut": float(n_cut)}


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
