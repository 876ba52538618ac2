"""Rank by a mix: ask what its rows ask, and weigh what they were answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewrec_prompt.recommender import Answers, Recommender
from fewrec_prompt.tuning.features import features_of, popularity_of
from fewrec_prompt.tuning.mix import Features, Floats, Mix
from fewrec_prompt.types import Query, Ranking


@dataclass(frozen=True, slots=True)
class MixRecommender:
    """Ranks by a mix of rows, by the names they have in the table; with counts by popularity, too.

    Without counts the mix must have been fitted without popularity.
    """

    rows: Mapping[str, Recommender]
    mix: Mix
    counts: Mapping[str, int] | None = None

    def rank(self, query: Query) -> Ranking:
        """The candidates, best first."""
        answers = [row.answers(query) for row in self.rows.values()]
        n_history = min(one.n_history for one in answers)
        return Ranking.from_scores(query, self.scores(query, answers).tolist(), n_history)

    def scores(self, query: Query, answers: Sequence[Answers]) -> Floats:
        """Scores (n_candidates,) from what each row was answered."""
        return self.mix.scores(all_features(self.rows, query, answers, self.counts))


def all_features(
    rows: Mapping[str, Recommender],
    query: Query,
    answers: Sequence[Answers],
    counts: Mapping[str, int] | None = None,
) -> Features:
    """The features of a query that several rows were asked; with counts popularity, too."""
    found: dict[str, Floats] = {}
    for (name, row), own in zip(rows.items(), answers, strict=True):
        found |= features_of(name, row, own)
    return found | (popularity_of(query, counts) if counts is not None else {})
