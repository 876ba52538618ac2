"""Zero against few shots: every method with every number of people, on the same users, candidates and seeds.

A cell is one method, one number of people, one seed: a file with what every test user came to. A cell that is done is
not run again, and one that was interrupted goes on, because answers and trainings are kept. What can stop a cell is
looked for before the first one is run. The table and the picture are made of the cells alone (cells.py,
curve_table.py); where one fails, of those that are done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fewrec_prompt import claims, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.cells import CELLS, STUDY, ZERO, Cell, check_told, name_of, read_cell, statistic, write_cell
from fewrec_prompt.curve_table import Line, picture, table
from fewrec_prompt.display import figure
from fewrec_prompt.errors import FewrecError, did_you_mean
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import default_row, lesson_of, row_to_tune, with_demos
from fewrec_prompt.files import made_folder, write_text
from fewrec_prompt.metrics import check_metrics
from fewrec_prompt.runs import dump
from fewrec_prompt.score_cache import score_cache
from fewrec_prompt.shots import Shots, check_apart
from fewrec_prompt.study import Study
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning.ahead import check_ahead
from fewrec_prompt.tuning.examples import SMALLEST_SPLIT
from fewrec_prompt.tuning.losses import check_answers
from fewrec_prompt.tuning.negatives import Negatives
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings, unread
from fewrec_prompt.ways import SHOWN, WAYS, WEIGHED, still

TABLE, PICTURE = "curve.json", "curve.html"


def curve(
    task: Task | str | Path,
    methods: Sequence[str],
    shots: Sequence[int],
    seeds: int,
    out: Path,
    *,
    row: RowSettings | None = None,
    metrics: Sequence[str] = ("nDCG@10",),
    against: str = ZERO,
    settings: Mapping[str, Any] | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    say: Say = quiet,
) -> list[Line]:
    """Run the cells that are not there yet, and write table and picture to `out`; the lines of the table.

    Where a cell fails, they show those that are done, and its error is raised. What can be known before the first cell
    is run is raised then, and nothing is written: more people than there are, settings that a method cannot mean, a
    model that it cannot learn in.

    `metrics` are those of a question, and those over several questions that scores alone are needed for (OF_SCORES);
    the first one is told with every cell. Differences are to the method `against` that learns nothing: zero shots or a
    baseline. `settings` are those of tuning that all gradient methods share. Raises FewrecError for unknown methods and
    metrics, VerbalizerError for a row that a classifier among them cannot answer, RunError for a folder that holds
    another study.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_methods(methods)
    check_metrics(metrics)
    check_told(metrics)
    untaught = tuple(dict.fromkeys((ZERO, *(name for name in methods if name in BASELINES))))
    if against not in untaught:
        raise FewrecError(f"there is no row {against!r} to compare with; {did_you_mean(against, untaught)}")
    if not shots or min(shots) < 1 or seeds < 1:
        raise FewrecError("a curve needs numbers of people, of 1 at least, and a seed at least")
    settings, row = dict(settings or {}), row or default_row(task)
    if not (out / STUDY).is_file():  # where one goes on, its settings are for all of its methods, named now or before
        _check_read(methods, settings)
    for name in methods:
        row_to_tune(task, name, row)
    with ExitStack() as stack:
        cache = stack.enter_context(score_cache(say))
        backend = backend or load_backend(task, numerics, say)
        study = Study(task, row, backend, tuple(metrics), out, cache, settings, say)
        wanted = [(name, 0, 0) for name in untaught]
        wanted += [(name, n, seed) for n in shots for seed in range(seeds) for name in methods if name not in untaught]
        wanted = list(dict.fromkeys(wanted))
        _check(study, [one for one in wanted if not _file(study, *one).is_file()])
        _claim(study, learns=any(shots for _, shots, _ in wanted))
        done = {one: cell for one in wanted if (cell := _done(study, *one))}
        try:
            for one in wanted:
                if one not in done:
                    done[one] = _run(study, *one)
        finally:
            lines = _tell(study, [done[one] for one in wanted if one in done], against)
    return lines


def check_methods(methods: Sequence[str]) -> None:
    """Raises FewrecError for a name that is no method."""
    known = (ZERO, *WAYS, *BASELINES)
    for name in methods:
        if name not in known:
            raise FewrecError(f"unknown method {name!r}; {did_you_mean(name, known)}")


def _check_read(methods: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raises FewrecError for settings that none of the methods reads."""
    ignored = [unread(WEIGHED.get(method, method), settings) for method in methods]
    if none_reads := [name for name in unread(ZERO, settings) if all(name in names for names in ignored)]:
        called = ", ".join(none_reads).replace("_", "-")
        raise FewrecError(
            f"none of {', '.join(methods)} makes use of {called}; leave {called} out, or name a method that does"
        )


def _claim(study: Study, *, learns: bool) -> None:
    """Make the folder this study's, or see that it is; of one that learns, its people count. Raises RunError where it
    holds another."""
    task, backend = study.task, study.backend
    header = {
        "task": task.name,
        "settings": task.settings.model_dump(mode="json", exclude={"rows", "baselines", "metrics", "description"}),
        "row": study.row.model_dump(mode="json"),
        "template": study.start.template.ref.sha256,
        "model": backend.files.sha256 if backend.files else None,
        "precision": backend.mode.precision,
        "metric": " ".join(study.metrics),
        "tuning": dict(study.settings),
        "data": dict(study.test.sources),
    }
    header |= claims.asked(study.row, task) | (
        claims.people(task, study.pool(study.settings.get("loss"))) if learns else {}
    )
    claims.claim(study.out / STUDY, header, "study")
    made_folder(study.out / CELLS)


def _tell(study: Study, cells: Sequence[Cell], against: str) -> list[Line]:
    """Write table and picture of these cells, and return the lines; none without the row that is compared with."""
    if all(cell.method != against for cell in cells):
        return []
    lines = table(cells, study.metrics, study.task.settings.seed, against)
    write_text(study.out / TABLE, dump({"against": against, "lines": [line.to_dict() for line in lines]}))
    write_text(study.out / PICTURE, picture(lines, study.task.name, against))
    return lines


def _done(study: Study, method: str, shots: int, seed: int) -> Cell | None:
    path = _file(study, method, shots, seed)
    return read_cell(path) if path.is_file() else None


def _run(study: Study, method: str, shots: int, seed: int) -> Cell:
    begin = time.perf_counter()
    cell = WAYS[method](study, shots, seed) if method in WAYS else still(study, method)
    write_cell(_file(study, method, shots, seed), cell)
    told = ", ".join(f"{name} {figure(name, statistic(cell, name).value)}" for name in study.metrics)
    study.say(f"{cell.name}: {told}, {time.perf_counter() - begin:.0f} s {cell.note}".rstrip())
    return cell


def _file(study: Study, method: str, shots: int, seed: int) -> Path:
    return study.out / CELLS / f"{name_of(method, shots, seed)}.json"


# --- before the first cell ---


def _check(study: Study, wanted: Sequence[tuple[str, int, int]]) -> None:
    """Raises what would stop these cells, as far as it can be known before the first of them is run."""
    for method, shots, seed in wanted:
        learns = WEIGHED.get(method, method)
        if learns in METHODS:
            people = study.shots_of(learns, shots, seed)
            _check_training(study, study.settings_of(learns, seed), people)
            if method in WEIGHED:
                _check_weighed(study, method, shots, seed, people)
        elif shots:
            people = study.people(shots, seed)
            if method in SHOWN:
                with_demos(study.start, people.learnt, SHOWN[method])
        else:  # nobody is learnt from
            if method in BASELINES:
                study.baseline(method)
            continue
        check_apart(people, study.test)


def _check_training(study: Study, settings: Settings, people: Shots) -> None:
    settings = settings.complete()
    check_ahead(settings, study.backend, settings.n_steps(len(people.learnt)))
    lesson = lesson_of(study.task, study.row, people, study.backend, settings)
    lesson.check(settings)
    if settings.method not in CLASSIFIERS:
        Negatives(lesson.negatives, lesson.training, settings.seed)


def _check_weighed(study: Study, method: str, shots: int, seed: int, people: Shots) -> None:
    """Raises FewrecError where nobody is held out, more are than were asked for, or one has no answer."""
    if not people.held_out:
        raise FewrecError(
            f"{method!r} weighs its scores on people held out of {shots}, and nobody is; give more people (of "
            f"{SMALLEST_SPLIT} on some are), --held-out more than 0, or {WEIGHED[method]!r} alone"
        )
    if tasks.prescribed_shots(study.task, shots, seed) is not None:
        raise FewrecError(
            f"{method!r} would learn from more than {shots} rows: those that {study.task.name} holds out lie beside "
            f"them; leave {method!r} out"
        )
    for one in people.held_out if people.loss == "listwise" else ():
        check_answers("listwise", len(one.query.candidates), len(one.relevant), one.query.user_id)
