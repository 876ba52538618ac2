"""Pairwise and setwise: sort by comparing a few candidates at a time, with a bound on the questions.

Both sort as bubbles rise. A pass goes from the last place to the first, so many candidates at a time, and the one that
the model chooses stands first among them; so the best comes to the first place, the next pass brings the second. With
two at a time this is PRP-Sliding-K (Qin et al. 2024, arXiv 2306.17563), with more the bubble sort of Setwise (Zhuang et
al. 2024, arXiv 2310.09497). What has been compared is not asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Query, Question
from fewrec_prompt.verbalizers.base import Group, Render, Rounds, Shown, distinct_words, replay


class Sorting(Shown):
    """Sorts the first `top` places; as many candidates are shown at a time as there are labels.

    `orders` are the orders in which they are shown, rotations of each other; the log-probabilities of an answer are
    added up over them. A comparison that would go beyond `max_questions` is not asked: what stands then is the ranking.
    """

    orders: PositiveInt = 1
    top: PositiveInt = 10
    max_questions: PositiveInt = 400

    @field_validator("labels")
    @classmethod
    def _compares(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        distinct_words(labels)
        if len(labels) < 2:
            raise ValueError("comparing takes two labels at least")
        return labels

    @property
    def many_rounds(self) -> bool:
        """Always: whom to compare next follows from who won."""
        return True

    def ask(self, query: Query, render: Render) -> list[Question]:
        """Questions that show every candidate, those of the longest titles together: by them is known what fits."""
        places = sorted(range(len(query.candidates)), key=lambda at: -_length(query, at))
        size = len(self.labels)
        groups = [tuple(places[at : at + size]) for at in range(0, len(places), size)]
        return [self.question(query, group, render) for group in groups]

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): n_candidates for the first place, 1 for the last."""
        return replay(self.rounds(query), logprobs)

    def rounds(self, query: Query) -> Rounds:
        """One comparison a round: the same candidates in each of the orders."""
        ranked = list(range(len(query.candidates)))
        known: dict[frozenset[int], int] = {}
        n_asked = 0
        for begin, end in _passes(len(ranked), len(self.labels), self.top):
            group = tuple(ranked[begin:end])
            if (winner := known.get(frozenset(group))) is None:
                views = [group[at:] + group[:at] for at in range(min(self.orders, len(group)))]
                n_asked += len(views)
                if n_asked > self.max_questions:
                    break
                winner = known[frozenset(group)] = _winner(group, views, (yield views))
            ranked.remove(winner)
            ranked.insert(begin, winner)
        scores = np.empty(len(ranked))
        scores[ranked] = np.arange(len(ranked), 0, -1)
        return scores


class Pairwise(Sorting):
    """Two candidates at a time, in both orders."""

    kind: Literal["pairwise"]
    orders: Literal[2] = 2

    @field_validator("labels")
    @classmethod
    def _two(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != 2:
            raise ValueError(f"a pair takes two labels, not {len(labels)}; for more at a time there is kind 'setwise'")
        return labels


class Setwise(Sorting):
    """As many candidates at a time as there are labels."""

    kind: Literal["setwise"]
    orders: PositiveInt = Field(default=1)


def _passes(n: int, size: int, top: int) -> Iterator[tuple[int, int]]:
    """The places [begin, end) that are compared, one after the other: pass by pass, from the last place upwards."""
    for first in range(min(top, n - 1)):
        end = n
        while end - first > 1:
            begin = max(first, end - size)
            yield begin, end
            end = begin + 1


def _winner(group: Group, views: Sequence[Group], logprobs: Sequence[Any]) -> int:
    """The candidate whose labels are likeliest over all views; of equals the one that stood first."""
    totals = dict.fromkeys(group, 0.0)
    for view, words in zip(views, logprobs, strict=True):
        for place, row in zip(view, words, strict=True):
            totals[place] += float(row.sum())
    return max(group, key=totals.__getitem__)


def _length(query: Query, place: int) -> int:
    item = query.candidates[place]
    return len(shown_title(item.id, item.title).encode())
