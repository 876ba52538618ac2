"""SASRec: self-attention over the order in which things were taken, trained on the training part.

The network and its training loop stand in backends/sequences.py; here is what it may see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewrec_prompt.data.training import Training
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Query, Ranking

LENGTH = 50  # items of a sequence
HELD_OUT = 0.1  # of the people who are not under test


@dataclass(frozen=True, slots=True)
class SasRec:
    """Kang & McAuley 2018, arXiv 1808.09781; the next item by softmax over the catalogue."""

    training: Training
    model: Any  # backends.sequences.SequenceModel

    def rank(self, query: Query) -> Ranking:
        place = self.training.place
        scores = self.model.scores([place[seen.item.id] for seen in query.history])
        return Ranking.from_scores(query, scores[[place[item.id] for item in query.candidates]].tolist())


def sasrec(training: Training, seed: int) -> SasRec:
    """Trained until the next item of people held out, none of them under test, is found no better."""
    from fewrec_prompt.backends.sequences import fit

    lists = [training.codes[start:end] for start, end in zip(training.starts, training.starts[1:], strict=False)]
    free = [place for place, user_id in enumerate(training.user_ids) if user_id not in training.tested]
    usable = [place for place in free or range(len(lists)) if len(lists[place]) > 1]
    drawn = rng_for(seed, "sasrec", "held out").permutation(usable)[: max(1, int(HELD_OUT * len(usable)))]
    held_out = {int(place) for place in drawn} if len(usable) > 1 else set()
    learned = [window for place, taken in enumerate(lists) if place not in held_out for window in _windows(taken)]
    asked = [lists[place][-LENGTH - 1 :].tolist() for place in sorted(held_out)]
    return SasRec(training, fit(learned, asked, len(training.item_ids), LENGTH, seed))


def _windows(taken: np.ndarray) -> list[list[int]]:
    """The sequence in pieces of LENGTH + 1, from its end, each beginning with the last item of the one before."""
    ends = range(len(taken), 1, -LENGTH)
    return [taken[max(0, end - LENGTH - 1) : end].tolist() for end in ends]
