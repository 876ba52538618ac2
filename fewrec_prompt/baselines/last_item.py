"""What is most like the item that a person took last: by words of titles and genres, or by an encoder's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.bm25 import Index
from fewrec_prompt.data.training import Training
from fewrec_prompt.metrics.users import TRAITS
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Item, Query, Ranking


def text_of(item: Item) -> str:
    """Title and genres of an item, as baselines read them."""
    fields = dict(item.fields)
    return ", ".join([shown_title(item.id, item.title), *(str(fields[name]) for name in TRAITS if name in fields)])


@dataclass(frozen=True, slots=True)
class Bm25:
    """BM25 over the catalogue, the text of the last item as the question."""

    place: Mapping[str, int]
    index: Index

    def rank(self, query: Query) -> Ranking:
        scores = self.index.scores(text_of(query.history[-1].item))
        return Ranking.from_scores(query, [float(scores[self.place[item.id]]) for item in query.candidates])


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
    texts = (text_of(training.items[item_id]) for item_id in training.item_ids)
    return Bm25(training.place, Index(texts))


def embedding(training: Training, _seed: int) -> Embedded:
    """By the sentence encoder in the hub cache, else by mean-pooled states of the embedded model.

    Raises AssetError or ModelError if neither can be had.
    """
    from fewrec_prompt.backends.sentences import embed

    vectors, encoder = embed([text_of(training.items[item_id]) for item_id in training.item_ids])
    return Embedded(training.place, vectors, encoder)
