"""What the people who are learnt from say of items, by themselves: a number an item, for a mix to weigh.

Where they took things, how many of them took it: the logarithm of one more. Where they liked and did not like, how much
more than other things it was liked. A label says something of the person, who likes much or little, and of the item;
what is left after the person's own mean is the item's effect, the mean over those who judged it, drawn towards 0 where
they are few (the baseline estimate of Koren 2010, TKDD 4 (1), section 2.1, persons first).

Whoever's answer is to be foretold must not be heard: a person can be left out. Items are told apart by id and title
together, as a digest: in other data the same id is something else, of which nothing is known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import numpy as np

from fewrec_prompt.data.training import Training
from fewrec_prompt.filters import LIKED
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.types import Item

SHRINKAGE = 5.0  # labels of no effect beside those that an item has; for a person, labels half of which are likes


class Others(Protocol):
    """People who are learnt from, as one who is not among them hears them."""

    @property
    def effects(self) -> Mapping[str, float]:
        """Of each item that one of them took or judged, by its key."""

    def without(self, person: str, keys: Iterable[str]) -> Mapping[str, float]:
        """Those of these items, from everybody but this person."""


def key_of(item: Item) -> str:
    """What an item is known by, here and in other runs over the same data."""
    return sha256(f"{item.id}\0{item.title}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Takers(Others):
    """What each person took."""

    taken: Mapping[str, Set[str]]

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(key for own in self.taken.values() for key in own)

    @cached_property
    def effects(self) -> Mapping[str, float]:
        return {key: float(np.log1p(n)) for key, n in self._counts.items()}

    def without(self, person: str, keys: Iterable[str]) -> Mapping[str, float]:
        own = self.taken.get(person, frozenset())
        return {key: float(np.log1p(self._counts[key] - (key in own))) for key in keys}


@dataclass(frozen=True)
class Judges(Others):
    """What each person liked, and did not like."""

    liked: Mapping[str, Mapping[str, bool]]

    @cached_property
    def _left(self) -> Mapping[str, Mapping[str, float]]:
        """Of each item, what is left of each person's label after how much the person likes."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for person, own in self.liked.items():
            usual = (sum(own.values()) + SHRINKAGE / 2) / (len(own) + SHRINKAGE)
            for key, liked in own.items():
                found[key][person] = liked - usual
        return found

    @cached_property
    def effects(self) -> Mapping[str, float]:
        """A share of likes: 0.1 is liked by a tenth more than other things are."""
        return {key: _drawn_in(left.values()) for key, left in self._left.items()}

    def without(self, person: str, keys: Iterable[str]) -> Mapping[str, float]:
        heard = {key: self._left.get(key, {}) for key in keys}
        return {key: _drawn_in(rest for name, rest in left.items() if name != person) for key, left in heard.items()}


def _drawn_in(left: Iterable[float]) -> float:
    rests = list(left)
    return sum(rests) / (len(rests) + SHRINKAGE)


def takers(examples: Sequence[Example], training: Training | None) -> Takers:
    """Their whole histories, of whom the training part holds them, what their questions show, and their answers."""
    found: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        query = example.query
        known = () if training is None else training.interactions(query.person)
        found[query.person] |= {key_of(seen.item) for seen in (*known, *query.history)}
        found[query.person] |= {key_of(query.candidates[place]) for place in example.relevant}
    return Takers(found)


def judges(examples: Sequence[Example]) -> Judges:
    """Labels of questions about single candidates: of their histories, where they are rated, and of the answers."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for example in examples:
        query = example.query
        own = found[query.person]
        own |= {key_of(seen.item): seen.rating >= LIKED for seen in query.history if seen.rating is not None}
        own |= {key_of(item): place in example.relevant for place, item in enumerate(query.candidates)}
    return Judges(found)
