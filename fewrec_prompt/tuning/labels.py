"""Passes of a classifier: over the classes of items that each person judged or rated, told by hidden states.

Where the model below the classifier stays as it is, so do its states, and each is computed once (states.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.classifying import ClassifierBackend, labels_of
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.lessons import Lesson, Measured
from fewrec_prompt.tuning.mixture import Draw
from fewrec_prompt.tuning.states import states_of


@dataclass(frozen=True, slots=True)
class Judged:
    """How right classes are, in fractions; of more than two, precision, recall and F1 are means over the classes."""

    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class OverLabels:
    """The classes of what each person judged or rated, by cross-entropy; `fixed` says that states stay as they are."""

    lesson: Lesson
    fixed: bool

    def ask(self, draws: Sequence[Draw], _turn: int, _recommender: Recommender) -> list[Example]:
        return [self.lesson.examples[draw.place] for draw in draws]

    def losses(self, recommender: Recommender, examples: Sequence[Example], _log_scale: torch.Tensor) -> torch.Tensor:
        losses = map(cross_entropy, *self._told(recommender, examples, grad=True))
        return torch.stack(list(losses))

    def n_tokens(self, recommender: Recommender, example: Example) -> int:
        if self.fixed and example in self.lesson.states:
            return 0
        return sum(recommender.work(one.question) for one in labels_of(recommender, example))

    @property
    def together(self) -> bool:
        return False

    def before(self, recommender: Recommender, examples: Sequence[Example]) -> tuple[float, float]:
        """Of the classifier as it begins, or of an earlier round's: its shares have no scale."""
        losses = map(cross_entropy, *self._told(recommender, examples))
        return 0.0, float(torch.stack(list(losses)).mean())

    def measured(self, recommender: Recommender) -> Measured:
        """Log-loss as it is learnt, each question counting alike, and how right all classes are."""
        with torch.no_grad():
            shares, right = self._told(recommender, self.lesson.held_out)
            loss = float(torch.stack([*map(cross_entropy, shares, right)]).mean())
        found = [own.argmax(-1) for own in shares]
        return Measured(loss, asdict(judge(torch.cat(found).tolist(), torch.cat(right).tolist(), shares[0].shape[1])))

    def states(self, recommender: Recommender, examples: Sequence[Example]) -> torch.Tensor:
        """Hidden states (n_labels, width) of all that these people judged, as the model below makes them now."""
        return torch.cat(self._states(recommender, examples, grad=False))

    def classes(self, recommender: Recommender, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """The class of each of `states`, (n_labels,), and its share of the loss of these people, (n_labels,)."""
        each = [self._classes(recommender, one) for one in examples]
        weights = [torch.full((len(own),), 1 / len(own) / len(each)) for own in each]
        return torch.cat(each), torch.cat(weights)

    def _told(
        self, recommender: Recommender, examples: Sequence[Example], grad: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each person what the classifier says of every item, (n_labels, n_classes) in nats, and its class."""
        assert isinstance(recommender.backend, ClassifierBackend), "it was begun"
        classifier = recommender.backend.classifier
        shares = [classifier.log_shares(own) for own in self._states(recommender, examples, grad)]
        classes = [self._classes(recommender, one).to(own.device) for one, own in zip(examples, shares, strict=True)]
        return shares, classes

    def _states(self, recommender: Recommender, examples: Sequence[Example], grad: bool) -> list[torch.Tensor]:
        if self.fixed:
            return self.lesson.states.of(recommender, examples)
        return states_of(recommender, examples, grad=grad)

    @staticmethod
    def _classes(recommender: Recommender, example: Example) -> torch.Tensor:
        return torch.tensor([one.label for one in labels_of(recommender, example)])


def frequencies(classes: torch.Tensor, weights: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Log of how frequent each class is, had each been seen once more, (n_classes,); weights have the sum 1."""
    seen = len(classes) * torch.bincount(classes, weights.double(), n_classes)
    return (seen + 1.0).log().log_softmax(0).float()


def judge(found: Sequence[int], right: Sequence[int], n_classes: int) -> Judged:
    """Accuracy, precision, recall and F1: of class 1 where there are two, else the mean over the classes that occur.

    What is never said has precision 0, as what never occurs would have recall 0.
    """
    said, truth = np.asarray(found), np.asarray(right)
    occurring = [1] if n_classes == 2 else sorted({*found, *right})
    each = np.array([_of_class(said == one, truth == one) for one in occurring])
    precision, recall, f1 = each.mean(0).tolist()
    return Judged(float((said == truth).mean()), precision, recall, f1)


def _of_class(said: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    hits = float((said & truth).sum())
    precision, recall = hits / max(1, said.sum()), hits / max(1, truth.sum())
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0
