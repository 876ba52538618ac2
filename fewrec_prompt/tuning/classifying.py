"""Answer by what a model makes of a prompt instead of by its next word: hidden states, and a classifier of them.

A question about one item, such as yes or no, becomes the hidden state of its prompt; a classifier gives each class a
share, which the class's label words divide among them. To a recommender this is a backend like any other, so the
verbalizer reads log-odds of like, or expected ratings, and everything that scores, logs and ranks stays as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import torch

from fewrec_prompt.backends import Backend
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.catalogue import Found, Rule
from fewrec_prompt.errors import DataError, ModelError, NumericError, VerbalizerError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.templates import Template
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.types import Item, Prompt, Query, Question, TokenLogprobs

KINDS = ("judge", "rate")  # of templates that ask about one item at a time


class Classifier(Protocol):
    """Tells classes apart by hidden states."""

    def log_shares(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probability (n, n_classes), in nats, of each class after each state (n, width)."""
        ...

    def to_tensors(self) -> dict[str, np.ndarray]:
        """All that it learnt, as arrays by name."""
        ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item that a person has judged: what was known of the person before, and the class, from 0."""

    query: Query
    item: Item
    label: int

    @property
    def question(self) -> Query:
        """About the item alone."""
        return replace(self.query, candidates=(self.item,))


def labels_of(recommender: Recommender, example: Example) -> list[Labelled]:
    """What a person has judged, in the way in which the recommender asks; none where nothing is known.

    Where it judges, that is every candidate: liked where it is an answer, else not. Where it rates, it is the last
    rated item of the history that comes after another one, with what came before it, and no answer is looked at: a
    rating of 1 is class 0. Raises DataError for a rating that is no class, VerbalizerError as `classes_of`.
    """
    n_classes, query = n_classes_of(recommender), example.query
    if recommender.verbalizer.kind == "judge":
        places = enumerate(query.candidates)
        return [Labelled(query, item, int(place in example.relevant)) for place, item in places]
    rated = [place for place, seen in enumerate(query.history) if place and seen.rating is not None]
    if not rated:
        return []
    last = query.history[rated[-1]]
    known = replace(query, history=query.history[: rated[-1]])
    return [Labelled(known, last.item, _class(last.rating, n_classes, query.user_id))]


def check_labels(
    recommender: Recommender, learnt: Sequence[Example], held_out: Sequence[Example], *, every: bool
) -> None:
    """Raises DataError where nothing is to be learnt from, a class has no example though `every` has to have one, or a
    person is in two parts, and what `labels_of` raises."""
    labels = [one.label for example in learnt for one in labels_of(recommender, example)]
    if not labels:
        raise DataError("nobody has rated an item after another one; learn from likes instead, as --prompt judge does")
    if every:
        check_every(labels, n_classes_of(recommender))
    if len(set(labels)) < 2:
        raise DataError(
            f"{len(labels)} items of one class say nothing of another; give items of two classes at least, such as "
            "those of more people"
        )
    if both := sorted({one.query.person for one in learnt} & {one.query.person for one in held_out}):
        raise DataError(f"user {both[0]!r} is learnt from and held out; each person in one part")


def check_every(labels: Sequence[int], n_classes: int) -> None:
    """Raises DataError for a class without an example."""
    if lacking := sorted(set(range(n_classes)) - set(labels)):
        raise DataError(
            f"class {lacking[0]} of {n_classes} has no example; give at least one of each, such as those of more people"
        )


def _class(rating: float | None, n_classes: int, user_id: str) -> int:
    assert rating is not None, "only rated items are taken"
    if rating != int(rating) or not 1 <= rating <= n_classes:
        raise DataError(
            f"user {user_id!r}: the rating {rating:g} is none of 1 to {n_classes}; learn from "
            "likes instead, as --prompt judge does"
        )
    return int(rating) - 1


def prompts_of(recommender: Recommender, labelled: Sequence[Labelled]) -> list[Prompt]:
    """The prompt that asks about each item, with as much history as fits."""
    classes_of(recommender)
    asked = (recommender.questions(one.question) for one in labelled)
    return [question.prompt for (question,) in asked]


def classes_of(recommender: Recommender) -> dict[str, int]:
    """The class of every continuation that the recommender asks. Raises VerbalizerError for one that asks of all items
    at once."""
    verbalizer, lead = recommender.verbalizer, recommender.template.front.lead
    check_kind(recommender.template)
    if verbalizer.kind == "judge":
        return {lead + word: 1 for word in verbalizer.yes} | {lead + word: 0 for word in verbalizer.no}
    assert verbalizer.kind == "rate", "its kind was checked"
    places = enumerate((label,) if isinstance(label, str) else label for label in verbalizer.labels)
    return {lead + word: place for place, words in places for word in words}


def n_classes_of(recommender: Recommender) -> int:
    """How many classes its questions tell apart: no and yes, or the ratings. Raises VerbalizerError as `classes_of`."""
    return 1 + max(classes_of(recommender).values())


def check_kind(template: Template) -> None:
    """Raises VerbalizerError for a template that does not ask about one item at a time."""
    if template.kind not in KINDS:
        raise VerbalizerError(
            f"{template.ref.origin}: a classifier judges one item at a time, which takes a template of kind 'judge' or "
            f"'rate', not {template.kind!r}; name one, such as --prompt judge"
        )


def hidden(backend: Backend, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
    """The hidden states (n_prompts, width) of prompts. Raises ModelError for a backend that shows none."""
    if not hasattr(backend, "hidden"):
        raise ModelError(
            f"{type(backend).__name__} shows no hidden states, from which a classifier learns; use a model from files "
            "that runs here"
        )
    return backend.hidden(prompts, grad=grad)


class ClassifierBackend:
    """A backend whose label words are said by a classifier of its hidden states."""

    def __init__(self, backend: Backend, classifier: Classifier, classes: Mapping[str, int]) -> None:
        self.backend, self.classifier, self.classes = backend, classifier, dict(classes)
        self.context_window, self.mode, self.files = backend.context_window, backend.mode, backend.files

    @property
    def adapter(self) -> str:
        """sha256 of the classifier's numbers, and of what is learned in the model below it."""
        whole = sha256(str(getattr(self.backend, "adapter", None)).encode())
        for name, array in sorted(self.classifier.to_tensors().items()):
            whole.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-share of each label word, in nats, as a row of one number; torch rows with `grad`.

        Raises ModelError for words that stand for no class, NumericError for shares that are not finite.
        """
        for question in questions:
            self._check(question)
        states = hidden(self.backend, [question.prompt for question in questions], grad=grad)
        if grad:
            shares: Any = self.classifier.log_shares(states)
        else:
            with torch.no_grad():
                shares = self.classifier.log_shares(torch.from_numpy(states)).double().cpu().numpy()
            if not np.isfinite(shares).all():
                raise NumericError("a classifier's shares are not finite; its folder is no good, or the model's states")
        return [tuple(self._words(question, row)) for question, row in zip(questions, shares, strict=True)]

    def _words(self, question: Question, row: Any) -> Iterator[Any]:
        """The share of a class, divided among its words."""
        classes = [self.classes[word] for word in question.continuations]
        n_words = Counter(classes)
        for one in classes:
            yield row[one : one + 1] - math.log(n_words[one])

    def _check(self, question: Question) -> None:
        unknown = [word for word in question.continuations if word not in self.classes]
        if unknown:
            raise ModelError(
                f"{question.prompt.template.origin}: the answer {unknown[0]!r} is no class of this classifier; it was "
                f"learnt for {', '.join(map(repr, self.classes))}"
            )

    def identity(self, questions: Sequence[Question]) -> None:
        """None: answers of a classifier are kept in their run alone."""

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """Raises ModelError: a classifier has no titles to search."""
        raise ModelError("a classifier judges items and cannot search a catalogue of titles; rank candidates")

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of plain text."""
        return self.backend.count_tokens(text)

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence that the model below would make of it."""
        return self.backend.n_tokens(question)

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens that the model below would compute for them."""
        return self.backend.n_computed(questions)


def classified(recommender: Recommender, classifier: Classifier, backend: Backend | None = None) -> Recommender:
    """The recommender as it ranks with the classifier, over its own backend or another one.

    A calibration is left out: a classifier learns what a label word is worth.
    """
    made = ClassifierBackend(backend or recommender.backend, classifier, classes_of(recommender))
    return replace(recommender, backend=made, calibration=Calibration())
