"""Classifiers as methods among the others: what learns on hidden states, alone or with weights in the model below.

Of a folder, what begins with "classifier." is the classifier's; the rest was learnt in the model below it, under the
names that it has in a folder of its own. The classifiers themselves stand in head.py and prototypes.py, what passes
over classes are in labels.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from fewrec_prompt.assets import Say
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.errors import AdapterError, DataError, ModelError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.adapters import Adapter
from fewrec_prompt.tuning.classifying import Classifier, classified, n_classes_of
from fewrec_prompt.tuning.head import Head
from fewrec_prompt.tuning.labels import OverLabels, frequencies
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.methods import Learner, Tensors, begin
from fewrec_prompt.tuning.mixture import shares
from fewrec_prompt.tuning.outcome import Pass, Tuned, line
from fewrec_prompt.tuning.prototypes import Prototypes
from fewrec_prompt.tuning.settings import METHODS, Settings
from fewrec_prompt.tuning.tracking import Tracking, numbers_of

PREFIX = "classifier."
HEAD_RATE = 3e-4  # learning rate of a head below which a model learns with its own


class Still(Learner):
    """No weights: the model stays as it is, and makes the states that it always makes."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend

    def parameters(self) -> dict[str, Parameter]:
        return {}

    def groups(self, rate: float) -> list[tuple[list[Parameter], float]]:
        return []

    def learning(self) -> AbstractContextManager[None]:
        return nullcontext()

    def place(self) -> None:
        """Nothing is."""

    def config(self) -> None:
        """None: PEFT has no such method."""

    def export(self) -> Tensors:
        return {}

    def adopt(self, tensors: Tensors) -> None:
        """Nothing was saved."""


class Seen(Still):
    """Prototypes on top of such a model: all was learnt at a look."""

    def __init__(self, classifier: Prototypes, backend: LocalBackend) -> None:
        super().__init__(backend)
        self.classifier = classifier

    def answering(self, recommender: Recommender) -> Recommender:
        return classified(recommender, self.classifier, self.backend)

    def export(self) -> Tensors:
        return _kept(self.classifier)


class Headed(Learner):
    """A head on top of a model, in which weights of a learner may learn, too."""

    def __init__(self, head: Head, below: Learner) -> None:
        self.classifier, self._below = head, below
        self.backend = below.backend

    def answering(self, recommender: Recommender) -> Recommender:
        return classified(recommender, self.classifier, self.backend)

    def parameters(self) -> dict[str, Parameter]:
        return {PREFIX + name: weights for name, weights in self.classifier.learns().items()} | self._below.parameters()

    def groups(self, rate: float) -> list[tuple[list[Parameter], float]]:
        """The method's rate is that of the weights below, or of a lone head."""
        below = self._below.groups(rate)
        return [([*self.classifier.learns().values()], HEAD_RATE if below else rate), *below]

    def learning(self) -> AbstractContextManager[None]:
        return self._below.learning()

    def place(self) -> None:
        self._below.place()

    def penalty(self) -> torch.Tensor | float:
        return self._below.penalty()

    def after_step(self) -> None:
        self._below.after_step()

    def end(self) -> None:
        for weights in self.classifier.learns().values():
            weights.requires_grad_(False)
        self._below.end()

    def config(self) -> dict[str, Any] | None:
        return self._below.config()

    def export(self) -> Tensors:
        return _kept(self.classifier) | self._below.export()

    def adopt(self, tensors: Tensors) -> None:
        """It goes on in the standard deviations that it was learnt in."""
        own = {name.removeprefix(PREFIX): values for name, values in tensors.items() if name.startswith(PREFIX)}
        shapes = {name: part.shape for name, part in self.classifier.parts().items()}
        if {name: values.shape for name, values in own.items()} != shapes:
            raise ModelError("what was learnt earlier is a classifier of other classes or states; begin anew")
        self._set(own)
        self._below.adopt({name: values for name, values in tensors.items() if not name.startswith(PREFIX)})

    def state(self) -> Tensors:
        own = {PREFIX + name: part.detach().clone() for name, part in self.classifier.parts().items()}
        return own | self._below.state()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._set({name: state[PREFIX + name] for name in self.classifier.parts()})
        self._below.restore(state)

    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, part in self.classifier.parts().items():
                part.copy_(values[name])


def _kept(classifier: Classifier) -> Tensors:
    """What is saved of it."""
    return {PREFIX + name: torch.from_numpy(array) for name, array in classifier.to_tensors().items()}


def begin_head(kinds: Sequence[OverLabels], starts: Sequence[Recommender], settings: Settings, n_steps: int) -> Headed:
    """Put a head on the model, and weights below it where the method has some. It begins as how frequent classes are.

    Raises DataError for tasks whose classes are not the same.
    """
    backend, n_classes = _local(starts[0].backend), _n_classes(starts)
    with torch.no_grad():
        states, classes, weights = _all(kinds, starts, settings)
    head = Head.over(states, frequencies(classes, weights, n_classes))
    inside = METHODS[settings.method].inside
    if inside is None:
        return Headed(head, Still(backend))
    return Headed(head, begin(backend, replace(settings, method=inside), instruction="", n_steps=n_steps))


def look(lessons: Sequence[Lesson], settings: Settings, track: Tracking, say: Say) -> Tuned:
    """Prototypes from one look at the examples of all lessons, which are labelled.

    They are held against equal shares, for they do not know how frequent classes are. Raises DataError for tasks whose
    classes are not the same, and for a class without an example.
    """
    with track.telling(settings, lessons) as accelerator:
        tuned = _looked(lessons, settings)
        for done in tuned.passes:
            accelerator.log(numbers_of(done), step=done.epoch)
        say(line(tuned.passes[-1], settings.method, tuned.lessons, 0))
    return tuned


def _looked(lessons: Sequence[Lesson], settings: Settings) -> Tuned:
    starts = tuple(lesson.recommender for lesson in lessons)
    backend, n_classes = _local(starts[0].backend), _n_classes(starts)
    kinds = [OverLabels(lesson, fixed=True) for lesson in lessons]
    begin_time = time.perf_counter()
    with torch.no_grad():
        states, classes, _ = _all(kinds, starts, settings)
        made = Prototypes.of(states.cpu().numpy(), classes.tolist(), n_classes)
        learner = Seen(made, backend)
        tuned = tuple(map(learner.answering, starts))
        each = list(zip(lessons, kinds, tuned, strict=True))
        losses = {lesson.name: kind.before(own, lesson.examples)[1] for lesson, kind, own in each}
        found = {lesson.name: kind.measured(own) for lesson, kind, own in each if lesson.held_out}
    seconds, blind = time.perf_counter() - begin_time, math.log(n_classes)
    weights = shares([len(lesson.examples) for lesson in lessons], settings.temperature)
    metrics = {name: one.value for name, one in found.items()}
    metric = float(np.mean([*metrics.values()])) if metrics else None
    loss, judged = float(np.dot([*losses.values()], weights)), {name: one.judged for name, one in found.items()}
    before = Pass(0, "start", dict.fromkeys(losses, blind), blind, {}, None, 0.0, 0.0)
    after = Pass(1, "answers", losses, loss, metrics, metric, seconds, 0.0, judged)
    n_kept = sum(values.numel() for values in learner.export().values())
    return Tuned(tuple(lessons), tuned, learner, settings, (before, after), 1, n_kept)


def _local(backend: Backend) -> LocalBackend:
    assert isinstance(backend, LocalBackend), "only models that run here are tuned"
    return backend


def _n_classes(starts: Sequence[Recommender]) -> int:
    """Of tasks that one classifier serves. Raises DataError where they tell other classes apart."""
    numbers = [n_classes_of(start) for start in starts]
    if len(set(numbers)) > 1:
        raise DataError(
            f"the tasks tell {', '.join(map(str, numbers))} classes apart, and one classifier learns from all; ask all "
            "of them with one --prompt"
        )
    return numbers[0]


def _all(
    kinds: Sequence[OverLabels], starts: Sequence[Recommender], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The states (n_labels, width) of all that is learnt from, their classes and shares of the loss, (n_labels,)."""
    pairs = list(zip(kinds, starts, strict=True))
    states = [kind.states(start, kind.lesson.examples) for kind, start in pairs]
    told = [kind.classes(start, kind.lesson.examples) for kind, start in pairs]
    of_tasks = shares([len(kind.lesson.examples) for kind in kinds], settings.temperature).tolist()
    weights = [share * own for share, (_, own) in zip(of_tasks, told, strict=True)]
    return torch.cat(states), torch.cat([classes for classes, _ in told]), torch.cat(weights)


def below(adapter: Adapter) -> Adapter | None:
    """What was learnt in the model below a classifier, as an adapter of its own."""
    inside = METHODS[adapter.method].inside
    if inside is None:
        return None
    rest = {name: values for name, values in adapter.tensors.items() if not name.startswith(PREFIX)}
    return replace(adapter, method=inside, tensors=rest)


def classifier_of(adapter: Adapter, width: int, n_classes: int) -> Classifier:
    """The classifier in a folder, for states of this width. Raises AdapterError for arrays of another shape."""
    kind = Prototypes if adapter.method == "prototypes" else Head
    rest = set() if (learnt := below(adapter)) is None else set(learnt.tensors)
    found = {name: values for name, values in adapter.tensors.items() if name not in rest}
    shapes = {name: tuple(values.shape) for name, values in found.items()}
    expected = {PREFIX + name: shape for name, shape in kind.shapes(n_classes, width).items()}
    if shapes != expected:
        wrong = min(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        raise AdapterError(
            f"{adapter.folder}: {wrong!r} is {shapes.get(wrong, 'missing')}; a classifier of {n_classes} classes over "
            f"this model has {expected.get(wrong, 'none')}"
        )
    return kind.from_tensors({name.removeprefix(PREFIX): values.float().numpy() for name, values in found.items()})
