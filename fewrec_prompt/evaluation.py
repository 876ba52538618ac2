"""Score every row of a task for every user, then measure: the one place where rankings and answers meet.

Rows that ask the same questions share one log of answers, so a calibration weight or a length rule costs nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewrec_prompt import metrics, report, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import BACKENDS, Backend
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.query_files import write_queries
from fewrec_prompt.data.splits import Split
from fewrec_prompt.errors import TaskError
from fewrec_prompt.files import replaced
from fewrec_prompt.recommender import Answers, Chosen, Recommender, choose, label_mass
from fewrec_prompt.runs import RunStore, Unit, check_folder, new_folder
from fewrec_prompt.significance import Interval, bootstrap_interval
from fewrec_prompt.tasks import RowSettings, Task
from fewrec_prompt.templates import Template
from fewrec_prompt.types import Query, Ranking

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, float, float], None]
"""Called after each unit with what is being scored, the work done and the work in all (in tokens)."""
LIBRARIES = ("fewrec-prompt", "torch", "transformers", "tokenizers", "bitsandbytes", "jinja2", "numpy", "evaluate")


def silent(_what: str, _done: float, _total: float) -> None:
    """A Progress that says nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt row of the table: its name and how it asks and reads."""

    name: str
    settings: RowSettings
    recommender: Recommender

    @property
    def asks(self) -> str:
        """Identity of the questions this row asks: rows that share it share their answers."""
        template, verbalizer = self.recommender.template, self.recommender.verbalizer
        reading = {"description", "alpha", "length"}
        words = verbalizer.model_dump_json(exclude=reading)
        domain = self.recommender.domain
        key = "\0".join((template.ref.sha256, words, domain.singular, domain.plural, domain.verb))
        return sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Scored:
    """What one row gave: a ranking per user, and what it cost and revealed on the way."""

    name: str
    rankings: tuple[Ranking, ...]
    settings: RowSettings | None = None
    ms_per_user: float | None = None
    notes: Mapping[str, float] | None = None


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
    metrics: tuple[str, ...] | None = None
    model: str | None = None
    users: int | None = None
    seed: int | None = None
    split: Split = "test"
    candidates: Path | None = None  # a candidate file of an earlier run
    precision: str = "auto"
    device: str | None = None

    def applied(self, task: Task) -> Task:
        """The task with these changes."""
        changes = {"rows": self.rows, "metrics": self.metrics, "model": self.model, "seed": self.seed}
        settings = task.settings.model_copy(update={key: value for key, value in changes.items() if value is not None})
        if self.users is not None:
            settings = settings.model_copy(update={"data": settings.data.model_copy(update={"users": self.users})})
        return replace(task, settings=settings)


def evaluate(
    task: Task | str | Path,
    options: Options = Options(),  # frozen
    *,
    out: Path | None = None,
    backend: Backend | None = None,
    say: Say = quiet,
    progress: Progress = silent,
) -> Run:
    """Run a task and write its folder (`out`, else the next free runs/<task>-<n>).

    An unfinished run of the same task in `out` goes on where it stopped. Everything that can be checked is checked
    before the model is loaded, and nothing is written before it is. `backend` replaces the model by one at hand.
    Raises FewrecError.
    """
    task = options.applied(task if isinstance(task, Task) else tasks.load_task(task))
    folder = new_folder(task.name) if out is None else out
    check_folder(folder)
    metrics.check_metrics(task.settings.metrics)
    parts = [choose(row.prompt, row.verbalizer, row.calibrate, row.alpha, row.length) for row in task.settings.rows]
    task = _resolved(task, parts)
    queries = tasks.load_queries(task, options.split, options.candidates, say)
    if backend is None:
        load = BACKENDS.load("causal")
        backend = load(task.settings.model, precision=options.precision, device=options.device, say=say)
    say(f"precision {backend.mode.precision} on {backend.mode.device} ({backend.mode.reason})")
    rows = [
        Row(_name(settings, template), settings, Recommender(template, reader, backend, task.domain, calibration))
        for settings, (template, reader, calibration) in zip(task.settings.rows, parts, strict=True)
    ]
    _check_names(rows)
    with RunStore(folder, _header(task, options, rows, queries, backend)) as store:
        _score(rows, queries.queries, store, progress)
        scored = [*_baselines(queries), *(_read(row, queries.queries, store) for row in rows)]
        return _finish(task, scored, queries, store)


def _resolved(task: Task, parts: Sequence[Chosen]) -> Task:
    """The task with every row's defaults filled in, so that the record says what was done."""
    rows = tuple(
        row.model_copy(
            update={
                "verbalizer": row.verbalizer or template.front.verbalizer,
                "alpha": calibration.alpha if calibration.needs_twin else None,
                "length": getattr(reader, "length", None),
            }
        )
        for row, (template, reader, calibration) in zip(task.settings.rows, parts, strict=True)
    )
    return replace(task, settings=task.settings.model_copy(update={"rows": rows}))


def _name(row: RowSettings, template: Template) -> str:
    """What the table calls a row: its prompt, and whatever is not that prompt's default."""
    verbalizer = row.verbalizer if row.verbalizer != template.front.verbalizer else None
    length = row.length if row.length != "sum" else None
    calibration = f"pmi {row.alpha:g}" if row.calibrate == "pmi" else None
    return " ".join(part for part in (row.prompt, verbalizer, length, calibration) if part)


def _check_names(rows: Sequence[Row]) -> None:
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1 or name in BASELINES:
            raise TaskError(
                f"two rows are called {name!r}; rows must differ in prompt, verbalizer, length or calibration"
            )


def _score(rows: Sequence[Row], queries: Sequence[Query], store: RunStore, progress: Progress) -> None:
    """Ask everything that is not in the store yet, one user's questions a unit."""
    jobs = _jobs(rows)
    costs = {job.key: job.cost(queries) for job in jobs}
    total, done = sum(costs.values()) * len(queries), 0.0
    for job in jobs:
        for query in queries:
            if store.get(job.key, query.user_id) is None:
                store.put(job.key, query.user_id, job.run(query))
            done += costs[job.key]
            progress(job.name, done, total)
    store.commit()


@dataclass(frozen=True, slots=True)
class _Job:
    """One set of questions that rows share: the queries' own, or their twins."""

    name: str
    key: str
    recommender: Recommender
    twins: bool

    def run(self, query: Query) -> Unit:
        start = time.perf_counter()
        if self.twins:
            logprobs, n_history = self.recommender.ask_twin(query), 0
        else:
            logprobs, n_history = self.recommender.ask(query)
        return Unit(logprobs, n_history, 1000 * (time.perf_counter() - start))

    def cost(self, queries: Sequence[Query], sample: int = 3) -> float:
        """Expected work per user, in tokens computed, from the first few users: for the progress bar only."""
        some = queries[:sample]
        asked = (query.recent(0) if self.twins else query for query in some)
        return float(np.mean([self.recommender.work(query) for query in asked]))


def _jobs(rows: Sequence[Row]) -> list[_Job]:
    jobs: dict[str, _Job] = {}
    for row in rows:
        jobs.setdefault(row.asks, _Job(row.settings.prompt, row.asks, row.recommender, twins=False))
        if row.recommender.calibration.needs_twin:
            key = row.asks + "/twin"
            jobs.setdefault(key, _Job(f"{row.settings.prompt} without history", key, row.recommender, twins=True))
    return list(jobs.values())


def _baselines(queries: QuerySet) -> Iterable[Scored]:
    for name in BASELINES:
        ranker = BASELINES.load(name)(queries.popularity)
        yield Scored(name, tuple(ranker.rank(query) for query in queries.queries))


def _read(row: Row, queries: Sequence[Query], store: RunStore) -> Scored:
    """Turn the logged answers of a row into rankings."""
    rankings, cost, cut = [], [], 0
    mass: list[float] = []
    for query in queries:
        asked = _saved(store, row.asks, query)
        twins = _saved(store, row.asks + "/twin", query) if row.recommender.calibration.needs_twin else None
        answers = Answers(asked.logprobs, twins.logprobs if twins else (), asked.n_history)
        rankings.append(Ranking.from_scores(query, row.recommender.scores(answers).tolist(), asked.n_history))
        cost.append(asked.ms + (twins.ms if twins else 0.0))
        mass.extend(label_mass(rows) for rows in asked.logprobs)
        cut += len(query.history) - asked.n_history
    notes = {"history_items_cut": float(cut)}
    if row.recommender.verbalizer.kind != "complete":
        notes["label_mass"] = float(np.mean(mass))
    return Scored(row.name, tuple(rankings), row.settings, float(np.mean(cost)), notes)


def _saved(store: RunStore, key: str, query: Query) -> Unit:
    unit = store.get(key, query.user_id)
    assert unit is not None, "every unit was scored before it is read"
    return unit


def _finish(task: Task, scored: Sequence[Scored], queries: QuerySet, store: RunStore) -> Run:
    """Measure, and write what people read; run.json last."""
    values = {row.name: _measure(row, queries, task.settings.metrics) for row in scored}
    record = {
        "rows": [_record(row, values[row.name], task.settings.seed) for row in scored],
        "n_users": len(queries.queries),
        "problems": dict(queries.problems),
    }
    write_queries(store.folder / "candidates.parquet", queries)
    _write_parquet(store.folder / "rankings.parquet", _ranking_columns(scored))
    _write_parquet(store.folder / "measurements.parquet", _measurement_columns(scored, values))
    report.write(store.folder / "report.html", task, record)
    store.finish(record)
    return Run(store.folder, record)


def _measure(row: Scored, queries: QuerySet, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Each metric's value for each user who has an answer."""
    users = [
        metrics.UserScores(
            ranking.user_id,
            np.array(ranking.scores),
            np.array([item_id in queries.qrels[ranking.user_id] for item_id in ranking.item_ids]),
            len(queries.qrels[ranking.user_id]),
        )
        for ranking in row.rankings
        if ranking.user_id in queries.qrels
    ]
    return metrics.measure(names, users) if users else {}


def _record(row: Scored, values: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """A row as run.json holds it: fractions, not per cent."""
    settings = row.settings
    intervals = {name: bootstrap_interval(column, seed) for name, column in values.items()}
    return {
        "name": row.name,
        "prompt": settings.prompt if settings else None,
        "verbalizer": settings.verbalizer if settings else None,
        "calibration": settings.calibrate if settings else None,
        "alpha": settings.alpha if settings else None,
        "length": settings.length if settings else None,
        "n_users": len(row.rankings),
        "ms_per_user": row.ms_per_user,
        "metrics": {name: _interval(interval) for name, interval in intervals.items()},
        "notes": dict(row.notes or {}),
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    """JSON has no NaN: a metric that no user has a value for is null."""
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if np.isnan(number) else number for name, number in numbers.items()}


def _header(task: Task, options: Options, rows: Sequence[Row], queries: QuerySet, backend: Backend) -> dict[str, Any]:
    """Everything that decides the result; resuming compares it field by field."""
    files = backend.files
    return {
        "schema": 1,
        "task": task.name,
        "settings": task.settings.model_dump(mode="json"),
        "split": options.split,
        "data": dict(queries.sources),
        "queries": _queries_digest(queries),
        "model": {"name": files.name, "sha256": files.sha256} if files else {"name": type(backend).__name__},
        "numerics": backend.mode.to_dict(),
        "templates": {row.settings.prompt: _template_record(row) for row in rows},
        "verbalizers": {
            str(row.settings.verbalizer): row.recommender.verbalizer.model_dump(mode="json") for row in rows
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _template_record(row: Row) -> dict[str, str]:
    template = row.recommender.template
    return {"origin": template.ref.origin, "sha256": template.ref.sha256, "text": template.text}


def _queries_digest(queries: QuerySet) -> str:
    """sha256 over every history, candidate list and answer, in order."""
    whole = sha256()
    for query in queries.queries:
        parts = [
            query.user_id,
            *(seen.item.id for seen in query.history),
            "\1",
            *(item.id for item in query.candidates),
        ]
        parts += ["\1", *sorted(queries.qrels.get(query.user_id, ()))]
        whole.update("\0".join(parts).encode("utf-8", "surrogatepass") + b"\2")
    return whole.hexdigest()


def _ranking_columns(scored: Sequence[Scored]) -> dict[str, list[Any]]:
    places = [
        (row.name, ranking.user_id, item_id, score, rank)
        for row in scored
        for ranking in row.rankings
        for rank, (item_id, score) in enumerate(zip(ranking.item_ids, ranking.scores, strict=True), 1)
    ]
    return _columns(("row", "user_id", "item_id", "score", "rank"), places)


def _measurement_columns(
    scored: Sequence[Scored], values: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, list[Any]]:
    places = [
        (row.name, ranking.user_id, metric, float(value))
        for row in scored
        for metric, column in values[row.name].items()
        for ranking, value in zip(row.rankings, column, strict=True)
    ]
    return _columns(("row", "user_id", "metric", "value"), places)


def _columns(names: Sequence[str], places: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [place[at] for place in places] for at, name in enumerate(names)}


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replaced(path) as part:
        pq.write_table(pa.table(dict(columns)), part, write_page_checksum=True)
