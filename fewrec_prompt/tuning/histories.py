"""What people took, one thing after another, to model title by title: learning that looks at no answer.

A language model of lists is a recommender already: what goes on a list after other titles is what it is asked. So every
title of a stretch is a lesson, and since the prompts of a stretch begin alike, all of them cost little more than the
last one (as one sequence teaches every position in Kang & McAuley 2018, arXiv 1808.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import DataError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.types import Interaction, Query, Question


@dataclass(frozen=True, slots=True)
class Histories:
    """Draws stretches of what people took, each as a question about its last thing.

    `training` holds all that a person took, and no answer of anybody; without it, or of who is not in it, stretches are
    of what the question shows. `longest` is the number of things that a prompt shows.
    """

    training: Training | None
    longest: int
    seed: int

    def __call__(self, batch: Sequence[Example], turn: int) -> list[Example]:
        """For each example a stretch of the same person's history, another one every turn."""
        return [self._drawn(example.query, turn) for example in batch]

    def _drawn(self, query: Query, turn: int) -> Example:
        taken = self._whole(query)
        n = min(len(taken), self.longest + 1)
        first = int(rng_for(self.seed, "stretch", turn, query.user_id).integers(len(taken) - n + 1))
        *known, last = taken[first : first + n]
        return Example(replace(query, history=tuple(known), candidates=(last.item,)), (0,))

    def check(self, query: Query) -> None:
        """Raises DataError for a person who took nothing that could be modelled."""
        if not self._whole(query):
            raise DataError(f"user {query.user_id!r} has no history for a warm-up to model; leave them or it out")

    def _whole(self, query: Query) -> Sequence[Interaction]:
        """All that a person took, oldest first; what is shown of it at least."""
        return (self.training.interactions(query.person) if self.training is not None else ()) or query.history


def titles(recommender: Recommender, stretch: Query) -> list[Question]:
    """What is asked of a stretch: every title of it, those before it being known."""
    taken = (*(seen.item for seen in stretch.history), *stretch.candidates)
    steps = [replace(stretch, history=stretch.history[:n], candidates=(item,)) for n, item in enumerate(taken)]
    return [question for step in steps for question in recommender.questions(step)]


def losses_of_titles(recommender: Recommender, stretches: Sequence[Query]) -> torch.Tensor:
    """Mean loss of a token (nats) of the titles of each stretch, (n_stretches,); all are asked together.

    With gradients, if the backend's answers carry them.
    """
    groups = [titles(recommender, stretch) for stretch in stretches]
    answers = iter(recommender.backend.logprobs([question for group in groups for question in group]))
    means = []
    for group in groups:
        tokens = [torch.as_tensor(row) for answer in islice(answers, len(group)) for row in answer]
        means.append(-torch.cat(tokens).mean())
    return torch.stack(means)
