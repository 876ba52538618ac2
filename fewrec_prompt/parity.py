"""What a number format costs and what it moves: the same users under several precisions, the first one the reference.

Each precision is scored in a process of its own, so that its peak memory is its own. That process gets queries only;
answers are met in evaluation.py, as ever.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from fewrec_prompt import scoring, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import choice
from fewrec_prompt.backends.memory import peak_memory
from fewrec_prompt.backends.models import locate
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Split
from fewrec_prompt.errors import FewrecError, ModelError
from fewrec_prompt.evaluation import measure
from fewrec_prompt.recommender import Chosen, Recommender, choose
from fewrec_prompt.records import versions
from fewrec_prompt.runs import run_store
from fewrec_prompt.scoring import Progress, Row, Scored, silent
from fewrec_prompt.significance import Interval, paired_interval
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.types import Domain, Query, Ranking, TokenLogprobs

METRIC = "nDCG@10"


@dataclass(frozen=True, slots=True)
class Work:
    """What every precision is given: a model by name, how a row asks and reads, and for whom."""

    model: str
    row: RowSettings
    domain: Domain
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one precision made of the work. `asked`: the log-probabilities of each user's questions, without twins."""

    numerics: Mapping[str, Any]
    scored: Scored
    asked: tuple[tuple[TokenLogprobs, ...], ...]
    ms_per_user: float  # the median: the first user warms up
    peak_bytes: int


Outcome: TypeAlias = Trial | str
"""A trial, or why there is none."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a trial is from the reference. `max_dlogp` is in nats, of a single token; shares are of users."""

    max_dlogp: float
    top1: float
    top10: float  # whose first ten are another set
    ndcg: Interval | None  # trial − reference, paired over users; None without answers


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report. `problem` says why a precision could not be had; `moved` is None without a reference."""

    name: str
    problem: str | None = None
    trial: Trial | None = None
    ndcg: float | None = None
    moved: Moved | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: nats, fractions, milliseconds, bytes; null where there is nothing to say."""
        trial, moved = self.trial, self.moved
        delta = moved.ndcg if moved else None
        return {
            "precision": self.name,
            "problem": self.problem,
            "numerics": dict(trial.numerics) if trial else None,
            "max_abs_dlogp": moved.max_dlogp if moved else None,
            "top1_changed": moved.top1 if moved else None,
            "top10_changed": moved.top10 if moved else None,
            METRIC: self.ndcg,
            f"delta {METRIC}": {"value": delta.value, "low": delta.low, "high": delta.high} if delta else None,
            "ms_per_user": trial.ms_per_user if trial else None,
            "peak_memory_bytes": trial.peak_bytes if trial else None,
        }


def prepare(
    task: Task, row: RowSettings, split: Split, n_users: int, model: str | None = None, say: Say = quiet
) -> tuple[Work, QuerySet]:
    """The work of a row of a task for the first users of a split, and their answers, which no precision gets to see.

    What can be wrong with template, data or the model's files shows here. Raises FewrecError.
    """
    name = model or task.settings.model
    found = tasks.load_queries(task, split, say=say)
    queries = found.queries[:n_users]
    scoring.rehearse([_chosen(row)], task.domain, queries)
    locate(name, say)
    return Work(name, row, task.domain, queries), replace(found, queries=queries)


def _chosen(row: RowSettings) -> Chosen:
    return choose(row.prompt, row.verbalizer, row.calibrate, row.alpha, row.length)


def requests(names: Sequence[str], asked: Numerics) -> dict[str, Numerics]:
    """What to ask of the machine for each name: a precision, or int8 with its threshold as in `int8:6`.

    Everything else is as asked; a threshold asked for goes to int8 alone. Raises ModelError for a wrong name.
    """
    return {name: _request(name, asked) for name in names}


def _request(name: str, asked: Numerics) -> Numerics:
    precision, colon, text = name.partition(":")
    threshold = asked.int8_threshold if precision == "int8" else None
    try:
        threshold = float(text) if colon else threshold
    except ValueError:
        raise ModelError(f"precision {name!r}: {text!r} is no threshold; write int8:6, for one") from None
    return replace(asked, precision=precision, int8_threshold=threshold)


def compare(
    work: Work,
    asked: Mapping[str, Numerics],
    answers: QuerySet,
    *,
    seed: int = 0,
    say: Say = quiet,
    progress: Progress = silent,
) -> list[Line]:
    """A line for each precision, the first the reference. One that cannot be had gets a line that says why."""
    outcomes: dict[str, Outcome] = {}
    for name, numerics in asked.items():
        shown = _part(progress, name, len(outcomes), len(asked))
        outcomes[name] = _in_own_process(work, numerics, say, shown)
    return report(outcomes, answers, seed)


def report(outcomes: Mapping[str, Outcome], answers: QuerySet, seed: int) -> list[Line]:
    """The lines of these outcomes, the first of them the reference."""
    first = next(iter(outcomes.values()))
    lines = []
    for name, outcome in outcomes.items():
        if isinstance(outcome, str):
            lines.append(Line(name, problem=outcome))
            continue
        values = _ndcg(outcome, answers)
        moved = None if outcome is first or isinstance(first, str) else movement(outcome, first, answers, seed)
        lines.append(Line(name, trial=outcome, ndcg=None if values is None else float(values.mean()), moved=moved))
    return lines


def movement(trial: Trial, reference: Trial, answers: QuerySet, seed: int) -> Moved:
    """How far a trial of the same work lies from the reference."""
    mine, theirs = _ndcg(trial, answers), _ndcg(reference, answers)
    rankings = trial.scored.rankings, reference.scored.rankings
    return Moved(
        max_dlogp=largest_change(trial.asked, reference.asked),
        top1=share_changed(*rankings, k=1),
        top10=share_changed(*rankings, k=10),
        ndcg=None if mine is None or theirs is None else paired_interval(mine, theirs, seed),
    )


def largest_change(a: Sequence[Sequence[TokenLogprobs]], b: Sequence[Sequence[TokenLogprobs]]) -> float:
    """Largest |log p − log p'| of a token, in nats, over users, questions and continuations in the same order."""
    pairs = zip(_tokens(a), _tokens(b), strict=True)
    return max(float(np.abs(mine - other).max()) for mine, other in pairs)


def _tokens(users: Sequence[Sequence[TokenLogprobs]]) -> Iterator[np.ndarray]:
    return (row for questions in users for rows in questions for row in rows)


def share_changed(a: Sequence[Ranking], b: Sequence[Ranking], k: int) -> float:
    """Share of users whose first k items are not the same set in both; rankings of the same users, in order."""
    changed = [set(mine.item_ids[:k]) != set(other.item_ids[:k]) for mine, other in zip(a, b, strict=True)]
    return float(np.mean(changed))


def _ndcg(trial: Trial, answers: QuerySet) -> np.ndarray | None:
    return measure(trial.scored, answers, (METRIC,)).get(METRIC)


def record(task: str, split: Split, work: Work, lines: Sequence[Line]) -> dict[str, Any]:
    """The report as plain data: the first line is the reference of the others."""
    return {
        "task": task,
        "split": split,
        "n_users": len(work.queries),
        "model": work.model,
        "row": work.row.model_dump(mode="json"),
        "versions": versions(),
        "lines": [line.to_dict() for line in lines],
    }


# --- scoring, in a process of its own ----------------------------------------------------------------------------


def run(work: Work, numerics: Numerics, say: Say = quiet, progress: Progress = silent) -> Trial:
    """Score the work under one precision, in this process. Raises ModelError if it cannot be had."""
    template, verbalizer, calibration = _chosen(work.row)
    backend = choice.load(work.model, numerics, say=say)
    recommender = Recommender(template, verbalizer, backend, work.domain, calibration)
    row = Row(work.row.prompt, work.row, recommender)
    with TemporaryDirectory() as folder, run_store(Path(folder) / "run", {}) as store:
        scoring.score(scoring.plan([row], work.queries), work.queries, store, progress)
        keys = [row.asks, *row.asks_twins.values()]
        units = [[store.get(key, query.user_id) for key in keys] for query in work.queries]
        scored = scoring.read(row, work.queries, store)
    ms = [sum(unit.ms for unit in user if unit) for user in units]
    asked = tuple(user[0].logprobs for user in units if user[0])
    return Trial(backend.mode.to_dict(), scored, asked, float(np.median(ms)), peak_memory(backend.mode.device))


def _in_own_process(work: Work, numerics: Numerics, say: Say, progress: Progress) -> Outcome:
    """`run` in a fresh process: nothing of it is left afterwards, whatever ends it or this one."""
    with _child(work, numerics) as (pipe, ended):
        while True:
            try:
                what, message = pipe.recv()
            except EOFError:
                return f"its process ended with code {ended()}; -9 is most often a lack of memory"
            if what == "end":
                return message  # type: ignore[no-any-return]  # an Outcome: _work sends it
            (say if what == "say" else progress)(*message)


@contextmanager
def _child(work: Work, numerics: Numerics) -> Iterator[tuple[Connection[Any, Any], Callable[[], int | None]]]:
    context = get_context("spawn")  # a fork would begin with this process's memory
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, work, numerics), daemon=True)
    process.start()
    there.close()

    def ended() -> int | None:
        process.join()
        return process.exitcode

    try:
        yield here, ended
    finally:
        process.terminate()
        process.join()
        here.close()


def _work(pipe: Connection[Any, Any], work: Work, numerics: Numerics) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that a person sees; it ends this one
    try:
        outcome: Outcome = run(
            work,
            numerics,
            lambda line: pipe.send(("say", (line,))),
            lambda *step: pipe.send(("progress", step)),
        )
    except FewrecError as error:
        outcome = str(error)
    pipe.send(("end", outcome))


def _part(progress: Progress, name: str, before: int, n_parts: int) -> Progress:
    """Progress of one part of n equal ones."""
    return lambda what, done, total: progress(f"{name}, {what}", before + done / total, n_parts)
