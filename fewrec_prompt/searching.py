"""Choose template, verbalizer and calibration on the users of the selection part; measure the choice once on the test.

What may be chosen from, and how it is gone through, stands in space.py. A search is a folder of two ordinary runs,
`selection` and `test`, and `search.json`; the store of the first is locked and unfinished until all of it is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewrec_prompt import metrics, records, scoring, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.checked import Checked, check
from fewrec_prompt.comparison import Difference, paired
from fewrec_prompt.display import MAIN, main_metric
from fewrec_prompt.errors import RunError, TaskError, VerbalizerError
from fewrec_prompt.evaluation import (
    Options,
    Run,
    baseline_rows,
    conduct,
    finish,
    from_here,
    load_backend,
    measure,
    score_all,
)
from fewrec_prompt.files import write_text
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.metrics.naming import is_own_name
from fewrec_prompt.runs import RunStore, dump, finished, own_folder, run_store
from fewrec_prompt.scoring import Job, Progress, Row, silent
from fewrec_prompt.significance import Choice, Floats, Interval, bootstrap_interval, bootstrap_intervals, choice, number
from fewrec_prompt.space import Grid, Space, Trial, grid, run_trials
from fewrec_prompt.task_settings import BASELINES, RowSettings
from fewrec_prompt.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

FILE, SELECTION, TEST = "search.json", "selection", "test"
N_TRIALS, N_BEST = 200, 10  # trials at most; candidates that are rows of the run on the selection users
USUAL, UNCHANGED = Space(), Options()


@dataclass(frozen=True, slots=True)
class Search:
    """A finished search: its folder and the record that stands in search.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def winner(self) -> RowSettings:
        """How the chosen candidate asks and reads."""
        return RowSettings(**self.record["winner"]["settings"])

    @property
    def test(self) -> Run:
        """The run on the test users."""
        return Run(self.folder / TEST, FinishedRun(self.folder / TEST).record)

    def to_pandas(self) -> pd.DataFrame:
        """One line per candidate, best first: name, settings, value on the selection users with its interval."""
        import pandas as pd

        kept = ("value", "low", "high", "first")
        lines = [
            {"name": one["name"]} | one["settings"] | {key: one[key] for key in kept}
            for one in self.record["candidates"]
        ]
        return pd.DataFrame(lines)


def search(
    task: Task | str | Path,
    space: Space = USUAL,
    options: Options = UNCHANGED,
    *,
    metric: str | None = None,
    trials: int = N_TRIALS,
    selection_users: int | None = None,
    out: Path | str | None = None,
    backend: Backend | None = None,
    cache: bool = True,
    say: Say = quiet,
    progress: Progress = silent,
) -> Search:
    """Search a space by `metric` (nDCG@10, else the task's first) and write runs/search-<task>-<n>, or `out`.

    Every set of questions is asked once of the selection users, the first `selection_users` or all of them; trials are
    arithmetic on the answers. The candidate of the highest mean is then scored on the test users, beside the rows of
    the task. `cache` is that of `evaluate`. A search that stopped goes on when it is called again, one that is finished
    is returned as it is. Raises TaskError where a task has no users to choose on, and any error of `evaluate`.
    """
    metric = None if metric is None else from_here(metric)
    task = _applied(task, options, metric)
    metric = _metric(task, metric)
    for what, n in (("trials", trials), ("selection users", selection_users)):
        if n is not None and n < 1:
            raise TaskError(f"{n} {what} were asked; ask for one at least")
    candidates = grid(space, task.settings.rows)
    parts = _checked(task, candidates, selection_users, say)
    backend = backend or load_backend(task, options.numerics, say)
    plan = _Plan(*parts, options, backend, candidates, metric, trials, cache)
    header = plan.header(space)
    folder = own_folder(f"search-{task.name}", header, inside=SELECTION) if out is None else Path(out)
    if out is None and (folder / FILE).is_file() and finished(folder / SELECTION):
        say(f"{folder} holds this very search; give --out to make it anew")
        return Search(folder, json.loads((folder / FILE).read_text(encoding="utf-8")))
    with _place(folder, header) as store:
        return _searched(plan, folder, store, say, progress)


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that a search goes by. `selection` has the default row, then every candidate; `test` the task's rows."""

    selection: Checked
    test: Checked
    options: Options
    backend: Backend
    grid: Grid
    metric: str
    n_trials: int
    cache: bool

    def header(self, space: Space) -> dict[str, Any]:
        """What decides the result."""
        options = replace(self.options, split="selection")
        rows, queries = self.selection.rows(self.backend), self.selection.queries
        made = records.header(self.selection.task, rows, queries, self.backend) | options.record()
        searched = {"metric": self.metric, "trials": self.n_trials, "space": space.to_dict()}
        searched |= {"test_queries": records.queries_digest(self.test.queries), "optuna": records.version_of("optuna")}
        return made | {"search": searched}

    @property
    def more(self) -> bool:
        return metrics.better_of(self.metric) == "more"

    @property
    def seed(self) -> int:
        return self.selection.task.settings.seed


# --- what is checked before a model is loaded


def _applied(task: Task | str | Path, options: Options, metric: str | None) -> Task:
    """The task as it will be measured: with chance and popularity beside the rows, and the metric of the search."""
    if options.rows is not None or options.split != "test" or options.candidates is not None or options.control:
        raise TaskError(
            "a search makes its own rows, of a task's own parts; leave rows, split and candidates out, and any control"
        )
    found = options.applied(task if isinstance(task, Task) else tasks.load_task(task))
    settings = found.settings
    names = tuple(dict.fromkeys((*settings.metrics, *((metric,) if metric else ()))))
    baselines = tuple(dict.fromkeys((*BASELINES, *settings.baselines)))
    changes = {"metrics": names, "baselines": baselines, "ensembles": ()}  # a search chooses among single rows
    return replace(found, settings=settings.model_copy(update=changes))


def _metric(task: Task, asked: str | None) -> str:
    """The metric to choose by. Raises TaskError for one that has no better, or no value per user."""
    names = task.settings.metrics
    name = asked or main_metric(names) or MAIN
    metrics.check_metrics([name])
    if metrics.better_of(name) == "neither":
        raise TaskError(f"{name} says what comes up, not how good it is; choose by another metric, such as {MAIN}")
    if is_own_name(name) and metrics.parse_metric(name).entry.kind == "run":
        raise TaskError(
            f"{name} is one number of all users, without a value for each; choose by another, such as {MAIN}"
        )
    return name


def _checked(task: Task, candidates: Grid, n_users: int | None, say: Say) -> tuple[Checked, Checked]:
    """The two sides, both loaded and asked for no model; TaskError where a user is on both."""
    chosen_on = tasks.load_queries(task, "selection", say=say)
    if n_users is not None and len(chosen_on.queries) < n_users:
        raise TaskError(f"{task.name}: {n_users} selection users were asked, but there are {len(chosen_on.queries)}")
    chosen_on = chosen_on.first(n_users or len(chosen_on.queries))
    if not any(query.user_id in chosen_on.qrels for query in chosen_on.queries):
        raise TaskError(f"{task.name}: the selection users have no targets, so nothing can be chosen on them")
    test = check(task, say=say)
    tasks.check_apart(chosen_on, test.queries, f"{task.name}, selection")
    default = test.task.settings.rows[0]
    rows = (default, *(row for row in candidates.rows() if row != default))
    tried = replace(task, settings=task.settings.model_copy(update={"rows": rows}))
    return check(tried, queries=chosen_on), test


@contextmanager
def _place(folder: Path, header: Mapping[str, Any]) -> Iterator[RunStore]:
    """The store of the selection users in a folder of a search; a folder that comes to nothing is taken away again."""
    existed = folder.exists()
    if folder.is_file() or (existed and any(folder.iterdir()) and not (folder / SELECTION).is_dir()):
        raise RunError(f"{folder}: not empty and not an unfinished search; give --out a new or empty folder")
    try:
        with run_store(folder / SELECTION, header) as store:
            yield store
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# --- the search


def _searched(plan: _Plan, folder: Path, store: RunStore, say: Say, progress: Progress) -> Search:
    rows = {row.settings: row for row in plan.selection.rows(plan.backend)}
    beside = baseline_rows(plan.selection.task, plan.selection.queries)
    jobs = scoring.plan(list(rows.values()), plan.selection.queries.queries)
    n_damaged, failed = _score_each(plan, jobs, store, say, progress)
    if reason := failed.get(rows[next(iter(rows))].asks):
        raise VerbalizerError(f"the task's first row, which candidates are set against, fails: {reason}")
    table = _Table(plan, rows, store, failed)
    trials = run_trials(plan.grid, plan.n_trials, plan.seed, table.mean, more=plan.more)
    ranked = table.ranked(trials)
    run = _measured_on_test(plan, rows[ranked[0]].settings, folder, say, progress)
    record = _record(plan, store.header, table, ranked, trials) | _on_test(plan, table, ranked[0], run)
    record["earlier_searches"] = earlier_searches(folder, store.header["search"]["test_queries"])
    write_text(folder / FILE, dump(record))
    shown = [rows[one] for one in dict.fromkeys([table.default, *ranked[:N_BEST]])]
    scored = beside + [scoring.read(row, plan.selection.queries.queries, table.log) for row in shown]
    finish(plan.selection.task, shown, scored, plan.selection.queries, store, n_damaged)
    return Search(folder, record)


def _score_each(
    plan: _Plan, jobs: Sequence[Job], store: RunStore, say: Say, progress: Progress
) -> tuple[int, dict[str, str]]:
    """Have everything scored; how many rows of the cache were damaged, and which questions failed, and why.

    A candidate whose labels the model does not answer with has failed, and ends no search.
    """
    n_users, done, n_damaged = len(plan.selection.queries.queries), 0.0, 0
    total, failed = sum(job.cost for job in jobs) * n_users, dict[str, str]()
    for job in jobs:
        try:
            if job.key.removesuffix("/twin") not in failed:
                onward = partial(_onward, progress, done, total)
                n_damaged += score_all([job], plan.selection.queries, store, onward, say, cache=plan.cache)
        except VerbalizerError as error:
            failed[job.key] = str(error)
            say(f"failed, and left out: {error}")
        done += job.cost * n_users
    return n_damaged, failed


def _onward(progress: Progress, before: float, total: float, what: str, done: float, _total: float) -> None:
    """The progress of one job as that of all."""
    progress(what, before + done, total)


class _Table:
    """The values of candidates, by user: computed when first asked for, from answers that are read once."""

    def __init__(
        self, plan: _Plan, rows: Mapping[RowSettings, Row], store: RunStore, failed: Mapping[str, str]
    ) -> None:
        self._plan, self._rows, self._failed = plan, rows, failed
        self.log = _Remembered(store)
        self.default = next(iter(rows))
        self.values: dict[RowSettings, Floats] = {}
        self.label = plan.metric  # what a run calls it: of a metric that is a path the last part

    def of(self, row: RowSettings) -> Floats:
        """One value per user who has an answer; NaN where the metric has none, or the candidate failed."""
        if row not in self.values and self.failure(row):
            return np.full(len(self.of(self.default)), np.nan)
        if row not in self.values:
            queries = self._plan.selection.queries
            scored = scoring.read(self._rows[row], queries.queries, self.log)
            found = measure(scored, queries, [self._plan.metric])
            if len(found) != 1:
                names = ", ".join(found)
                raise TaskError(f"{self._plan.metric} gives several numbers ({names}); choose by one that gives one")
            ((self.label, self.values[row]),) = found.items()
        return self.values[row]

    def mean(self, row: RowSettings) -> float:
        """Mean over users, the same to the last bit in whatever order they come; NaN if nobody has a value."""
        known = [value for value in self.of(row).tolist() if value == value]
        return math.fsum(known) / len(known) if known else math.nan

    def ranked(self, trials: Sequence[Trial]) -> list[RowSettings]:
        """Every candidate that was tried, best first; of equals the default, then the plainest."""
        place = {row: at for at, row in enumerate(self._plan.grid.rows())}
        known = {trial.row: trial.value for trial in trials if not math.isnan(trial.value)}
        if not known and self._failed:
            raise VerbalizerError(f"every candidate failed; the first: {next(iter(self._failed.values()))}")
        if not known:
            raise TaskError(
                f"{self._plan.metric} has no value for any candidate on these users; choose by another --metric"
            )
        sign = -1 if self._plan.more else 1
        return sorted(known, key=lambda row: (sign * known[row], row != self.default, place[row]))

    def name(self, row: RowSettings) -> str:
        return self._rows[row].name

    def failure(self, row: RowSettings) -> str | None:
        """Why a candidate has no values; None if it has."""
        return self._failed.get(self._rows[row].asks)


class _Remembered:
    """The answers of a store, each read from the disk once."""

    def __init__(self, store: RunStore) -> None:
        self.get = cache(store.get)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # being written, or no header of ours
        return {}
    return found if isinstance(found, dict) else {}


def _measured_on_test(plan: _Plan, winner: RowSettings, folder: Path, say: Say, progress: Progress) -> FinishedRun:
    """The rows of the task and the winner on the test users: once, for what is finished is left as it is."""
    if not (folder / TEST / "run.json").is_file():
        own = plan.test.task.settings
        rows = tuple(dict.fromkeys((*own.rows, winner)))
        task = replace(plan.test.task, settings=own.model_copy(update={"rows": rows}))
        checked = check(task, queries=plan.test.queries)
        say("the choice is made; now the test users")
        out = folder / TEST
        conduct(checked, plan.options, plan.backend, out=out, cache=plan.cache, say=say, progress=progress)
    return FinishedRun(folder / TEST)


def earlier_searches(folder: Path, test_queries: str) -> list[str]:
    """The other searches beside this one that have come to, or begun with, the same test users and answers."""
    found = []
    for path in sorted(folder.parent.glob(f"*/{SELECTION}/header.json")):
        other = path.parent.parent
        same = _read_json(path).get("search", {}).get("test_queries") == test_queries
        if same and other != folder and (other / TEST / "header.json").is_file():
            found.append(str(other))
    return found


# --- the record


def _record(
    plan: _Plan, header: Mapping[str, Any], table: _Table, ranked: Sequence[RowSettings], trials: Sequence[Trial]
) -> dict[str, Any]:
    """What was tried on whom, and how far the best can be told from the others."""
    columns, best = {row: table.of(row) for row in ranked}, ranked[0]
    default = table.of(table.default)
    values = bootstrap_intervals(columns, plan.seed)
    behind = bootstrap_intervals({row: column - columns[best] for row, column in columns.items()}, plan.seed)
    gained = bootstrap_interval(columns[best] - default, plan.seed)
    luck = choice(columns, plan.seed, more=plan.more)
    return {
        "task": header["task"],
        "search": header["search"],
        "metric": table.label,
        "how": "every candidate" if len(plan.grid.rows()) <= plan.n_trials else "TPE (Optuna)",
        "n_candidates": len(plan.grid.rows()),
        "n_trials": len(trials),
        "n_tried": len(ranked),
        "selection": {
            "run": SELECTION,
            "queries": header["queries"],
            "n_users": len(plan.selection.queries.queries),
            "n_judged": len(default),
            "difference": records.interval(gained),
        },
        "winner": _named(table, best),
        "default": _named(table, table.default) | records.interval(bootstrap_interval(default, plan.seed)),
        "expected": number(luck.expected),
        "n_level": sum(1 for row in ranked[1:] if behind[row].low <= 0 <= behind[row].high),
        "failed": {table.name(trial.row): why for trial in trials if (why := table.failure(trial.row))},
        "candidates": list(_candidates(table, ranked, values, behind, luck)),
        "trials": [{"name": table.name(trial.row), "value": number(trial.value)} for trial in trials],
        "model": header["model"],
        "versions": header["versions"],
    }


def _candidates(
    table: _Table,
    ranked: Sequence[RowSettings],
    values: Mapping[RowSettings, Interval],
    behind: Mapping[RowSettings, Interval],
    luck: Choice[RowSettings],
) -> Iterator[dict[str, Any]]:
    for row in ranked:
        own = _named(table, row) | records.interval(values[row])
        yield own | {"minus_winner": records.interval(behind[row]), "first": luck.first.get(row)}


def _on_test(plan: _Plan, table: _Table, winner: RowSettings, run: FinishedRun) -> dict[str, Any]:
    """The winner against the default on the test users; no difference where the metric has no value for either."""
    metric, default, best = table.label, table.name(table.default), table.name(winner)
    found: Difference | None = None
    if metric in run.rows[best]["metrics"]:
        found = paired(metric, run.values(default, metric), run.values(best, metric), plan.seed)
    known = found is not None and not math.isnan(found.difference.value)
    return {
        "test": {
            "run": TEST,
            "queries": run.record["queries"],
            "n_users": run.record["n_users"],
            "difference": found.to_dict() if found and known else None,
        }
    }


def _named(table: _Table, row: RowSettings) -> dict[str, Any]:
    return {"name": table.name(row), "settings": row.model_dump(mode="json")}
