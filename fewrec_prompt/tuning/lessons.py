"""What one task brings to a training, and how well a recommender does on its people.

One task is a list of one. Which people they are is decided above; how often each is drawn, in mixture.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.data.training import Training
from fewrec_prompt.display import MAIN, main_metric
from fewrec_prompt.errors import BudgetError, DataError
from fewrec_prompt.metrics import OF_SCORES, Shelf, UserScores, measure_all, parse_metric
from fewrec_prompt.metrics.naming import is_own_name
from fewrec_prompt.recommender import Recommender, check_trains
from fewrec_prompt.tuning.classifying import check_labels, labels_of
from fewrec_prompt.tuning.examples import Example, check_places
from fewrec_prompt.tuning.histories import Histories
from fewrec_prompt.tuning.losses import LossName, best_scale, check_answers
from fewrec_prompt.tuning.settings import CLASSIFIERS, NegativesName, Settings
from fewrec_prompt.tuning.states import States

OF_CLASSES = "log-loss"  # the metric by which classifiers are told apart


def metric_to_stop_by(names: Sequence[str]) -> str:
    """The metric of these that people held out are measured by: nDCG@10, else the first that scores alone give.

    Those are the ones that rank a list, and pooled-AUC and user-AUC. Where there is none of them, nDCG@10.
    """
    ranking = [name for name in names if is_own_name(name) and parse_metric(name).entry.kind == "ranking"]
    return main_metric([name for name in names if name in ranking or name in OF_SCORES]) or MAIN


@dataclass(frozen=True, slots=True)
class Measured:
    """What people held out came to: the metric that passes are told apart by, and of classes more (labels.Judged)."""

    value: float
    judged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A task to learn: how it asks, whom it is learnt from, and how.

    `held_out` are people on whom `metric` is measured after each pass, `training` is where negatives are drawn from,
    `earlier` are the people of an earlier round, on whom is measured what was forgotten. `states` are those that a
    model which stays as it is makes of all of them, for as many trainings as the lesson serves.
    """

    recommender: Recommender
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...] = ()
    training: Training | None = None
    loss: LossName = "listwise"
    negatives: NegativesName = "given"
    metric: str = "nDCG@10"
    earlier: tuple[Example, ...] = ()
    name: str = ""
    states: States = field(default_factory=States, repr=False, compare=False)

    def check(self, settings: Settings) -> None:
        """Raises DataError for nobody, for examples that the loss cannot use, a template or a person that a warm-up
        cannot, and candidates that belong to one answer alone where each person is asked several questions; of a
        classifier what check_labels raises."""
        if not self.examples:
            raise DataError("there is nobody to learn from; give at least one example")
        for example in (*self.examples, *self.held_out, *self.earlier):
            check_places(example)
        if settings.method in CLASSIFIERS:
            check_labels(self.recommender, self.examples, self.held_out, every=settings.method == "prototypes")
            return
        check_trains(self.recommender.verbalizer, self.recommender.calibration)
        kind = self.recommender.verbalizer.kind
        if settings.warm_up and kind != "complete":
            raise DataError(f"a warm-up models the next title, which takes a template of kind 'complete', not {kind!r}")
        histories = self.histories(settings.seed)
        for example in self.examples if settings.warm_up else ():
            histories.check(example.query)
        lists = any(len(example.query.candidates) > 1 for example in self.examples)
        if settings.questions > 1 and lists and self.negatives in ("given", "in-batch"):
            n = settings.questions
            raise DataError(
                f"negatives {self.negatives!r} go with the answers that they came with, and {n} questions of a person "
                "are about other things; take 'uniform', 'shared', 'popularity' or 'hard', or 1 question"
            )
        for example in self.examples if settings.goal == "answers" else ():
            query = example.query
            check_answers(self.loss, len(query.candidates), len(example.relevant), query.user_id)

    def labelled(self, say: Say = quiet) -> Lesson:
        """The same for a classifier: without those who have judged nothing in the way in which the recommender asks."""
        parts = (self.examples, self.held_out, self.earlier)
        kept = [tuple(one for one in part if labels_of(self.recommender, one)) for part in parts]
        if n_others := sum(map(len, parts)) - sum(map(len, kept)):
            nobody = "; nobody is held out" if self.held_out and not kept[1] else ""
            say(f"{self.name or 'these'}: {n_others} people have judged no item that is asked about, left out{nobody}")
        examples, held_out, earlier = kept
        return replace(self, examples=examples, held_out=held_out, earlier=earlier, metric=OF_CLASSES)

    def histories(self, seed: int) -> Histories:
        """What a warm-up models, in stretches as long as the longest prompt and its answer."""
        return Histories(self.training, max(len(example.query.history) for example in self.examples), seed)

    def suited(self, recommender: Recommender, people: Sequence[Example]) -> tuple[float, float]:
        """(log of the scale that suits a recommender's scores best, its mean loss on these people at it, in nats)."""
        return best_scale(self.loss, scores_of(recommender, people), [one.relevant for one in people])

    def measured(self, recommender: Recommender) -> float:
        """The task's metric of the people held out, a fraction."""
        try:
            scores = scores_of(recommender, self.held_out)
        except BudgetError as error:
            raise BudgetError(f"held out: {error}") from error
        users = [judged(example, own) for example, own in zip(self.held_out, scores, strict=True)]
        found = measure_all([self.metric], users, Shelf())
        if self.metric in found.of_run:
            return float(found.of_run[self.metric].value)
        return float(np.nanmean(found.per_user[self.metric]))


def scores_of(recommender: Recommender, people: Sequence[Example]) -> list[np.ndarray]:
    """What each one's candidates score; people are asked together where the model's unit holds several."""
    queries, size = [one.query for one in people], recommender.backend.mode.users_per_unit
    units = (queries[at : at + size] for at in range(0, len(queries), size))
    answers = [own for unit in units for own in recommender.answers_all(unit)]
    return [np.asarray(recommender.scores(own), dtype=float) for own in answers]


def judged(example: Example, scores: np.ndarray) -> UserScores:
    """An example and what its candidates score, as metrics want it."""
    query = example.query
    marks = np.zeros(len(query.candidates), dtype=bool)
    marks[list(example.relevant)] = True
    return UserScores(
        query.user_id,
        scores,
        marks,
        len(example.relevant),
        tuple(item.id for item in query.candidates),
        tuple(seen.item.id for seen in query.history),
        None,
    )


def instruction(recommenders: Sequence[Recommender]) -> str:
    """Words that virtual tokens begin as: what the templates are for."""
    told = (
        f"{one.template.front.description} Which {one.domain.plural} will the person {one.domain.verb} next?\n"
        for one in recommenders
    )
    return "".join(dict.fromkeys(told))
