"""Learn a mix from a few people of a task: have its rows asked, fit the weights, and write them to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fewrec_prompt import scoring, tasks
from fewrec_prompt.assets import Say, counted, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.checked import check
from fewrec_prompt.errors import AdapterError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import check_free, default_row
from fewrec_prompt.recommender import Answers, Recommender
from fewrec_prompt.runs import Unit
from fewrec_prompt.score_cache import score_cache
from fewrec_prompt.scoring import Row
from fewrec_prompt.shots import Shots, shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import mixed
from fewrec_prompt.tuning.adapters import learnt_from, method_of
from fewrec_prompt.tuning.effects import Others, judges, key_of, takers
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.features import baseline_estimate, prior_of
from fewrec_prompt.tuning.mix import Mix, fit
from fewrec_prompt.tuning.settings import CLASSIFIERS
from fewrec_prompt.types import Query

CARRIED = "rows"  # where the adapters of its rows lie in a mix's folder


def tune_mix(
    task: Task | str | Path,
    shots: int,
    out: Path,
    *,
    rows: Sequence[RowSettings] = (),
    popularity: bool = False,
    seed: int = 0,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    say: Say = quiet,
) -> Mix:
    """Learn how much each score of these rows counts from `shots` people of a task, and write it to the folder `out`.

    The first row (by default the task's first calibrated one) is where the weights begin. A row may have an adapter:
    then people are taken whom it was not learnt from, for it knows the answers of those, and it is copied into the
    folder. With `popularity` all of the training part is looked at, not only what these people took. Nobody is held
    out: who is learnt from is left out once. Raises FewrecError.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_free(out)
    rows = tuple(rows) or (default_row(task),)
    _check_scored(rows)
    found = shots_of(task, shots, seed, unknown_to=tuple(map(Path, _adapters_of(rows))), say=say)
    changes = {"rows": rows, "ensembles": ()}
    task = replace(task, settings=task.settings.model_copy(update=changes))
    queries = tuple(one.query for one in found.learnt)
    checked = check(task, queries=replace(found.queries, queries=queries))
    asking = checked.rows(backend or load_backend(task, numerics, say))
    recommenders = {row.name: row.recommender for row in asking}
    log = _Answered(asking, queries, say)
    answers = [[scoring.logged(row, query, log)[0] for row in asking] for query in queries]
    made = fit_mix(found, recommenders, answers, found.queries.popularity if popularity else None)
    places = {name: f"{CARRIED}/{n}/{Path(name).name}" for n, name in enumerate(_adapters_of(rows))}
    carried = {place: Path(name) for name, place in places.items()}
    members = [row.settings.model_dump(mode="json") for row in asking]
    about = {
        "tasks": {task.name: {"shots": shots, "data": dict(found.queries.sources)}},
        "learnt_from": [found.traced(), *chain.from_iterable(map(learnt_from, carried.values()))],
        "members": [one | {"adapter": places.get(one["adapter"])} for one in members],
        "seed": seed,
    }
    mixed.save(out, made, recommenders, about, carried)
    return made


def fit_mix(
    found: Shots,
    rows: Mapping[str, Recommender],
    answers: Sequence[Sequence[Answers]],
    popularity: Mapping[str, int] | None = None,
    *,
    also: Sequence[Example] = (),
) -> Mix:
    """The weights of these rows, by name, from what each of them was answered for each of the people learnt from.

    The first row is where the weights begin, for likes and dislikes also what is known without a model. What these
    people, and those of `also`, say of items counts; of lists not where popularity does, which says it of everybody.
    Nobody's own is among what the own answer is foretold from. Raises DataError as `fit` does.
    """
    likes, people = found.loss == "binary", (*found.learnt, *also)
    others: Others | None = None
    if likes:
        others = judges(people)
    elif popularity is None:
        others = takers(people, found.queries.training)
    usual = _usual(found.learnt) if likes else None
    logged = []
    for one, own in zip(found.learnt, answers, strict=True):
        heard = others.without(one.query.person, map(key_of, one.query.candidates)) if others else None
        logged.append(mixed.all_features(rows, one.query, own, popularity, usual=usual, effects=heard))
    row = prior_of(*next(iter(rows.items())))
    made = fit(found.learnt, logged, *((row, baseline_estimate()) if likes else (row,)))
    return replace(made, effects=others.effects if others else {}, usual=usual or 0.0)


def _usual(examples: Sequence[Example]) -> float:
    """The mean rating of their histories; 0 where nothing is rated, which is as good as any."""
    known = [rating for one in examples if (rating := one.query.mean_rating) is not None]
    return sum(known) / len(known) if known else 0.0


def _check_scored(rows: Sequence[RowSettings]) -> None:
    for folder in map(Path, _adapters_of(rows)):
        if (method := method_of(folder)) in CLASSIFIERS:
            raise AdapterError(
                f"{folder}: holds a classifier ({method}), which has no log-probabilities to weigh; name what a prompt "
                "is scored with, such as a soft prompt or LoRA"
            )


def _adapters_of(rows: Sequence[RowSettings]) -> list[str]:
    """The folders of what rows have learnt already, as the rows name them, each once."""
    return list(dict.fromkeys(row.adapter for row in rows if row.adapter is not None))


class _Answered:
    """What all rows were answered, now or earlier, by questions and user: a log that no run keeps."""

    def __init__(self, rows: Sequence[Row], queries: Sequence[Query], say: Say) -> None:
        self._units: dict[tuple[str, str], Unit] = {}
        with score_cache(say) as kept:
            for job in scoring.plan(rows, queries):
                for query in counted(queries, job.name, say):
                    (self._units[job.key, query.user_id],), _ = job.run([query], kept)

    def get(self, questions: str, user_id: str) -> Unit | None:
        return self._units.get((questions, user_id))
