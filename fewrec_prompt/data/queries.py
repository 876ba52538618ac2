"""Queries, and apart from them the answers: what a study starts from, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import DataError
from fewrec_prompt.types import Query

PROBLEMS = ("missing_target", "duplicate_candidates", "history_repeats", "unknown_ids", "empty_titles")
"""What can be counted: queries that have the problem; for empty_titles items of the catalogue; of a data set, the
interactions that were dropped for unknown_ids."""


@dataclass(frozen=True, slots=True)
class QuerySet:
    """Queries to rank, and what is needed to judge the rankings afterwards.

    Recommenders get single queries and the training part, never this: `qrels` is for the harness alone.
    """

    queries: tuple[Query, ...]
    qrels: Mapping[str, frozenset[str]]  # target ids by user id, perhaps not among the candidates; empty: only to rank
    problems: dict[str, int]  # every name of PROBLEMS, most often with 0
    popularity: Mapping[str, int]  # interactions by item id, for every item; no target is counted in it
    sources: dict[str, str]  # sha256 of the files it was made from, by file name
    training: Training | None = None  # None: whoever made the queries kept nothing to learn from

    def first(self, n: int) -> QuerySet:
        """The same with the first n users only, or all that there are."""
        return replace(self, queries=self.queries[:n])

    def of_people(self, keep: Callable[[str], bool]) -> QuerySet:
        """The same with the questions of some people only."""
        queries = tuple(query for query in self.queries if keep(query.person))
        qrels = {query.user_id: self.qrels[query.user_id] for query in queries if query.user_id in self.qrels}
        return replace(self, queries=queries, qrels=qrels)

    def to_learn_from(self) -> Training:
        """The training part, without anything a user had to do with the own targets; DataError if there is none."""
        if self.training is None:
            raise DataError("these queries come without training interactions, from which baselines learn")
        return self.training.without(self.qrels)


def no_problems(empty_titles: int = 0, unknown_ids: int = 0) -> dict[str, int]:
    """A count of zero for every kind of problem, but for those that a data set has."""
    return dict.fromkeys(PROBLEMS, 0) | {"empty_titles": empty_titles, "unknown_ids": unknown_ids}
