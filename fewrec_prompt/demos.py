"""Demonstrations: which examples of other people a prompt shows (in-context learning, arXiv 2005.14165).

| choice | the examples | the same for everybody |
|---|---|---|
| random | drawn by the seed | yes |
| diverse | one drawn, then again and again the one least like all before it | yes |
| similar | those with the nearest histories by BM25, the nearest last (Liu et al. 2021, arXiv 2101.06804) | no |

What is the same for everybody is a beginning that all prompts share, and is computed once. Nobody is shown their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Literal, get_args

import numpy as np

from fewrec_prompt.data.bm25 import Index
from fewrec_prompt.errors import DataError, did_you_mean
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.text import words
from fewrec_prompt.types import Demo, Query

DemosName = Literal["random", "diverse", "similar"]


@dataclass(frozen=True, eq=False)
class Demos:
    """Chooses up to `n` examples of a pool for a query. Raises DataError for an unknown choice or an empty pool."""

    pool: tuple[Demo, ...]
    how: DemosName = "similar"
    n: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in get_args(DemosName):
            raise DataError(f"unknown choice of examples {self.how!r}; {did_you_mean(self.how, get_args(DemosName))}")
        if not self.pool or self.n < 1:
            raise DataError(f"{self.n} examples of {len(self.pool)} people were asked; give one of one at least")

    def __call__(self, query: Query) -> tuple[Demo, ...]:
        """The examples for this query, in the order in which they are shown."""
        others = (at for at in self._order(query) if self.pool[at].query.person != query.person)
        chosen = [at for at, _ in zip(others, range(self.n), strict=False)]
        if self.how == "similar":
            chosen.reverse()  # what is read last counts most
        return tuple(self.pool[at] for at in chosen)

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides what is chosen."""
        people = [(one.query.user_id, _text(one.query), _titles(one.query), one.answer, one.liked) for one in self.pool]
        return sha256(repr((people, self.how, self.n, self.seed)).encode("utf-8", "surrogatepass")).hexdigest()

    def _order(self, query: Query) -> Sequence[int]:
        """The pool, best first."""
        if self.how != "similar":
            return self._fixed
        scores = self._index.scores(_text(query))
        return [int(at) for at in np.lexsort((np.arange(len(scores)), -scores))]

    @cached_property
    def _index(self) -> Index:
        return Index(_text(one.query) for one in self.pool)

    @cached_property
    def _fixed(self) -> list[int]:
        drawn = rng_for(self.seed, "examples").permutation(len(self.pool)).tolist()
        return drawn if self.how == "random" else list(self._apart(drawn))

    def _apart(self, drawn: Sequence[int]) -> Iterator[int]:
        """Farthest first (Gonzalez 1985), by the share of words that two histories have in common; one more than n."""
        said = [frozenset(words(_text(one.query))) for one in self.pool]
        left, nearest = list(drawn), dict.fromkeys(drawn, 0.0)
        while left:
            chosen = min(left, key=lambda at: nearest[at])  # of equal ones the first that was drawn
            left.remove(chosen)
            yield chosen
            for at in left:
                nearest[at] = max(nearest[at], _alike(said[at], said[chosen]))


def _alike(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard's index."""
    return len(a & b) / max(1, len(a | b))


def _text(query: Query) -> str:
    return " ".join(seen.item.title for seen in query.history)


def _titles(query: Query) -> list[str]:
    return [item.title for item in query.candidates]
