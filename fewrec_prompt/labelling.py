"""Learn a classifier from a few people of a task: their labels, the training, and a folder with what was learnt.

Labels are those of people who are not tested. A row that judges learns from every candidate of their questions: liked
where it is an answer, or where labelled data says so, else not liked. A row that rates learns from the last rated item
of each of their histories, with what came before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fewrec_prompt import tasks, templates
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import about_of, check_free, recommender_of, shots_of
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.classifiers import ClassifierTuned, learn
from fewrec_prompt.tuning.classifying import KINDS, Labelled, check_kind, likes, n_classes_of, ratings
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.settings import Settings


def tune_classifier(
    task: Task | str | Path,
    settings: Settings,
    shots: int,
    out: Path,
    *,
    row: RowSettings | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    say: Say = quiet,
) -> ClassifierTuned:
    """Learn the classifier that `settings.method` names from `shots` people of a task and write it to the folder `out`.

    By default the row is the task's first that judges or rates. A calibration of the row is left out: a classifier
    learns what a label word is worth. Nothing is kept of an interrupted training. Raises VerbalizerError for a row of
    another kind, else FewrecError as few_shot.tune_task.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_free(out)
    row = (row or _first_row(task)).model_copy(update={"calibrate": "none", "alpha": None})
    check_row(row)
    found = shots_of(task, shots, settings.seed, held_out=settings.held_out, say=say)
    recommender = recommender_of(task, row, backend or load_backend(task, numerics, say))
    bound = {task.name: adapters.bindings(recommender)}
    learnt = labels_of(recommender, found.learnt)
    held_out = labels_of(recommender, found.held_out) if found.held_out else []
    begin = time.perf_counter()
    tuned = learn(recommender, learnt, settings, held_out=held_out, say=say)
    about = {
        "tasks": {task.name: about_of(row, found, shots)},
        "learnt_from": [found.traced()],
        "seed": settings.seed,
        "seconds": round(time.perf_counter() - begin, 1),
        **tuned.to_dict(),
    }
    config = tuned.learner.config() if tuned.learner else None
    probes = {task.name: adapters.probed(tuned.recommender, found.learnt, settings.seed)}
    adapters.save(out, settings.method, bound, tuned.tensors(), config=config, about=about, probes=probes)
    return tuned


def check_row(row: RowSettings) -> None:
    """Raises VerbalizerError for a row that no classifier answers."""
    check_kind(templates.load(row.prompt))


def labels_of(recommender: Recommender, examples: Sequence[Example]) -> list[Labelled]:
    """Items of known class, in the way in which the recommender asks. Raises DataError where a rating is no class."""
    if recommender.verbalizer.kind == "rate":
        return ratings(examples, n_classes_of(recommender))
    return likes(examples)


def _first_row(task: Task) -> RowSettings:
    """The first row that judges or rates, else the first."""
    rows = task.settings.rows
    return next((row for row in rows if templates.load(row.prompt).kind in KINDS), rows[0])
