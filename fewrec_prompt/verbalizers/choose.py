"""Choose: all candidates in one question, each beside a label. More candidates than labels are shown in windows that
overlap; more orders than one are averaged, so that no candidate is better for where it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.templates import ShownDemo
from fewrec_prompt.types import Demo, Query, Question
from fewrec_prompt.verbalizers.base import Group, Render, Rounds, Shown, distinct_words, mean, replay, stack

Orders = PositiveInt | Literal["balanced"]


class Choose(Shown):
    """One question for all candidates; a score is log p(label), a mean over orders.

    `orders` is how many orders are asked: the one given, then others drawn by the seed for each user, no two alike
    (Hou et al. 2024, arXiv 2305.08845, bootstrapping). "balanced" asks every rotation of the list, so that every
    candidate stands at every place once. With `settled` they are asked one by one, until the first so many places stay
    as they were; `orders` is then the most.
    """

    kind: Literal["choose"]
    orders: Orders = 1
    settled: PositiveInt | None = None
    seed: int = 0

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        distinct_words(labels)
        return labels

    @model_validator(mode="after")
    def _has_orders(self) -> Choose:
        if self.settled is not None and self.orders == 1:
            raise ValueError("`settled` compares orders; ask for more of them, such as orders = 8")
        return self

    @property
    def many_rounds(self) -> bool:
        """Whether an order is asked only if the ones before it do not agree."""
        return self.settled is not None

    def ask(self, query: Query, render: Render) -> list[Question]:
        """A question for each window of each order. Raises VerbalizerError for one label and several candidates."""
        return [
            self.question(query, group, render)
            for order in self.orders_of(query)
            for group in self._windows(query, order)
        ]

    def shown(self, demo: Demo, labels: Sequence[str]) -> tuple[ShownDemo, ...]:
        """The label beside the answer. Raises VerbalizerError for an example with more candidates than labels."""
        if demo.answer >= len(labels):
            raise VerbalizerError(f"example of user {demo.query.user_id!r}: no label for candidate {demo.answer + 1}")
        return (ShownDemo(demo, demo.query.candidates[demo.answer], labels[demo.answer]),)

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): log-probability of each label in nats; of several windows up to a constant."""
        if self.many_rounds:
            return replay(self.rounds(query), logprobs)
        rows = iter(logprobs)
        asked = (self._windows(query, order) for order in self.orders_of(query))
        return mean([merged(groups, list(islice(rows, len(groups)))) for groups in asked])

    def rounds(self, query: Query) -> Rounds:
        """Order after order, until the first `settled` places stay as they were."""
        found: list[Any] = []
        before: list[int] = []
        for order in self.orders_of(query):
            groups = self._windows(query, order)
            found.append(merged(groups, (yield groups)))
            first = best(mean(found), self.settled)
            if first == before:
                break
            before = first
        return mean(found)

    def orders_of(self, query: Query) -> list[Group]:
        """Orders in which the candidates are shown; never more than there are. With more, the first ones stay."""
        n = len(query.candidates)
        given = tuple(range(n))
        if self.orders == "balanced":
            return [given[at:] + given[:at] for at in given]
        wanted = self.orders if n > 20 else min(self.orders, math.factorial(n))
        drawn = self._drawn(query)
        found = dict.fromkeys([given])
        while len(found) < wanted:
            found[next(drawn)] = None
        return list(found)

    def _drawn(self, query: Query) -> Iterator[Group]:
        rng = rng_for(self.seed, "orders", query.user_id)
        while True:
            yield tuple(rng.permutation(len(query.candidates)).tolist())

    def _windows(self, query: Query, order: Group) -> list[Group]:
        if len(self.labels) < 2 <= len(order):
            raise VerbalizerError(
                f"user {query.user_id!r}: {len(order)} candidates but only 1 label, so no two of them can be "
                "compared; use a verbalizer with more labels"
            )
        return windows(order, len(self.labels))


def windows(places: Group, size: int) -> list[Group]:
    """The places in order, at most `size` at a time; half of a window (rounded down) stands in the next one too."""
    overlap = size // 2
    starts = range(0, max(1, len(places) - overlap), size - overlap)
    return [places[start : start + size] for start in starts]


def merged(groups: Sequence[Group], logprobs: Sequence[Any]) -> Any:
    """Scores (n_candidates,) of windows that overlap, in the order of the candidates.

    If a model chooses by Luce's rule (1959), log-probabilities of labels are a candidate's own worth minus a number
    that all of a window share. So each window is shifted until it agrees, on the mean, with what the windows before it
    say about the candidates that both hold; a candidate's score is the mean over its windows. Within one window nothing
    changes. Unlike the sliding windows of Sun et al. 2023 (arXiv 2304.09542) no window waits for another.
    """
    found: dict[int, list[Any]] = {}
    for group, words in zip(groups, logprobs, strict=True):
        own = [row.sum() for row in words]
        gaps = [mean(found[place]) - score for place, score in zip(group, own, strict=True) if place in found]
        shift = mean(gaps) if gaps else 0.0
        for place, score in zip(group, own, strict=True):
            found.setdefault(place, []).append(score + shift)
    return stack([mean(found[place]) for place in sorted(found)])


def best(scores: Any, k: int | None) -> list[int]:
    """Places of the k best, best first; of equals the earlier one."""
    return sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place))[:k]
