"""What a training came to: its passes, and the recommenders as they learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from fewrec_prompt.display import figure
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.lessons import OF_CLASSES, Lesson, Measured
from fewrec_prompt.tuning.methods import Learner
from fewrec_prompt.tuning.settings import PassName, Settings

_NAMES = {"f1": "F1"}


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the tasks. Losses and metrics of all of them, and of each by its name."""

    epoch: int  # 0: before learning
    of: PassName  # histories: plain modelling of the next title
    losses: Mapping[str, float]  # mean over the draws of a task, in nats
    loss: float  # their mean, each task by its share of a pass
    metrics: Mapping[str, float]  # of those held out, fractions or (log-loss) nats; of tasks that hold somebody out
    metric: float | None  # their mean, each task alike; None where nobody is held out
    seconds: float
    tokens_per_second: float
    judged: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of a classifier's tasks, labels.Judged

    @property
    def classes(self) -> Mapping[str, float]:
        """How right a classifier is on those held out, the mean over its tasks; empty of what is none."""
        each = list(self.judged.values())
        return {name: fmean(one[name] for one in each) for name in each[0]} if each else {}

    @property
    def told(self) -> str:
        """The same in words."""
        return in_words(self.classes)


def in_words(classes: Mapping[str, float]) -> str:
    """How right a classifier is."""
    return ", ".join(f"{_NAMES.get(name, name)} {100 * value:.1f}" for name, value in classes.items())


def metrics_of(lessons: Sequence[Lesson]) -> str:
    """The metrics by which passes are told apart, each once."""
    return ", ".join(dict.fromkeys(lesson.metric for lesson in lessons))


def line(done: Pass, method: str, lessons: Sequence[Lesson], n_left: int) -> str:
    """What is said of a pass, before so many others."""
    unit, n_held = lessons[0].metric, sum(len(lesson.held_out) for lesson in lessons)
    held = "" if done.metric is None else f", {metrics_of(lessons)} of {n_held} held out {figure(unit, done.metric)}"
    classes = f" ({done.told})" if done.told else ""
    speed = f", {done.tokens_per_second:,.0f} tokens/s" if done.tokens_per_second else ""
    left = f", {n_left * done.seconds:.0f} s left" if done.epoch else ""
    each = [
        f"{name} {loss:.3f}" + (f" and {figure(unit, done.metrics[name])}" if name in done.metrics else "")
        for name, loss in done.losses.items()
    ]
    apart = f" ({', '.join(each)})" if len(each) > 1 else ""
    over = " over histories" if done.of == "histories" else ""
    return f"{method} pass {done.epoch}{over}: loss {done.loss:.3f}{held}{classes}{apart}{speed}{left}"


@dataclass(frozen=True, slots=True)
class Tuned:
    """What training came to: a recommender for each task, over the same weights, and how it went."""

    lessons: tuple[Lesson, ...]
    recommenders: tuple[Recommender, ...]  # of each lesson
    learner: Learner
    settings: Settings
    passes: tuple[Pass, ...]
    best_epoch: int
    n_weights: int
    earlier_loss: tuple[float, float] | None = None  # of the earlier round's people, before this round and after it
    again: Pass | None = None  # what was asked before training, asked once more of the weights that stay
    tested: Mapping[str, Measured] = field(default_factory=dict)  # of a classifier's tasks, people who are tested

    @property
    def recommender(self) -> Recommender:
        """The recommender of the first task, or of the only one."""
        return self.recommenders[0]

    @property
    def zero_shot_loss(self) -> float:
        """Before training, on the questions of the first pass that counts (Settings.goal), at the scale that suits.

        Of an earlier round's weights where there was one, else of the untrained model; of a classifier, of shares that
        look at no item.
        """
        return self.passes[0].loss

    @property
    def learned(self) -> bool:
        """Whether the training loss over all tasks beat that before training with the weights that stay."""
        return any(done.loss < self.zero_shot_loss for done in self._of_what_stays())

    @property
    def not_learned(self) -> list[str]:
        """The tasks whose own loss did not beat that before training."""
        start, kept = self.passes[0].losses, self._of_what_stays()
        return [name for name, loss in start.items() if not any(one.losses[name] < loss for one in kept)]

    def _of_what_stays(self) -> list[Pass]:
        """The pass that made the weights which stay, and the one that began with them: each is measured as it goes.

        Where passes ask about other things than was asked before training, those are asked again instead.
        """
        if self.passes[self.best_epoch].of == "start":
            return []
        if self.again is not None:
            return [self.again]
        return [done for done in self.passes[self.best_epoch : self.best_epoch + 2] if done.of == self.passes[-1].of]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the weights."""
        return {
            "settings": self.settings.to_dict(),
            "passes": [asdict(done) for done in self.passes],
            "zero_shot_loss": self.zero_shot_loss,
            "learned": self.learned,
            "not_learned": self.not_learned,
            "best_epoch": self.best_epoch,
            "n_weights": self.n_weights,
            "earlier_loss": self.earlier_loss,
            "again": None if self.again is None else self.again.loss,
            "tested": {name: {OF_CLASSES: one.value, **one.judged} for name, one in self.tested.items()},
        }
