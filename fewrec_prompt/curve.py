"""Zero against few shots: every method with every number of people, on the same users, candidates and seeds.

A cell is one method, one number of people, one seed: a file with what every test user came to. A cell that is done is
not run again, and one that was interrupted goes on, because answers and trainings are kept. The table and the picture
are made of the cells alone (cells.py, curve_table.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewrec_prompt import tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.cells import CELLS, STUDY, ZERO, Cell, check_told, name_of, read_cell, statistic, write_cell
from fewrec_prompt.curve_table import Line, picture, table
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.demos import DemosName
from fewrec_prompt.display import figure
from fewrec_prompt.errors import FewrecError, RunError, did_you_mean
from fewrec_prompt.evaluation import judged, load_backend
from fewrec_prompt.few_shot import check_apart, default_row, recommender_of, shots_of, trainable, tune_task, with_demos
from fewrec_prompt.files import write_text
from fewrec_prompt.labelling import check_row, tune_classifier
from fewrec_prompt.metrics import measure
from fewrec_prompt.mixing import fit_mix
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.runs import dump
from fewrec_prompt.score_cache import ScoreCache, score_cache
from fewrec_prompt.scoring import Asking, Scored
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import CLASSIFIERS, DEFAULTS, Settings
from fewrec_prompt.types import Query, Question, Ranking, TokenLogprobs

TABLE, PICTURE = "curve.json", "curve.html"


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    task: Task
    row: RowSettings
    backend: Backend
    metrics: tuple[str, ...]
    out: Path
    cache: ScoreCache
    settings: Mapping[str, Any]
    say: Say

    @cached_property
    def test(self) -> QuerySet:
        return tasks.load_queries(self.task, say=self.say)

    @cached_property
    def start(self) -> Recommender:
        """The row before anything is learnt, its answers kept."""
        return replace(recommender_of(self.task, self.row, self.backend), backend=Kept(self.backend, self.cache))  # type: ignore[arg-type]  # all of a Backend

    def cell(self, method: str, shots: int, seed: int, rank: Callable[[Query], Ranking], **about: Any) -> Cell:
        """Rank all test users and measure; `about` is what else the cell says."""
        begin = time.perf_counter()
        scored = Scored(method, tuple(map(rank, self.test.queries)), kind=self.start.verbalizer.kind)
        ms = 1000 * (time.perf_counter() - begin) / len(self.test.queries)
        users = judged(scored, self.test)
        about = {"n_weights": 0, "train_seconds": 0.0, "ms_per_user": round(ms, 2)} | about
        return Cell(
            method,
            shots,
            seed,
            tuple(user.user_id for user in users),
            {name: tuple(values.tolist()) for name, values in measure(self.metrics, users).items()},
            scores=tuple(tuple(user.scores.tolist()) for user in users),
            relevant=tuple(tuple(np.flatnonzero(user.relevant).tolist()) for user in users),
            **about,
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """A backend that answers from the score cache what it was asked before."""

    backend: Backend
    cache: ScoreCache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def logprobs(self, questions: Sequence[Question]) -> list[TokenLogprobs]:
        return Asking(self.backend, self.cache)(list(questions))


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
    """Run the cells that are not there yet, then write table and picture to `out`; the lines of the table.

    `metrics` are those of a question, and those over several questions that scores alone are needed for (OF_SCORES);
    the first one is told with every cell. Differences are to the method `against` that learns nothing: zero shots or a
    baseline. `settings` are those of tuning that all gradient methods share. Raises FewrecError for unknown methods and
    metrics, VerbalizerError for a row that a classifier among them cannot answer, RunError for a folder that holds
    another study.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_methods(methods)
    check_told(metrics)
    still = tuple(dict.fromkeys((ZERO, *(name for name in methods if name in BASELINES))))
    if against not in still:
        raise FewrecError(f"there is no row {against!r} to compare with; {did_you_mean(against, still)}")
    if not shots or seeds < 1:
        raise FewrecError("a curve needs a number of people and a seed at least")
    row = row or default_row(task)
    if set(methods) & set(CLASSIFIERS):
        check_row(row)
    with ExitStack() as stack:
        cache = stack.enter_context(score_cache(say))
        backend = backend or load_backend(task, numerics, say)
        study = Study(task, row, backend, tuple(metrics), out, cache, dict(settings or {}), say)
        _claim(study)
        wanted = [(name, 0, 0) for name in still]
        wanted += [(name, n, seed) for n in shots for seed in range(seeds) for name in methods if name not in still]
        cells = [_done(study, *one) or _run(study, *one) for one in wanted]
    lines = table(cells, metrics, task.settings.seed, against)
    write_text(out / TABLE, dump({"against": against, "lines": [asdict(line) for line in lines]}))
    write_text(out / PICTURE, picture(lines, task.name, against))
    return lines


def check_methods(methods: Sequence[str]) -> None:
    """Raises FewrecError for a name that is no method."""
    known = (ZERO, *WAYS, *BASELINES)
    for name in methods:
        if name not in known:
            raise FewrecError(f"unknown method {name!r}; {did_you_mean(name, known)}")


def _claim(study: Study) -> None:
    """Make the folder this study's, or see that it is. Raises RunError where it holds another."""
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
    header = json.loads(json.dumps(header))
    path = study.out / STUDY
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in header if header[key] != there.get(key))
        if differ:
            raise RunError(
                f"{study.out}: holds another study, which differs in {', '.join(differ)}; name another --out"
            )
        return
    (study.out / CELLS).mkdir(parents=True, exist_ok=True)
    write_text(path, dump(header))


def _done(study: Study, method: str, shots: int, seed: int) -> Cell | None:
    path = _file(study, method, shots, seed)
    return read_cell(path) if path.is_file() else None


def _run(study: Study, method: str, shots: int, seed: int) -> Cell:
    begin = time.perf_counter()
    cell = WAYS[method](study, shots, seed) if method in WAYS else _still(study, method)
    write_cell(_file(study, method, shots, seed), cell)
    told = ", ".join(f"{name} {figure(name, statistic(cell, name).value)}" for name in study.metrics)
    study.say(f"{cell.name}: {told}, {time.perf_counter() - begin:.0f} s {cell.note}".rstrip())
    return cell


def _file(study: Study, method: str, shots: int, seed: int) -> Path:
    return study.out / CELLS / f"{name_of(method, shots, seed)}.json"


# --- one cell ---


def _still(study: Study, method: str) -> Cell:
    """What nobody's shots change: the row before anything is learnt, or a baseline."""
    if method == ZERO:
        return study.cell(ZERO, 0, 0, study.start.rank)
    baseline = BASELINES.load(method)(study.test.to_learn_from(), study.task.settings.seed)
    return study.cell(method, 0, 0, baseline.rank)


def _mix(study: Study, shots: int, seed: int) -> Cell:
    """Weights over the row's logged scores."""
    found = shots_of(study.task, shots, seed, say=study.say)
    check_apart(found, study.test)
    rows = {study.row.prompt: study.start}
    answers = [[study.start.answers(one.query)] for one in found.learnt]
    begin = time.perf_counter()
    made = fit_mix(found, rows, answers)
    about = {"n_weights": len(made.names), "train_seconds": round(time.perf_counter() - begin, 4)}
    note = f"prior counts {made.prior_share:.2f}"
    return study.cell("mix", shots, seed, MixRecommender(rows, made).rank, note=note, **about)


def _shown(how: DemosName) -> Callable[[Study, int, int], Cell]:
    """Examples in the prompt: nothing is trained."""

    def run(study: Study, shots: int, seed: int) -> Cell:
        found = shots_of(study.task, shots, seed, say=study.say)
        check_apart(found, study.test)
        recommender = with_demos(study.start, found.learnt, how, seed=seed)
        name = "demos" if how == "similar" else f"demos-{how}"
        return study.cell(name, shots, seed, recommender.rank)

    return run


def _tuned(method: str) -> Callable[[Study, int, int], Cell]:
    """A method whose weights are kept as an adapter."""

    def run(study: Study, shots: int, seed: int) -> Cell:
        from fewrec_prompt.tuning.adapters import described

        folder = study.out / "adapters" / name_of(method, shots, seed)
        backend = study.backend
        learn = tune_classifier if method in CLASSIFIERS else tune_task
        if not folder.is_dir():
            check_apart(shots_of(study.task, shots, seed), study.test)
            settings = Settings.shared(method, {**study.settings, "seed": seed})
            learn(
                study.task,
                settings,
                shots,
                folder,
                row=study.row,
                backend=trainable(backend, method, study.task, study.say),
                say=study.say,
            )
        about = described(folder)
        row = RowSettings(**about["tasks"][study.task.name]["row"])  # a classifier leaves its calibration out
        recommender = recommender_of(study.task, row, backend).adapted(folder)
        kept = replace(recommender, backend=Kept(recommender.backend, study.cache))  # type: ignore[arg-type]  # all of a Backend
        note = "" if about["learned"] else "did not learn"
        return study.cell(
            method, shots, seed, kept.rank, n_weights=about["n_weights"], train_seconds=about["seconds"], note=note
        )

    return run


WAYS: Mapping[str, Callable[[Study, int, int], Cell]] = {
    "demos": _shown("similar"),
    "demos-random": _shown("random"),
    "demos-diverse": _shown("diverse"),
    "mix": _mix,
    **{name: _tuned(name) for name in DEFAULTS},
}
