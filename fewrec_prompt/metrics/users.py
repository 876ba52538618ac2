"""What is measured: one user's scores beside what was relevant, and what is known of the items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fewrec_prompt.errors import DataError, NumericError
from fewrec_prompt.metrics.naming import Bools, Codes, Floats
from fewrec_prompt.text import words
from fewrec_prompt.types import Item, person_of

TRAITS = ("genres", "genre", "categories", "category", "tags")
"""Fields that say what an item is like, the first one that an item has counts; they hold a list joined by commas."""


@dataclass(frozen=True, slots=True, eq=False)
class UserScores:
    """What one user's candidates scored, and which of them are relevant: here ranking and qrels meet.

    `n_relevant` counts all relevant items of the user; those that are no candidates count as never found. The rest is
    for metrics that look at more than scores; the order of the candidates is that of the prompt.
    """

    user_id: str
    scores: Floats  # (n_candidates,), higher is better; infinite is an order too, NaN is none
    relevant: Bools  # (n_candidates,)
    n_relevant: int
    item_ids: tuple[str, ...] = ()  # of the candidates
    history_ids: tuple[str, ...] = ()
    probabilities: Floats | None = None  # (n_candidates,): that it is relevant, where the scorer says so

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.shape != self.relevant.shape:
            raise DataError(
                f"user {self.user_id}: scores of shape {self.scores.shape} and relevance of shape "
                f"{self.relevant.shape}; give one of each per candidate"
            )
        if self.relevant.dtype != np.bool_:
            raise DataError(f"user {self.user_id}: relevance is {self.relevant.dtype}; give true or false")
        if np.isnan(self.scores).any():
            raise NumericError(f"user {self.user_id}: {np.isnan(self.scores).sum()} scores are not a number (NaN)")
        if self.n_relevant < self.relevant.sum():
            raise DataError(
                f"user {self.user_id}: {self.relevant.sum()} relevant candidates, but n_relevant is {self.n_relevant}"
            )

    @property
    def person(self) -> str:
        """Whose question this is."""
        return person_of(self.user_id)

    @classmethod
    def from_lists(cls, user_id: str, scores: Sequence[float], relevant: Sequence[int], n_relevant: int) -> UserScores:
        """From plain lists, relevance as 0 and 1."""
        if not set(relevant) <= {0, 1}:
            raise DataError(f"user {user_id}: relevance holds {sorted(set(relevant) - {0, 1})}; give 0 or 1")
        return cls(user_id, np.array(scores, dtype=np.float64), np.array(relevant, dtype=np.bool_), n_relevant)


def people_of(user_ids: Sequence[str]) -> tuple[Codes, list[str]]:
    """Whose each question is, as places (n_questions,), and the people in the order in which they first come."""
    places: dict[str, int] = {}
    codes = [places.setdefault(person_of(user_id), len(places)) for user_id in user_ids]
    return np.array(codes, dtype=np.intp), list(places)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """A Statistic: the mean of values, of which each counts as much as its group; NaN is left out and counted."""

    values: Floats  # (n,)
    groups: Codes  # (n,)

    def __call__(self, weights: Floats) -> float:
        weight = np.where(np.isnan(self.values), 0.0, weights[self.groups])
        total = weight.sum()
        return float((weight * np.nan_to_num(self.values)).sum() / total) if total else float("nan")

    @property
    def n_excluded(self) -> int:
        return int(np.isnan(self.values).sum())

    @property
    def n_known(self) -> int:
        return len(self.values) - self.n_excluded


@dataclass(frozen=True)
class Shelf:
    """The catalogue as metrics see it: how often each item was taken, and what items are like.

    `popularity` has an entry for every item of the catalogue. `traits` are the genres of an item, or the words of its
    title where it has none; `groups` are labels, each with the items of its group; of the items that are candidates.
    """

    popularity: Mapping[str, int] = field(default_factory=dict)
    traits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, popularity: Mapping[str, int], items: Iterable[Item], groups: Mapping[str, frozenset[str]] | None = None
    ) -> Shelf:
        """The shelf of these counts, items and groups; an item may come more than once."""
        traits = {item.id: _traits(item) for item in {item.id: item for item in items}.values()}
        return cls(popularity, traits, groups or {})

    @cached_property
    def places(self) -> dict[str, int]:
        """A number for each item of the catalogue."""
        return {item_id: place for place, item_id in enumerate(self.popularity)}

    @cached_property
    def trait_places(self) -> dict[str, int]:
        """A number for each trait."""
        return {trait: place for place, trait in enumerate(sorted(set().union(*self.traits.values())))}

    @cached_property
    def information(self) -> dict[str, float]:
        """Bits that an item's being taken tells: -log2 of its share of all interactions, each item counted once more.

        The one more keeps an item that nobody took finite.
        """
        total = sum(self.popularity.values()) + len(self.popularity)
        return {item_id: float(np.log2(total / (count + 1))) for item_id, count in self.popularity.items()}


def _traits(item: Item) -> frozenset[str]:
    fields = dict(item.fields)
    listed = next((str(fields[name]) for name in TRAITS if name in fields), None)
    if listed is None:
        return frozenset(words(item.title))
    return frozenset(part.strip().casefold() for part in listed.replace("|", ",").split(",") if part.strip())
