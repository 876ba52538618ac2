"""What is most like the item that a person took last: by words of titles and genres, or by an encoder's vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.training import Training
from fewrec_prompt.metrics.users import TRAITS
from fewrec_prompt.text import shown_title, words
from fewrec_prompt.types import Item, Query, Ranking

K1, B = 1.2, 0.75


def text_of(item: Item) -> str:
    """Title and genres of an item, as baselines read them."""
    fields = dict(item.fields)
    return ", ".join([shown_title(item.id, item.title), *(str(fields[name]) for name in TRAITS if name in fields)])


@dataclass(frozen=True)
class Bm25:
    """Okapi BM25 over the catalogue, the text of the last item as the question (Robertson & Zaragoza 2009).

    k1 1.2, b 0.75; a word in more than half of the items still counts a little.
    """

    items: Mapping[str, Item]

    def rank(self, query: Query) -> Ranking:
        asked = set(words(text_of(query.history[-1].item)))
        return Ranking.from_scores(query, [self._score(asked, item.id) for item in query.candidates])

    def _score(self, asked: set[str], item_id: str) -> float:
        counts = self._counts[item_id]
        norm = K1 * (1 - B + B * counts.total() / self._mean_length)
        return sum(
            self._rarity[word] * counts[word] * (K1 + 1) / (counts[word] + norm)
            for word in sorted(asked & counts.keys())
        )

    @cached_property
    def _counts(self) -> dict[str, Counter[str]]:
        return {item_id: Counter(words(text_of(item))) for item_id, item in self.items.items()}

    @cached_property
    def _mean_length(self) -> float:
        return float(np.mean([counts.total() for counts in self._counts.values()]))

    @cached_property
    def _rarity(self) -> dict[str, float]:
        n_items, holding = len(self._counts), Counter(word for counts in self._counts.values() for word in counts)
        return {word: log(1 + (n_items - n + 0.5) / (n + 0.5)) for word, n in holding.items()}


@dataclass(frozen=True, slots=True)
class Embedded:
    """Cosine of the last item's vector and each candidate's."""

    place: Mapping[str, int]
    vectors: npt.NDArray[np.float32]  # (n_items, n_dimensions), of length 1
    about: str  # which encoder made them

    def rank(self, query: Query) -> Ranking:
        last = self.vectors[self.place[query.history[-1].item.id]]
        others = self.vectors[[self.place[item.id] for item in query.candidates]]
        return Ranking.from_scores(query, (others @ last).tolist())


def bm25(training: Training, _seed: int) -> Bm25:
    """Needs no interactions."""
    return Bm25(training.items)


def embedding(training: Training, _seed: int) -> Embedded:
    """By the sentence encoder in the hub cache, else by mean-pooled states of the embedded model.

    Raises AssetError or ModelError if neither can be had.
    """
    from fewrec_prompt.backends.sentences import embed

    vectors, encoder = embed([text_of(training.items[item_id]) for item_id in training.item_ids])
    return Embedded(training.place, vectors, encoder)
