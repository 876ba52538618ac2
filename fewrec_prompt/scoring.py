"""Ask a model everything that the rows of a table need, each question once, and read the answers as rankings.

Rows that ask the same questions share one log of answers, so a calibration weight or a length rule costs nothing more.
Nothing here has seen an answer key: queries come in, rankings go out. Measuring belongs to evaluation.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np

from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.calibration import twin
from fewrec_prompt.data.training import Training
from fewrec_prompt.recommender import Answers, Chosen, Ranker, Recommender, Render, label_mass
from fewrec_prompt.runs import RunStore, Unit
from fewrec_prompt.tasks import RowSettings
from fewrec_prompt.types import Domain, Kind, Query, Ranking

Progress = Callable[[str, float, float], None]
"""Called after each unit with what is being scored, the work done and the work in all (in tokens)."""


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
        words = verbalizer.model_dump_json(exclude={"description", "alpha", "length"})  # these only read
        domain = self.recommender.domain
        key = "\0".join((template.ref.sha256, words, domain.singular, domain.plural, domain.verb))
        return sha256(key.encode()).hexdigest()[:16]

    @property
    def asks_twins(self) -> str | None:
        """Identity of the questions without history, if this row needs them."""
        return self.asks + "/twin" if self.recommender.calibration.needs_twin else None


@dataclass(frozen=True, slots=True)
class Scored:
    """What one row gave: a ranking per user, and what it cost and revealed on the way."""

    name: str
    rankings: tuple[Ranking, ...]
    settings: RowSettings | None = None  # None: a baseline
    ms_per_user: float | None = None  # of all its questions, twins too, whoever else shares them
    notes: Mapping[str, float] | None = None
    kind: Kind | None = None  # of its verbalizer
    about: str | None = None  # of a baseline: what it is made with, where that was a choice


@dataclass(frozen=True, slots=True)
class Job:
    """One set of questions that rows share: the queries' own, or their twins. `cost` is in tokens a user."""

    name: str
    key: str
    recommender: Recommender
    twins: bool
    cost: float

    def run(self, queries: Sequence[Query]) -> list[Unit]:
        """What the model answers to these users, asked together; the time is shared out evenly."""
        start = time.perf_counter()
        if self.twins:
            answers = [(logprobs, 0) for logprobs in self.recommender.ask_twins(queries)]
        else:
            answers = self.recommender.ask_all(queries)
        ms = 1000 * (time.perf_counter() - start) / len(queries)
        return [Unit(logprobs, n_history, ms) for logprobs, n_history in answers]


def rehearse(parts: Sequence[Chosen], domain: Domain, queries: Sequence[Query]) -> None:
    """Make every question once, for no model: what a template or verbalizer cannot do with this data shows now.

    Raises TemplateError or VerbalizerError, such as for a field that an item lacks or labels that are too few.
    """
    done: set[str] = set()
    for template, verbalizer, calibration in parts:
        render = Render(template, domain)
        if calibration.needs_twin:
            verbalizer.ask(twin(queries[0]), render)
        key = template.ref.sha256 + verbalizer.model_dump_json()
        if key not in done:
            done.add(key)
            for query in queries:
                verbalizer.ask(query, render)


def plan(rows: Sequence[Row], queries: Sequence[Query]) -> list[Job]:
    """The jobs of these rows, each once, with the work they make, as the first few users show it."""
    jobs: dict[str, Job] = {}
    for row in rows:
        if row.asks not in jobs:
            jobs[row.asks] = _job(row, row.asks, queries, twins=False)
        if row.asks_twins and row.asks_twins not in jobs:
            jobs[row.asks_twins] = _job(row, row.asks_twins, queries, twins=True)
    return list(jobs.values())


def _job(row: Row, key: str, queries: Sequence[Query], *, twins: bool, sample: int = 3) -> Job:
    asked = [twin(query) if twins else query for query in queries[:sample]]
    cost = float(np.mean([row.recommender.work(query) for query in asked]))
    name = f"{row.settings.prompt} without history" if twins else row.settings.prompt
    return Job(name, key, row.recommender, twins, cost)


def score(jobs: Sequence[Job], queries: Sequence[Query], store: RunStore, progress: Progress = silent) -> None:
    """Ask everything that is not in the store yet.

    Who is asked together follows from the order of the queries alone, so an interrupted run asks the same again.
    """
    total, done = sum(job.cost for job in jobs) * len(queries), 0.0
    for job in jobs:
        size = job.recommender.backend.mode.users_per_unit
        for begin in range(0, len(queries), size):
            together = queries[begin : begin + size]
            _ask(job, together, store)
            done += job.cost * len(together)
            progress(job.name, done, total)
    store.commit()


def _ask(job: Job, queries: Sequence[Query], store: RunStore) -> None:
    """Ask these users together, unless every one of them has answers already."""
    lacking = [store.get(job.key, query.user_id) is None for query in queries]
    if any(lacking):
        for query, unit, lacks in zip(queries, job.run(queries), lacking, strict=True):
            if lacks:
                store.put(job.key, query.user_id, unit)


class Log(Protocol):
    """Where answers are found again: a run store, or what was read of one."""

    def get(self, questions: str, user_id: str) -> Unit | None: ...


def read(row: Row, queries: Sequence[Query], store: Log) -> Scored:
    """Turn the logged answers of a row into rankings."""
    rankings, ms, cut = [], [], 0
    masses: list[float] = []
    for query in queries:
        asked = _saved(store, row.asks, query)
        twins = _saved(store, row.asks_twins, query) if row.asks_twins else None
        answers = Answers(asked.logprobs, twins.logprobs if twins else (), asked.n_history)
        rankings.append(Ranking.from_scores(query, row.recommender.scores(answers).tolist(), asked.n_history))
        ms.append(asked.ms + (twins.ms if twins else 0.0))
        masses.extend(label_mass(rows) for rows in asked.logprobs)
        cut += len(query.history) - asked.n_history
    notes = {"history_items_cut": float(cut)}
    if row.recommender.verbalizer.kind != "complete":
        notes["label_mass"] = float(np.mean(masses))
    kind = row.recommender.verbalizer.kind
    return Scored(row.name, tuple(rankings), row.settings, float(np.mean(ms)), notes, kind)


def _saved(store: Log, key: str, query: Query) -> Unit:
    unit = store.get(key, query.user_id)
    assert unit is not None, "every unit was scored before it is read"
    return unit


def baselines(names: Sequence[str], queries: Sequence[Query], training: Training, seed: int) -> Iterator[Scored]:
    """The rows that ask no prompt, in the order they are named, each trained on the training part."""
    for name in names:
        ranker: Ranker = BASELINES.load(name)(training, seed)
        yield Scored(name, tuple(map(ranker.rank, queries)), about=getattr(ranker, "about", None))
