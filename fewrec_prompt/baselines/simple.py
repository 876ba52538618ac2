"""The two rows that are always printed: chance, and what everybody takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewrec_prompt.types import Query, Ranking


@dataclass(frozen=True, slots=True)
class Random:
    """All candidates alike. Metrics take ties at their expectation, so this row is chance itself, without its noise."""

    popularity: Mapping[str, int]

    def rank(self, query: Query) -> Ranking:
        return Ranking.from_scores(query, [0.0] * len(query.candidates))


@dataclass(frozen=True, slots=True)
class Popularity:
    """By how often each item was taken, in interactions that hold none of the answers."""

    popularity: Mapping[str, int]

    def rank(self, query: Query) -> Ranking:
        return Ranking.from_scores(query, [float(self.popularity.get(item.id, 0)) for item in query.candidates])
