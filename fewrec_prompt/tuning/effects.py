"""What the people who are learnt from say of items, by themselves: a number an item, for a mix to weigh.

Where they took things, how many of them took it: the logarithm of one more. Where they liked and did not like, how much
more than other things it was liked. A label says something of the person, who likes much or little, and of the item;
what is left after the person's own mean is the item's effect, the mean over those who judged it, drawn towards 0 where
they are few (the baseline estimate of Koren 2010, TKDD 4 (1), section 2.1, persons first).

Whoever's answer is to be foretold must not be heard: `without` leaves a person out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from fewrec_prompt.data.training import Training
from fewrec_prompt.filters import LIKED
from fewrec_prompt.tuning.examples import Example

SHRINKAGE = 5.0  # labels of no effect beside those that an item, or a person, has


class Others(Protocol):
    """People who are learnt from, as one who is not among them hears them."""

    @property
    def effects(self) -> Mapping[str, float]:
        """Of each item that one of them took or judged, by its id."""

    def without(self, person: str) -> Mapping[str, float]:
        """The same from everybody but this person."""


@dataclass(frozen=True)
class Takers(Others):
    """What each person took."""

    taken: Mapping[str, Set[str]]

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(item_id for own in self.taken.values() for item_id in own)

    @cached_property
    def effects(self) -> Mapping[str, float]:
        return {item_id: float(np.log1p(n)) for item_id, n in self._counts.items()}

    def without(self, person: str) -> Mapping[str, float]:
        own = self.taken.get(person, frozenset())
        return {**self.effects, **{item_id: float(np.log(self._counts[item_id])) for item_id in own}}


@dataclass(frozen=True)
class Judges(Others):
    """What each person liked, and did not like."""

    liked: Mapping[str, Mapping[str, bool]]

    @cached_property
    def effects(self) -> Mapping[str, float]:
        """A share of likes: 0.1 is liked by a tenth more than other things are."""
        everything = [liked for own in self.liked.values() for liked in own.values()]
        mean = float(np.mean(everything)) if everything else 0.0
        left: dict[str, list[float]] = defaultdict(list)
        for own in self.liked.values():
            usual = (sum(own.values()) + SHRINKAGE * mean) / (len(own) + SHRINKAGE)
            for item_id, liked in own.items():
                left[item_id].append(liked - usual)
        return {item_id: sum(rest) / (len(rest) + SHRINKAGE) for item_id, rest in left.items()}

    def without(self, person: str) -> Mapping[str, float]:
        return Judges({name: own for name, own in self.liked.items() if name != person}).effects


def takers(examples: Sequence[Example], training: Training | None) -> Takers:
    """Their whole histories, of whom the training part holds them, what their questions show, and their answers."""
    found: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        query = example.query
        known = () if training is None else training.interactions(query.person)
        found[query.person] |= {seen.item.id for seen in (*known, *query.history)}
        found[query.person] |= {query.candidates[place].id for place in example.relevant}
    return Takers(found)


def judges(examples: Sequence[Example]) -> Judges:
    """Labels of questions about single candidates: of their histories, where they are rated, and of the answers."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for example in examples:
        query = example.query
        own = found[query.person]
        own |= {seen.item.id: seen.rating >= LIKED for seen in query.history if seen.rating is not None}
        own |= {item.id: place in example.relevant for place, item in enumerate(query.candidates)}
    return Judges(found)
