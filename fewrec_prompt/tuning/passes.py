"""What a pass of a training is over: answers, what people took before them (a warm-up), or classes (labels.py).

A kind says of one task what is asked of the people of a step, the loss of each of them, how many tokens that takes,
and where the loss stood before anything was learnt. The loop knows no more of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.examples import Example, stepped_back
from fewrec_prompt.tuning.histories import Histories, losses_of_titles, titles
from fewrec_prompt.tuning.labels import OverLabels
from fewrec_prompt.tuning.lessons import Lesson, Measured
from fewrec_prompt.tuning.losses import LOSSES
from fewrec_prompt.tuning.mixture import Draw
from fewrec_prompt.tuning.negatives import Negatives
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, PassName, Settings
from fewrec_prompt.types import Question, TokenLogprobs


class Kind(Protocol):
    """What passes over one task are of."""

    def ask(self, draws: Sequence[Draw], turn: int, recommender: Recommender) -> list[Example]:
        """A question for each draw of one turn; `recommender` is the model as it is now."""

    def losses(self, recommender: Recommender, examples: Sequence[Example], log_scale: torch.Tensor) -> torch.Tensor:
        """Of questions asked together, (n_examples,) in nats, with gradients; scores are multiplied by the scale."""

    def n_tokens(self, recommender: Recommender, example: Example) -> int:
        """That the model computes for one question."""

    @property
    def together(self) -> bool:
        """Whether people of a step are asked together wherever they are learnt from: they are asked the same things."""

    def before(self, recommender: Recommender, examples: Sequence[Example]) -> tuple[float, float]:
        """(log of the scale that suits scores best, mean loss at it) of a recommender that learns nothing now."""


@dataclass(frozen=True)
class OverAnswers:
    """What each person took, among candidates: the task's own questions."""

    lesson: Lesson
    negatives: Negatives
    questions: int

    def ask(self, draws: Sequence[Draw], turn: int, recommender: Recommender) -> list[Example]:
        people = [self.lesson.examples[draw.place] for draw in draws]
        people = self.negatives(people, turn, torch.no_grad()(recommender.rank))
        return [stepped_back(one, self._back(draw)) for draw, one in zip(draws, people, strict=True)]

    def _back(self, draw: Draw) -> int:
        """How many things before the answer this draw asks about: another one every turn, all of them in every turn."""
        return (draw.place + draw.turn) % self.questions

    def losses(self, recommender: Recommender, examples: Sequence[Example], log_scale: torch.Tensor) -> torch.Tensor:
        asker, loss = graded(recommender), LOSSES[self.lesson.loss]
        answers = asker.answers_all([one.query for one in examples])
        scores = [asker.scores(own).float() * log_scale.exp() for own in answers]
        return torch.stack([loss(own, one.relevant) for own, one in zip(scores, examples, strict=True)])

    def n_tokens(self, recommender: Recommender, example: Example) -> int:
        return recommender.work(example.query)

    @property
    def together(self) -> bool:
        return self.negatives.name == "shared"

    def before(self, recommender: Recommender, examples: Sequence[Example]) -> tuple[float, float]:
        return self.lesson.suited(recommender, examples or self.lesson.examples)

    def measured(self, recommender: Recommender) -> Measured:
        return Measured(self.lesson.measured(recommender))


@dataclass(frozen=True)
class OverHistories:
    """Stretches of each person's history, title by title: no answer is looked at, so scores have no scale."""

    lesson: Lesson
    histories: Histories

    def ask(self, draws: Sequence[Draw], turn: int, _recommender: Recommender) -> list[Example]:
        return self.histories([self.lesson.examples[draw.place] for draw in draws], turn)

    def losses(self, recommender: Recommender, examples: Sequence[Example], _log_scale: torch.Tensor) -> torch.Tensor:
        return losses_of_titles(graded(recommender), [one.query for one in examples])

    def n_tokens(self, recommender: Recommender, example: Example) -> int:
        return recommender.backend.n_computed(titles(recommender, example.query))

    @property
    def together(self) -> bool:
        return False

    def before(self, recommender: Recommender, examples: Sequence[Example]) -> tuple[float, float]:
        return 0.0, float(np.mean([float(losses_of_titles(recommender, [one.query])) for one in examples]))


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of pass over a task: over what is learnt in the end, and over histories where those come first."""

    answers: OverAnswers | OverLabels
    histories: OverHistories | None = None

    @property
    def labels(self) -> OverLabels:
        """Of a classifier."""
        assert isinstance(self.answers, OverLabels), "it is one"
        return self.answers

    def of(self, name: PassName) -> Kind:
        """By what the settings call a pass."""
        found = self.histories if name == "histories" else self.answers
        assert found is not None, "a classifier takes no warm-up"
        return found


def kinds_of(lesson: Lesson, settings: Settings) -> Kinds:
    """What the passes of these settings are over. Raises DataError as Negatives do."""
    if settings.method in CLASSIFIERS:
        return Kinds(OverLabels(lesson, fixed=METHODS[settings.method].inside is None))
    negatives = Negatives(lesson.negatives, lesson.training, settings.seed)
    return Kinds(
        OverAnswers(lesson, negatives, settings.questions), OverHistories(lesson, lesson.histories(settings.seed))
    )


@dataclass(frozen=True, slots=True)
class First:
    """What is asked before anything is learnt, of each task, and perhaps again in the end."""

    kinds: Sequence[Kind]
    asked: Sequence[Sequence[Example]]

    def fitted(self, recommenders: Sequence[Recommender]) -> tuple[list[float], list[float]]:
        """For each task the log of the scale that suits its recommender's scores best, and the mean loss at it."""
        with torch.no_grad():
            asking = zip(self.kinds, recommenders, self.asked, strict=True)
            found = [kind.before(one, own) for kind, one, own in asking]
        return [log_scale for log_scale, _ in found], [loss for _, loss in found]


@dataclass(frozen=True, slots=True)
class Graded:
    """A backend whose answers carry gradients: what a recommender makes of them does, too."""

    backend: LocalBackend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def logprobs(self, questions: Sequence[Question]) -> list[TokenLogprobs]:
        return self.backend.logprobs(questions, grad=True)


def graded(recommender: Recommender) -> Recommender:
    """The recommender over a backend that runs here, with answers that carry gradients."""
    return replace(recommender, backend=Graded(recommender.backend))  # type: ignore[arg-type]  # all of a Backend
