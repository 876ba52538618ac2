"""The classic recipe, with which the others are compared: a linear head on hidden states, by cross-entropy.

The model below may learn with it: a learner (methods.py: LoRA, or all weights) puts trainable weights into it. Without
one the states never change and are computed once. After every pass accuracy, precision, recall and F1 are measured on
people held out; the pass with the least loss on them stays, and the people of the test are asked once, in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.errors import DataError, FewrecError, NumericError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning.classifying import Classifier, Labelled, classified, hidden, n_classes_of, prompts_of
from fewrec_prompt.tuning.methods import Learner
from fewrec_prompt.types import Prompt

_TINY = 1e-6
States: TypeAlias = Callable[[Sequence[int], bool], torch.Tensor]
"""Hidden states (n, width) of these items, with gradients or without."""


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How a head learns. `rate` is the head's; `model_rate` that of the weights below it; `batch` is items a step."""

    rate: float = 3e-4
    model_rate: float = 3e-4
    weight_decay: float = 1e-2
    epochs: int = 30
    batch: int = 32
    patience: int = 5  # passes without a lower loss on those held out
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1 or min(self.rate, self.model_rate) <= 0:
            raise FewrecError("epochs, batch and patience are 1 at least, and learning rates above 0")


@dataclass(frozen=True, slots=True)
class Judged:
    """How right classes are, in fractions; of more than two, precision, recall and F1 are means over the classes."""

    loss: float  # nats an item
    accuracy: float
    precision: float
    recall: float
    f1: float

    def __str__(self) -> str:
        numbers = {"accuracy": self.accuracy, "precision": self.precision, "recall": self.recall, "F1": self.f1}
        return ", ".join(f"{name} {100 * value:.1f}" for name, value in numbers.items())


@dataclass(frozen=True, slots=True)
class HeadPass:
    """One pass: the mean loss (nats an item) while learning, and what it came to on people held out."""

    epoch: int  # 0: before learning
    loss: float
    held_out: Judged | None


class Head:
    """A linear layer over states in standard deviations of each dimension: weights (n_classes, width), bias."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor) -> None:
        self.weights, self.bias = Parameter(weights), Parameter(bias)
        self.centre, self.spread = centre, spread

    @classmethod
    def over(cls, states: torch.Tensor, labels: torch.Tensor, n_classes: int) -> Head:
        """A head for states like these that knows nothing yet but how frequent each class is (and once more)."""
        spread, centre = torch.std_mean(states, dim=0, correction=0)
        shares = (torch.bincount(labels, minlength=n_classes) + 1.0).log().log_softmax(0)
        zeros = torch.zeros(n_classes, states.shape[1], device=states.device)
        return cls(zeros, shares, centre, spread.clamp(min=_TINY))

    def log_shares(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probability (n, n_classes) of each class, in nats."""
        scaled = (states.to(self.centre) - self.centre) / self.spread
        return torch.nn.functional.linear(scaled, self.weights, self.bias).log_softmax(-1)

    def parameters(self) -> list[Parameter]:
        return [self.weights, self.bias]

    def to_tensors(self) -> dict[str, np.ndarray]:
        """All that it learnt, as arrays by name."""
        parts = {"weights": self.weights, "bias": self.bias, "centre": self.centre, "spread": self.spread}
        return {name: part.detach().cpu().numpy().copy() for name, part in parts.items()}

    @staticmethod
    def shapes(n_classes: int, width: int) -> dict[str, tuple[int, ...]]:
        """What `to_tensors` gives, as shapes."""
        return {"weights": (n_classes, width), "bias": (n_classes,), "centre": (width,), "spread": (width,)}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> Head:
        """What `to_tensors` gave."""
        return cls(*(torch.from_numpy(arrays[name].copy()) for name in ("weights", "bias", "centre", "spread")))


@dataclass(frozen=True, slots=True)
class HeadTuned:
    """What training came to: a recommender that ranks by the head, the passes, and the test if there was one."""

    recommender: Recommender
    head: Head
    passes: tuple[HeadPass, ...]
    best_epoch: int
    test: Judged | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the weights."""
        test = None if self.test is None else asdict(self.test)
        return {"passes": [asdict(one) for one in self.passes], "best_epoch": self.best_epoch, "test": test}


def fit(
    recommender: Recommender,
    labelled: Sequence[Labelled],
    *,
    held_out: Sequence[Labelled] = (),
    test: Sequence[Labelled] = (),
    settings: HeadSettings = HeadSettings(),  # frozen
    learner: Learner | None = None,
    say: Say = quiet,
) -> HeadTuned:
    """Train a head for a recommender that judges or rates. Without anybody held out, the last pass stays.

    Raises DataError where nothing is to be learnt from or a person is in two parts, VerbalizerError and ModelError as
    `prompts_of` and `hidden`, NumericError where a loss is not finite.
    """
    _check(labelled, held_out, test)
    backend = learner.backend if learner else recommender.backend
    n_classes = n_classes_of(recommender)
    items = [*labelled, *held_out, *test]
    states = _states(backend, prompts_of(recommender, items), learner)
    labels = torch.tensor([one.label for one in items], device=states([0], False).device)
    mine, theirs = range(len(labelled)), range(len(labelled), len(labelled) + len(held_out))
    head = Head.over(states(mine, False), labels[: len(labelled)], n_classes)
    training = _Training(head, learner, states, labels, settings, say)
    passes, best = training.run(mine, theirs)
    tested = range(len(labelled) + len(held_out), len(items))
    judged = training.judged(tested) if test else None
    if learner:
        learner.end()
    return HeadTuned(classified(recommender, head, backend), head, tuple(passes), best, judged)


class _Training:
    def __init__(
        self,
        head: Head,
        learner: Learner | None,
        states: States,
        labels: torch.Tensor,
        settings: HeadSettings,
        say: Say,
    ) -> None:
        self._head, self._learner, self._states, self._labels = head, learner, states, labels
        self._settings, self._say = settings, say
        groups = [{"params": head.parameters(), "lr": settings.rate}]
        if learner:
            groups.append({"params": list(learner.parameters().values()), "lr": settings.model_rate})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def run(self, mine: Sequence[int], held_out: Sequence[int]) -> tuple[list[HeadPass], int]:
        """All passes; the head and the learner are left as the best of them left them."""
        passes = [HeadPass(0, self._loss(mine), self._measured(held_out))]
        best, kept = 0, self._kept()
        for epoch in range(1, self._settings.epochs + 1):
            passes.append(HeadPass(epoch, self._pass(mine, epoch), self._measured(held_out)))
            self._tell(passes[-1])
            if _height(passes[-1]) < _height(passes[best]) or not held_out:
                best, kept = epoch, self._kept()
            if epoch - best >= self._settings.patience:
                break
        self._restore(kept)
        return passes, best

    def judged(self, places: Sequence[int]) -> Judged:
        """What the head makes of these items as it is now."""
        return judged(self._head, self._states(places, False), self._labels[list(places)])

    def _pass(self, mine: Sequence[int], epoch: int) -> float:
        order = [mine[at] for at in rng_for(self._settings.seed, "head", epoch).permutation(len(mine)).tolist()]
        total = 0.0
        for at in range(0, len(order), self._settings.batch):
            batch = order[at : at + self._settings.batch]
            loss = cross_entropy(self._head.log_shares(self._states(batch, True)), self._labels[batch])
            if not bool(torch.isfinite(loss)):
                raise NumericError(f"the loss of pass {epoch} is {float(loss)}; a lower learning rate may help")
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            if self._learner:
                self._learner.after_step()
            total += float(loss.detach()) * len(batch)
        return total / len(order)

    def _loss(self, places: Sequence[int]) -> float:
        return self.judged(places).loss

    def _measured(self, held_out: Sequence[int]) -> Judged | None:
        return self.judged(held_out) if held_out else None

    def _tell(self, one: HeadPass) -> None:
        held = "" if one.held_out is None else f", held out {one.held_out.loss:.3f}, {one.held_out}"
        self._say(f"head pass {one.epoch}: loss {one.loss:.3f}{held}")

    def _kept(self) -> tuple[list[torch.Tensor], Any]:
        weights = [weights.detach().clone() for weights in self._head.parameters()]
        return weights, self._learner.state() if self._learner else None

    def _restore(self, kept: tuple[list[torch.Tensor], Any]) -> None:
        with torch.no_grad():
            for weights, before in zip(self._head.parameters(), kept[0], strict=True):
                weights.copy_(before)
        if self._learner:
            self._learner.restore(kept[1])


def judged(classifier: Classifier, states: torch.Tensor, labels: torch.Tensor) -> Judged:
    """What a classifier makes of states (n, width) of these classes (n,)."""
    with torch.no_grad():
        shares = classifier.log_shares(states)
        loss = float(cross_entropy(shares, labels))
    return judge(shares.argmax(-1).tolist(), labels.tolist(), shares.shape[1], loss)


def judge(found: Sequence[int], right: Sequence[int], n_classes: int, loss: float = float("nan")) -> Judged:
    """Accuracy, precision, recall and F1: of class 1 where there are two, else the mean over the classes that occur.

    What is never said has precision 0, as what never occurs would have recall 0.
    """
    said, truth = np.asarray(found), np.asarray(right)
    occurring = [1] if n_classes == 2 else sorted({*found, *right})
    each = np.array([_of_class(said == one, truth == one) for one in occurring])
    precision, recall, f1 = each.mean(0).tolist()
    return Judged(loss, float((said == truth).mean()), precision, recall, f1)


def _of_class(said: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    hits = float((said & truth).sum())
    precision, recall = hits / max(1, said.sum()), hits / max(1, truth.sum())
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def _states(backend: Any, prompts: Sequence[Prompt], learner: Learner | None) -> States:
    """States by place: computed once where nothing below the head learns, else whenever they are asked for."""
    if learner is None:
        known = torch.from_numpy(hidden(backend, prompts))
        return lambda places, _grad: known[list(places)]

    def anew(places: Sequence[int], grad: bool) -> torch.Tensor:
        learner.place()
        states = hidden(backend, [prompts[place] for place in places], grad=grad)
        return states if grad else torch.from_numpy(states).to(backend.model.device)

    return anew


def _height(one: HeadPass) -> float:
    return one.held_out.loss if one.held_out else one.loss


def _check(labelled: Sequence[Labelled], held_out: Sequence[Labelled], test: Sequence[Labelled]) -> None:
    if len({one.label for one in labelled}) < 2:
        raise DataError(
            f"{len(labelled)} items of one class say nothing of another; give items of two classes at least, such as "
            "those of more people"
        )
    parts = [{one.query.person for one in part} for part in (labelled, held_out, test)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if both := sorted(parts[one] & parts[other]):
            raise DataError(f"user {both[0]!r} is in two of: learnt from, held out, test; each person in one")
