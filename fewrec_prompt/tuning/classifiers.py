"""A classifier as a method among the others: learnt by its name, alone or with weights in the model, kept as arrays.

Of a folder, what begins with "classifier." is the classifier's; the rest was learnt in the model below it, under the
names that it has in a folder of its own. The classifiers themselves stand in head.py and prototypes.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.errors import AdapterError, ModelError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.adapters import Adapter
from fewrec_prompt.tuning.classifying import Classifier, Labelled, classified, hidden, n_classes_of, prompts_of
from fewrec_prompt.tuning.head import Head, HeadPass, HeadSettings, fit, judged
from fewrec_prompt.tuning.methods import Learner, Tensors, begin
from fewrec_prompt.tuning.prototypes import Prototypes
from fewrec_prompt.tuning.settings import CLASSIFIERS, Settings

PREFIX = "classifier."


@dataclass(frozen=True, slots=True)
class ClassifierTuned:
    """What learning came to: the recommender that ranks by classes, and how it went."""

    recommender: Recommender
    classifier: Classifier
    learner: Learner | None  # of the weights below a head
    settings: Mapping[str, Any]
    passes: tuple[HeadPass, ...]
    best_epoch: int
    zero_shot_loss: float  # nats an item, of shares that are the same for all items
    n_labels: int

    @property
    def learned(self) -> bool:
        """Whether the pass that is kept had a lower loss than shares that look at no item."""
        return self.passes[self.best_epoch].loss < self.zero_shot_loss

    @property
    def n_weights(self) -> int:
        """Numbers that are kept."""
        return sum(values.numel() for values in self.tensors().values())

    def tensors(self) -> Tensors:
        """What is saved."""
        own = {PREFIX + name: torch.from_numpy(array) for name, array in self.classifier.to_tensors().items()}
        return own | (self.learner.export() if self.learner else {})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the weights."""
        return {
            "settings": dict(self.settings),
            "passes": [asdict(one) for one in self.passes],
            "zero_shot_loss": self.zero_shot_loss,
            "learned": self.learned,
            "best_epoch": self.best_epoch,
            "n_weights": self.n_weights,
            "n_labels": self.n_labels,
        }


def learn(
    recommender: Recommender,
    labelled: Sequence[Labelled],
    settings: Settings,
    *,
    held_out: Sequence[Labelled] = (),
    say: Say = quiet,
) -> ClassifierTuned:
    """Learn the classifier that `settings.method` names (see CLASSIFIERS); of a head the pass with the least loss on
    those held out stays.

    A step takes the items of `settings.batch` people. Raises DataError where a class has no item, VerbalizerError for a
    recommender that neither judges nor rates, ModelError for a model that shows no states or cannot take the weights.
    """
    do = _prototypes if settings.method == "prototypes" else _head
    return do(recommender, labelled, settings, held_out, say)


def _head(
    recommender: Recommender, labelled: Sequence[Labelled], settings: Settings, held_out: Sequence[Labelled], say: Say
) -> ClassifierTuned:
    how = _head_settings(settings.complete(), labelled)
    learner = _learner(recommender, settings)
    found = fit(recommender, labelled, held_out=held_out, settings=how, learner=learner, say=say)
    told = {"method": settings.method, **asdict(how)}
    blind = found.passes[0].loss
    return ClassifierTuned(
        found.recommender, found.head, learner, told, found.passes, found.best_epoch, blind, len(labelled)
    )


def _head_settings(settings: Settings, labelled: Sequence[Labelled]) -> HeadSettings:
    n_people = len({one.query.user_id for one in labelled})
    rate = "model_rate" if CLASSIFIERS[settings.method] else "rate"
    return HeadSettings(
        **{rate: settings.rate},
        weight_decay=settings.weight_decay,
        epochs=settings.n_epochs,
        batch=max(1, round(settings.batch * len(labelled) / max(1, n_people))),
        patience=settings.patience,
        seed=settings.seed,
    )


def _learner(recommender: Recommender, settings: Settings) -> Learner | None:
    """The weights below the head, put on the model."""
    method, backend = CLASSIFIERS[settings.method], recommender.backend
    if method is None:
        return None
    if not isinstance(backend, LocalBackend):
        raise ModelError(
            f"{settings.method!r} changes a model that runs here, and this is a {type(backend).__name__}; take 'head'"
        )
    return begin(backend, replace(settings, method=method, dropout=0.0), instruction="", n_steps=0)


def _prototypes(
    recommender: Recommender, labelled: Sequence[Labelled], settings: Settings, held_out: Sequence[Labelled], _say: Say
) -> ClassifierTuned:
    """One look at the examples; held against equal shares, for prototypes do not know how frequent a class is."""
    n, items, n_classes = len(labelled), [*labelled, *held_out], n_classes_of(recommender)
    states = hidden(recommender.backend, prompts_of(recommender, items))
    labels = torch.tensor([one.label for one in items])
    made = Prototypes.of(states[:n], labels[:n].tolist(), n_classes)
    mine, theirs = torch.from_numpy(states[:n]), torch.from_numpy(states[n:])
    held = judged(made, theirs, labels[n:]) if held_out else None
    only = HeadPass(0, judged(made, mine, labels[:n]).loss, held)
    told = {"method": settings.method}
    return ClassifierTuned(classified(recommender, made), made, None, told, (only,), 0, math.log(n_classes), n)


def below(adapter: Adapter) -> Adapter | None:
    """What was learnt in the model below a classifier, as an adapter of its own."""
    method = CLASSIFIERS[adapter.method]
    if method is None:
        return None
    rest = {name: values for name, values in adapter.tensors.items() if not name.startswith(PREFIX)}
    return replace(adapter, method=method, tensors=rest)


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
