"""Zero against few shots: every method with every number of people, on the same users, candidates and seeds.

A cell is one method, one number of people, one seed: a file with the metric of every test user. A cell that is done is
not run again, and one that was interrupted goes on, because answers and trainings are kept. The table and the picture
are made of the cells alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fewrec_prompt import charts, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.demos import DemosName
from fewrec_prompt.display import figure, points
from fewrec_prompt.errors import FewrecError, RunError, did_you_mean
from fewrec_prompt.evaluation import load_backend, measure
from fewrec_prompt.few_shot import check_apart, default_row, recommender_of, shots_of, trainable, tune_task, with_demos
from fewrec_prompt.files import write_text
from fewrec_prompt.labelling import check_row, tune_classifier
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.runs import dump
from fewrec_prompt.score_cache import ScoreCache, score_cache
from fewrec_prompt.scoring import Asking, Scored
from fewrec_prompt.significance import Floats, bootstrap_interval, paired_interval
from fewrec_prompt.tasks import RowSettings, Task
from fewrec_prompt.tuning.features import features_of, prior_of
from fewrec_prompt.tuning.mix import fit
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import CLASSIFIERS, DEFAULTS, Settings
from fewrec_prompt.types import Query, Question, Ranking, TokenLogprobs

ZERO = "zero"
STUDY, CELLS, TABLE, PICTURE = "study.json", "cells", "curve.json", "curve.html"


@dataclass(frozen=True, slots=True)
class Cell:
    """What one method came to with so many people of one seed."""

    method: str
    shots: int
    seed: int
    user_ids: tuple[str, ...]
    values: tuple[float, ...]  # of the metric, per test user
    n_weights: int
    train_seconds: float
    ms_per_user: float  # of ranking one test user, questions and model
    note: str = ""

    @property
    def name(self) -> str:
        return _name(self.method, self.shots, self.seed)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: a method with so many people, over its seeds. Fractions; the difference is to zero shots."""

    method: str
    shots: int
    n_seeds: int
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    n_weights: int
    train_seconds: float
    ms_per_user: float


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    task: Task
    row: RowSettings
    backend: Backend
    metric: str
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
        values = measure(scored, self.test, (self.metric,))[self.metric]
        judged = tuple(query.user_id for query in self.test.queries if query.user_id in self.test.qrels)
        about = {"n_weights": 0, "train_seconds": 0.0, "ms_per_user": round(ms, 2)} | about
        return Cell(method, shots, seed, judged, tuple(float(value) for value in values), **about)


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
    metric: str = "nDCG@10",
    settings: Mapping[str, Any] | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    say: Say = quiet,
) -> list[Line]:
    """Run the cells that are not there yet, then write table and picture to `out`; the lines of the table.

    `settings` are those of tuning that all gradient methods share. Raises FewrecError for unknown methods,
    VerbalizerError for a row that a classifier among them cannot answer, RunError for a folder that holds another
    study.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_methods(methods)
    if not shots or seeds < 1:
        raise FewrecError("a curve needs a number of people and a seed at least")
    row = row or default_row(task)
    if set(methods) & set(CLASSIFIERS):
        check_row(row)
    with ExitStack() as stack:
        cache = stack.enter_context(score_cache(say))
        backend = backend or load_backend(task, numerics, say)
        study = Study(task, row, backend, metric, out, cache, dict(settings or {}), say)
        _claim(study)
        wanted = [(ZERO, 0, 0)]
        wanted += [(name, n, seed) for n in shots for seed in range(seeds) for name in methods if name != ZERO]
        cells = [_done(study, *one) or _run(study, *one) for one in wanted]
    lines = table(cells, task.settings.seed)
    write_text(out / TABLE, dump({"metric": metric, "lines": [asdict(line) for line in lines]}))
    write_text(out / PICTURE, picture(lines, metric, task.name))
    return lines


def check_methods(methods: Sequence[str]) -> None:
    """Raises FewrecError for a name that is no method."""
    known = (ZERO, *WAYS)
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
        "metric": study.metric,
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


def read_cell(path: Path) -> Cell:
    """A cell from its file. Raises RunError for one that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sealed = found.pop("sha256")
        if sealed != _seal(found):
            raise ValueError("its numbers were changed")
        return Cell(**found | {"user_ids": tuple(found["user_ids"]), "values": tuple(found["values"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); remove it to run the cell again") from error


def _run(study: Study, method: str, shots: int, seed: int) -> Cell:
    begin = time.perf_counter()
    cell = _zero(study) if method == ZERO else WAYS[method](study, shots, seed)
    content = json.loads(json.dumps(asdict(cell)))
    write_text(_file(study, method, shots, seed), dump(content | {"sha256": _seal(content)}))
    mean = figure(study.metric, float(np.nanmean(cell.values)))
    study.say(f"{cell.name}: {study.metric} {mean}, {time.perf_counter() - begin:.0f} s {cell.note}".rstrip())
    return cell


def _file(study: Study, method: str, shots: int, seed: int) -> Path:
    return study.out / CELLS / f"{_name(method, shots, seed)}.json"


def _name(method: str, shots: int, seed: int) -> str:
    return ZERO if method == ZERO else f"{method}-{shots}-{seed}"


def _seal(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- one cell ---


def _zero(study: Study) -> Cell:
    return study.cell(ZERO, 0, 0, study.start.rank)


def _mix(study: Study, shots: int, seed: int) -> Cell:
    """Weights over the row's logged scores."""
    found = shots_of(study.task, shots, seed, say=study.say)
    check_apart(found, study.test)
    start, name = study.start, study.row.prompt
    logged = [features_of(name, start, start.answers(one.query)) for one in found.learnt]
    begin = time.perf_counter()
    made = fit(found.learnt, logged, prior_of(name, start))
    about = {"n_weights": len(made.names), "train_seconds": round(time.perf_counter() - begin, 4)}
    note = f"prior counts {made.prior_share:.2f}"
    return study.cell("mix", shots, seed, MixRecommender({name: start}, made).rank, note=note, **about)


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
        folder = study.out / "adapters" / _name(method, shots, seed)
        backend = study.backend
        learn = tune_classifier if method in CLASSIFIERS else tune_task
        if not folder.is_dir():
            check_apart(shots_of(study.task, shots, seed), study.test)
            settings = Settings(**dict(study.settings) | {"method": method, "seed": seed})
            learn(
                study.task,
                settings,
                shots,
                folder,
                row=study.row,
                backend=trainable(backend, method, study.task, study.say),
                say=study.say,
            )
        about = _about(folder)
        row = RowSettings(**about["row"])  # without its calibration where a classifier was learnt
        recommender = recommender_of(study.task, row, backend).adapted(folder)
        kept = replace(recommender, backend=Kept(recommender.backend, study.cache))  # type: ignore[arg-type]  # all of a Backend
        note = "" if about["learned"] else "did not learn"
        return study.cell(
            method, shots, seed, kept.rank, n_weights=about["n_weights"], train_seconds=about["seconds"], note=note
        )

    return run


def _about(folder: Path) -> Mapping[str, Any]:
    from fewrec_prompt.tuning.adapters import read

    return read(folder).about


WAYS: Mapping[str, Callable[[Study, int, int], Cell]] = {
    "demos": _shown("similar"),
    "demos-random": _shown("random"),
    "demos-diverse": _shown("diverse"),
    "mix": _mix,
    **{name: _tuned(name) for name in DEFAULTS},
}


# --- all cells ---


def table(cells: Sequence[Cell], seed: int) -> list[Line]:
    """A line for each method and number of people: the mean over seeds, with intervals over test users.

    Intervals say what other users would have given, not other seeds; differences are paired by user.
    """
    (zero,) = (cell for cell in cells if cell.method == ZERO)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if cell.user_ids != zero.user_ids:
            raise RunError(f"cell {cell.name}: is over other users than the rest; remove it to run it again")
        groups.setdefault((cell.method, cell.shots), []).append(cell)
    base = np.array(zero.values)
    return [_line(method, shots, group, base, seed) for (method, shots), group in groups.items()]


def _line(method: str, shots: int, cells: Sequence[Cell], base: Floats, seed: int) -> Line:
    values = np.mean([cell.values for cell in cells], axis=0)
    own, gap = bootstrap_interval(values, seed), paired_interval(values, base, seed)
    return Line(
        method,
        shots,
        len(cells),
        own.value,
        own.low,
        own.high,
        gap.value,
        gap.low,
        gap.high,
        cells[0].n_weights,
        float(np.mean([cell.train_seconds for cell in cells])),
        float(np.mean([cell.ms_per_user for cell in cells])),
    )


def picture(lines: Sequence[Line], metric: str, task: str) -> str:
    """A page with the curves as a picture: no script, no network."""
    zero = next(line for line in lines if line.method == ZERO)
    methods = list(dict.fromkeys(line.method for line in lines if line.method != ZERO))
    series = [charts.Series(ZERO, tuple(_point(zero, shots) for shots in sorted({line.shots for line in lines} - {0})))]
    for method in methods:
        own = sorted((line for line in lines if line.method == method), key=lambda line: line.shots)
        series.append(charts.Series(method, tuple(_point(line, line.shots) for line in own)))
    x = charts.Axis("people learnt from, each step twice as many", lambda at: f"{2**at:.0f}")
    y = charts.Axis(metric, lambda value: figure(metric, value))
    drawn = charts.lines(f"{metric} by people learnt from", "means and 95 % intervals over test users", series, x, y)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in shown(line, metric))}</tr>" for line in lines)
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    return _PAGE.format(
        title=f"fewrec-prompt: {task}, zero against few shots",
        style=charts.STYLE,
        drawn=drawn,
        table=f"<table><tr>{heads}</tr>{rows}</table>",
    )


HEADS = ("method", "people", "seeds", "value", "95 %", "− zero", "95 % paired", "weights", "training s", "ms/user")


def shown(line: Line, metric: str) -> tuple[str, ...]:
    """A line of the table as text; see HEADS."""
    gap = line.method != ZERO
    return (
        line.method,
        str(line.shots) if gap else "–",
        str(line.n_seeds),
        figure(metric, line.value),
        f"{figure(metric, line.low)} to {figure(metric, line.high)}",
        points(metric, line.difference, signed=True) if gap else "–",
        f"{points(metric, line.difference_low, signed=True)} to {points(metric, line.difference_high, signed=True)}"
        if gap
        else "–",
        f"{line.n_weights:,}" if gap else "–",
        f"{line.train_seconds:.1f}" if gap else "–",
        f"{line.ms_per_user:.0f}",
    )


def _point(line: Line, shots: int) -> charts.Point:
    return charts.Point(float(np.log2(shots)), line.value, line.low, line.high)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: light-dark(#1b1b1f, #e6e6ea); --soft: light-dark(#5d5d66, #a4a4ad);
  --line: light-dark(#e3e3e8, #36363c); --paper: light-dark(#ffffff, #18181b);
  --s0: #8a8a93; --s1: #2f6fd0; --s2: #d0602f; --s3: #2f9e63; --s4: #9a4fc4; --s5: #b8912a; }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
{style}</style></head><body><h1>{title}</h1>{drawn}<div class="wide">{table}</div></body></html>
"""
