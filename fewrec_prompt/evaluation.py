"""Run a task: check it, have every row scored, then measure. Here rankings and answers meet, and nowhere else.

How questions are asked and shared stands in scoring.py, what is written down in records.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fewrec_prompt import metrics, records, report, scoring, tasks, verbalizers
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend, choice
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.checked import Checked, check, filled
from fewrec_prompt.data import parquet_files
from fewrec_prompt.data.controls import Control
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.query_files import write_queries
from fewrec_prompt.data.splits import Split
from fewrec_prompt.display import figure, main_metric, span
from fewrec_prompt.errors import TaskError
from fewrec_prompt.files import write_text
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.runs import RunStore, check_folder, dump, finished, own_folder, run_store
from fewrec_prompt.score_cache import score_cache
from fewrec_prompt.scoring import Job, Progress, Row, Scored, silent
from fewrec_prompt.significance import bootstrap_interval
from fewrec_prompt.slices import item_groups
from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.types import Kind, Query, Ranking

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and the record that stands in run.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.record["rows"])

    def to_pandas(self) -> pd.DataFrame:
        """One row per table row: name, n_users, ms_per_user, and each metric's value (fractions)."""
        import pandas as pd

        flat = [
            {"name": row["name"], "n_users": row["n_users"], "ms_per_user": row["ms_per_user"]}
            | {name: metric["value"] for name, metric in row["metrics"].items()}
            for row in self.rows
        ]
        return pd.DataFrame(flat)


@dataclass(frozen=True, slots=True)
class Options:
    """What a call may change of a task. None leaves the task's own."""

    rows: tuple[RowSettings, ...] | None = None
    ensembles: tuple[EnsembleSettings, ...] | None = None  # None: the task's own, unless `rows` replaces its rows
    baselines: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None  # paths in it start from the working directory
    model: str | None = None
    users: int | None = None
    seed: int | None = None
    split: Split = "test"
    candidates: Path | None = None  # a candidate file of an earlier run; all its users unless `users` is given
    numerics: Numerics = AUTO
    adapters: tuple[Path, ...] = ()  # folders of learnt weights: a row for each, beside the one that it was learnt from
    force: bool = False  # use an adapter though something that it was learnt with is another now
    control: Control | None = None  # prompts alone: what they get right without history, or with titles masked

    def applied(self, task: Task) -> Task:
        """The task with these changes. Raises TaskError for a number of users below one."""
        if self.users is not None and self.users < 1:
            raise TaskError(f"{self.users} users were asked; ask for one at least")
        names = None if self.metrics is None else tuple(map(from_here, self.metrics))
        changes: dict[str, Any] = {
            "rows": self._rows(task.name),
            "metrics": names,
            "model": self.model,
            "seed": self.seed,
        }
        changes["baselines"] = self.baselines if self.control is None else ()
        changes["ensembles"] = self._ensembles(task)
        settings = task.settings.model_copy(update={key: value for key, value in changes.items() if value is not None})
        if self.users is not None or self.candidates is not None:
            settings = settings.model_copy(update={"data": settings.data.model_copy(update={"users": self.users})})
        return replace(task, settings=settings)

    def _rows(self, task: str) -> tuple[RowSettings, ...] | None:
        """The rows that were asked for, then those of adapters; alone, these bring the row they were learnt from."""
        if not self.adapters:
            return self.rows
        learnt = [row_of(folder, task) for folder in self.adapters if not members_of(folder)]
        mixed = [row for folder in self.adapters for row in members_of(folder)]
        bases = [row.model_copy(update={"adapter": None}) for row in (*learnt, *mixed)]
        return (*self.rows, *learnt) if self.rows else _each_once((*bases, *mixed, *learnt))

    def _ensembles(self, task: Task) -> tuple[EnsembleSettings, ...]:
        """The ensembles that were asked for, or the task's own beside its own rows; then those of learnt mixes."""
        asked = self.ensembles or (() if self.rows or self.adapters else task.settings.ensembles)
        groups = [(folder, members_of(folder)) for folder in self.adapters]
        mixes = [EnsembleSettings(members=members, mix=str(folder)) for folder, members in groups if members]
        return (*asked, *mixes)

    def record(self) -> dict[str, Any]:
        """What run.json says of this call beside the task's settings: all of it decides, or says where to look."""
        return {
            "split": self.split if self.candidates is None else "candidate file",
            "call": {"candidates": None if self.candidates is None else str(self.candidates)} | asdict(self.numerics),
            **({} if self.control is None else {"control": self.control}),
        }


def from_here(metric: str) -> str:
    """A metric as a call names it: a path starts from the working directory."""
    return str(Path(metric).expanduser().resolve()) if tasks.is_path(metric) else metric


def _each_once(rows: Iterable[RowSettings]) -> tuple[RowSettings, ...]:
    """The rows, of those that ask and read the same with the same weights the first: a mix says in full what a row
    leaves to its defaults, and carries copies of its adapters."""
    from fewrec_prompt.tuning.adapters import weights_of

    found: dict[tuple[RowSettings, str | None], RowSettings] = {}
    for row in rows:
        weights = None if row.adapter is None else weights_of(Path(row.adapter))
        found.setdefault((filled(row).model_copy(update={"adapter": None}), weights), row)
    return tuple(found.values())


def members_of(folder: Path) -> tuple[RowSettings, ...]:
    """The rows that a mix was learnt over, with the adapters that it carries; none of an adapter of another kind."""
    from fewrec_prompt.tuning.adapters import described

    rows = [RowSettings(**row) for row in described(folder).get("members", ())]
    return tuple(row.model_copy(update={"adapter": str(folder / row.adapter)} if row.adapter else {}) for row in rows)


def row_of(folder: Path, task: str | None = None) -> RowSettings:
    """The row that an adapter was learnt with for the task, or for its first one, with the adapter."""
    from fewrec_prompt.tuning.adapters import learnt_with

    return RowSettings(**learnt_with(folder, task)[0], adapter=str(folder))


EARLY_SECONDS = 4.0
Load: TypeAlias = Callable[[Task, Numerics, Say], Backend]


def load_backend(task: Task, numerics: Numerics, say: Say = quiet) -> Backend:
    """The model of a task."""
    return choice.load(task.settings.model, numerics, say=say)


def evaluate(
    task: Task | str | Path,
    options: Options | Recommender = Options(),  # frozen
    *,
    out: Path | str | None = None,
    backend: Backend | None = None,
    load: Load = load_backend,
    cache: bool = True,
    say: Say = quiet,
    progress: Progress = silent,
    early: Say | None = None,
) -> Run:
    """Run a task and write its folder (`out`, else runs/<task>-<n>).

    An unfinished run with the same header in `out` goes on where it stopped. Without `out` so does one in runs/, and a
    finished one is returned as it is, for a run is what its header says. Everything that can be checked is checked
    before the model is loaded, and nothing is written before it is. `backend` replaces the model by one at hand, `load`
    is what loads it otherwise. A Recommender in place of options is the only prompt row, with its own model and the
    task's domain; for other changes give `options.applied(task)`. With `cache`, what a model from files answers is kept
    for other runs, and taken from what they kept. `early` is told first numbers while users are still scored. Raises
    FewrecError.
    """
    given = options if isinstance(options, Recommender) else None
    options = options if isinstance(options, Options) else Options(rows=(_row_of(options),))
    task = options.applied(task if isinstance(task, Task) else tasks.load_task(task))
    if out is not None:
        check_folder(Path(out))
    checked = check(task, options.split, options.candidates, control=options.control, given=given, say=say)
    backend = given.backend if given else backend or load(task, options.numerics, say)
    return conduct(checked, options, backend, out=out, cache=cache, say=say, progress=progress, early=early)


def conduct(
    checked: Checked,
    options: Options,
    backend: Backend,
    *,
    out: Path | str | None = None,
    cache: bool = True,
    say: Say = quiet,
    progress: Progress = silent,
    early: Say | None = None,
) -> Run:
    """Score, measure and write a checked task; see `evaluate`."""
    task, queries = checked.task, checked.queries
    rows = checked.rows(backend, force=options.force)
    ensembles = checked.ensembles(backend, force=options.force)
    asking = [*rows, *chain.from_iterable(one.members for one in ensembles)]
    jobs = scoring.plan(asking, queries.queries)
    header = records.header(task, asking, queries, backend) | options.record()
    header["adapters"] |= {one.name: dict(one.adapter) for one in ensembles if one.adapter}
    folder = own_folder(task.name, header) if out is None else Path(out)
    if out is None and (record := finished(folder)):
        say(f"{folder} holds this very run (same data, model, templates and settings); give --out to run it anew")
        return Run(folder, record)
    scored = baseline_rows(task, queries)  # before the model has worked for hours: one that cannot be had is an error
    with run_store(folder, header) as store:
        if early is not None:
            progress = Early(task, rows, queries, store, early, progress)
        n_damaged = score_all(jobs, queries, store, progress, say, cache=cache)
        scored += [scoring.read(row, queries.queries, store) for row in rows]
        scored += [one.read(queries.queries, store) for one in ensembles]
        return finish(task, rows, scored, queries, store, n_damaged)


def score_all(
    jobs: Sequence[Job], queries: QuerySet, store: RunStore, progress: Progress, say: Say, *, cache: bool
) -> int:
    """Have everything scored; how many rows of the cache were damaged."""
    if not cache:
        scoring.score(jobs, queries.queries, store, progress)
        return 0
    with score_cache(say) as kept:
        scoring.score(jobs, queries.queries, store, progress, kept)
        return kept.n_damaged


class Early:
    """A Progress that tells how each row does over the users answered so far: soon, and then ever more seldom."""

    def __init__(
        self, task: Task, rows: Sequence[Row], queries: QuerySet, store: RunStore, say: Say, progress: Progress
    ) -> None:
        self._rows, self._queries, self._store = rows, queries, store
        self._say, self._progress = say, progress
        self._metric = main_metric(task.metrics) or ""
        self._seed = task.settings.seed
        self._told = dict.fromkeys((row.name for row in rows), 0)  # users that the last number of a row was over
        self._begin, self._wait = time.monotonic(), EARLY_SECONDS

    def __call__(self, what: str, done: float, total: float) -> None:
        self._progress(what, done, total)
        if time.monotonic() - self._begin >= self._wait:
            self._wait *= 2
            for row in self._rows:
                self._tell(row)

    def _tell(self, row: Row) -> None:
        n, before = scoring.n_answered(row, self._queries.queries, self._store), self._told[row.name]
        if n == before:
            return
        self._told[row.name] = n
        part = replace(self._queries, queries=self._queries.queries[:n])
        values = measure(scoring.read(row, part.queries, self._store), part, (self._metric,)).get(self._metric)
        if values is not None:
            found = bootstrap_interval(values, self._seed)
            ends = span(self._metric, found.low, found.high)
            number = f"{self._metric} {figure(self._metric, found.value)} ({ends})"
            self._say(f"so far  {row.name}: {number}, {n} of {len(self._queries.queries)} users")


def _row_of(recommender: Recommender) -> RowSettings:
    """How a recommender at hand asks and reads. A verbalizer that is not its template's own has no name."""
    verbalizer, calibration = recommender.verbalizer, recommender.calibration
    own = recommender.template.front.verbalizer
    by_row = verbalizers.of_rows(verbalizer)
    by_name = verbalizers.load(own).model_dump(exclude=set(by_row))
    return RowSettings(
        prompt=recommender.template.name,
        verbalizer=own if by_name == verbalizer.model_dump(exclude=set(by_row)) else f"own {verbalizer.kind}",
        calibrate=calibration.name,
        alpha=calibration.alpha if calibration.name != "none" else None,
        **by_row,
    )


def baseline_rows(task: Task, queries: QuerySet) -> list[Scored]:
    """The rows of a task that ask no prompt."""
    names, seed = task.settings.baselines, task.settings.seed
    return list(scoring.baselines(names, queries.queries, queries.to_learn_from(), seed)) if names else []


def finish(
    task: Task, rows: Sequence[Row], scored: Sequence[Scored], queries: QuerySet, store: RunStore, n_damaged: int = 0
) -> Run:
    """Measure, and write what people read; run.json last.

    `rows` are those of `scored` that asked a model; so many rows of the score cache were damaged.
    """
    shelf = _shelf(queries)
    examples = records.examples(rows, scored, queries, task.settings.seed)
    measured = {row.name: metrics.measure_all(task.metrics, judged(row, queries), shelf) for row in scored}
    record = {
        **store.header,
        "rows": records.rows(scored, measured, task.settings.seed),
        "n_users": len(queries.queries),
        "units": {**store.n_units(), "damaged": n_damaged},
        "problems": dict(queries.problems),
    }
    answered = [query.user_id for query in queries.queries if query.user_id in queries.qrels]
    write_queries(store.folder / "candidates.parquet", queries)
    parquet_files.write(store.folder / "rankings.parquet", records.ranking_columns(scored))
    parquet_files.write(store.folder / "measurements.parquet", records.measurement_columns(scored, measured, answered))
    if any(one.of_run for one in measured.values()):
        parquet_files.write(store.folder / "groups.parquet", records.group_columns(measured))
    if columns := records.slice_columns(measured, queries, task.settings.seed):
        parquet_files.write(store.folder / "slices.parquet", columns)
    write_text(store.folder / "examples.json", dump(examples))
    report.write(store.folder / "report.html", [FinishedRun(store.folder, record)])
    store.finish(record)
    return Run(store.folder, record)


def measure(row: Scored, queries: QuerySet, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Each metric's value for each user who has an answer, in the order of the rankings; nothing if nobody has one."""
    users = judged(row, queries)
    return metrics.measure(names, users) if users else {}


def judged(row: Scored, queries: QuerySet) -> list[metrics.UserScores]:
    """The users who have an answer: scores in the order of the prompt, beside what was right."""
    pairs = zip(row.rankings, queries.queries, strict=True)
    return [_user(ranking, query, queries, row.kind) for ranking, query in pairs if query.user_id in queries.qrels]


def _user(ranking: Ranking, query: Query, queries: QuerySet, kind: Kind | None) -> metrics.UserScores:
    item_ids = tuple(item.id for item in query.candidates)
    score_of = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    scores = np.array([score_of[item_id] for item_id in item_ids])
    relevant = queries.qrels[query.user_id]
    return metrics.UserScores(
        query.user_id,
        scores,
        np.array([item_id in relevant for item_id in item_ids]),
        len(relevant),
        item_ids,
        tuple(seen.item.id for seen in query.history),
        metrics.probabilities(kind, scores),
    )


def _shelf(queries: QuerySet) -> metrics.Shelf:
    items = (item for query in queries.queries for item in query.candidates)
    return metrics.Shelf.of(queries.popularity, items, item_groups(queries))
