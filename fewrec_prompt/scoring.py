"""Ask a model everything that the rows of a table need, each question once, and read the answers as rankings.

Rows that ask the same questions share one log of answers, so a calibration weight or a length rule costs nothing more;
what the model answered to another run is taken from the score cache. Nothing here has seen an answer key: queries come
in, rankings go out. Measuring belongs to evaluation.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, Protocol

import numpy as np

from fewrec_prompt.backends import Backend, Identity
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.calibration import priors, twin
from fewrec_prompt.data.training import Training
from fewrec_prompt.metrics.beyond import order_correlation
from fewrec_prompt.recommender import Answers, Chosen, Ranker, Recommender, label_mass
from fewrec_prompt.rendering import Render
from fewrec_prompt.runs import RunStore, Source, Unit
from fewrec_prompt.score_cache import ScoreCache
from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
from fewrec_prompt.types import Domain, Kind, Query, Question, Ranking, TokenLogprobs
from fewrec_prompt.verbalizers import AnyVerbalizer, InGroups

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
    adapter: Mapping[str, Any] | None = None  # what a record says of its learnt weights

    @property
    def asks(self) -> str:
        """Identity of the questions this row asks: rows that share it share their answers."""
        template, verbalizer = self.recommender.template, self.recommender.verbalizer
        domain = self.recommender.domain
        weights = self.adapter["sha256"] if self.adapter else ""
        examples = self.recommender.demos.sha256 if self.recommender.demos else ""
        words = (domain.singular, domain.plural, domain.verb)
        key = "\0".join((template.ref.sha256, verbalizer.asks, *words, weights, examples))
        return sha256(key.encode()).hexdigest()[:16]

    @property
    def asks_twins(self) -> Mapping[str, str]:
        """Identity of the questions of each twin that this row needs, by what stands for the history in it."""
        return {neutral: f"{self.asks}/twin {neutral}".rstrip() for neutral in self.recommender.calibration.neutral}


@dataclass(frozen=True, slots=True)
class Scored:
    """What one row gave: a ranking per user, and what it cost and revealed on the way."""

    name: str
    rankings: tuple[Ranking, ...]
    settings: RowSettings | EnsembleSettings | None = None  # None: a baseline
    ms_per_user: float | None = None  # of all its questions, twins too, whoever else shares them
    notes: Mapping[str, float] | None = None
    kind: Kind | None = None  # of its verbalizer
    about: str | None = None  # of a baseline: what it is made with, where that was a choice


@dataclass(frozen=True, slots=True)
class Job:
    """One set of questions that rows share: the queries' own, or those of a twin. `cost` is in tokens a user."""

    name: str
    key: str
    recommender: Recommender
    neutral: str | None  # what stands for the history in the twin; None: these are the queries' own
    cost: float

    def run(self, queries: Sequence[Query], cache: ScoreCache | None = None) -> tuple[list[Unit], Source]:
        """What the model answers to these users, asked together, or answered before; the time is shared out evenly.

        The time is that of making the questions and of the model. An answer from the cache brings the model's time
        with it, so that a row costs the same whoever computed it.
        """
        start = time.perf_counter()
        asking = Asking(self.recommender.backend, cache)
        if self.neutral is not None:
            answers = [(logprobs, 0) for logprobs in self.recommender.ask_twins(queries, self.neutral, asking)]
        else:
            answers = self.recommender.ask_all(queries, asking)
        ms = (1000 * (time.perf_counter() - start) - asking.ms_waited + asking.ms) / len(queries)
        return [Unit(logprobs, n_history, ms) for logprobs, n_history in answers], asking.source


class Asking:
    """Answers a unit once: from the cache if it is kept there, else by the model, and then it is kept.

    Users who are asked in many rounds make one unit of each. `source` and times are those of all rounds together.
    """

    def __init__(self, backend: Backend, cache: ScoreCache | None) -> None:
        self._backend, self._cache = backend, cache
        self.source: Source = "cached"  # until the model has to answer something
        self.ms = self.ms_waited = 0.0  # of the model, now or when it was asked; spent on the model and the cache

    def __call__(self, questions: list[Question]) -> list[TokenLogprobs]:
        name = None if self._cache is None else self._backend.identity(questions)
        begin = time.perf_counter()
        if self._cache is None or name is None:
            answers, _ = self._scored(questions)
        elif kept := self._cache.get(name.key):
            self.ms += kept.ms
            answers = _grouped(kept.rows, name, questions)
        else:
            answers, ms = self._scored(questions)
            if self._backend.identity(questions) == name:  # it is not where memory ran out on the way: see engine.py
                flat = [row for rows in answers for row in rows]
                self._cache.put(name.key, [flat[at] for at in name.order], ms)
        self.ms_waited += 1000 * (time.perf_counter() - begin)
        return answers

    def _scored(self, questions: list[Question]) -> tuple[list[TokenLogprobs], float]:
        """What the model answers, and in how many milliseconds."""
        begin = time.perf_counter()
        answers = self._backend.logprobs(questions)
        ms = 1000 * (time.perf_counter() - begin)
        self.source, self.ms = "scored", self.ms + ms
        return answers, ms


def _grouped(rows: Sequence[np.ndarray], name: Identity, questions: Sequence[Question]) -> list[TokenLogprobs]:
    """Kept rows as answers: in the order of the questions, those of one question together."""
    placed = dict(zip(name.order, rows, strict=True))
    flat = iter([placed[at] for at in range(len(placed))])
    return [tuple(islice(flat, len(question.continuations))) for question in questions]


def rehearse(parts: Sequence[Chosen], domain: Domain, queries: Sequence[Query]) -> None:
    """Make every question once, for no model: what a template or verbalizer cannot do with this data shows now.

    Raises TemplateError or VerbalizerError, such as for a field that an item lacks or labels that are too few.
    """
    done: set[str] = set()
    for template, verbalizer, calibration in parts:
        render = Render(template, domain)
        for neutral in calibration.neutral:
            verbalizer.ask(twin(queries[0], neutral), render)
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
            jobs[row.asks] = _job(row, row.asks, queries)
        for neutral, key in row.asks_twins.items():
            if key not in jobs:
                jobs[key] = _job(row, key, queries, neutral)
    return list(jobs.values())


def _job(row: Row, key: str, queries: Sequence[Query], neutral: str | None = None, sample: int = 3) -> Job:
    asked = [query if neutral is None else twin(query, neutral) for query in queries[:sample]]
    cost = float(np.mean([row.recommender.work(query) for query in asked]))
    about = "" if neutral is None else f" with history {neutral!r}" if neutral else " without history"
    return Job(row.settings.prompt + about, key, row.recommender, neutral, cost)


def score(
    jobs: Sequence[Job],
    queries: Sequence[Query],
    store: RunStore,
    progress: Progress = silent,
    cache: ScoreCache | None = None,
) -> None:
    """Ask everything that is neither in the store yet nor in the cache.

    Who is asked together follows from the order of the queries alone, so an interrupted run asks the same again.
    """
    total, done = sum(job.cost for job in jobs) * len(queries), 0.0
    for job in jobs:
        size = job.recommender.backend.mode.users_per_unit
        for begin in range(0, len(queries), size):
            together = queries[begin : begin + size]
            _ask(job, together, store, cache)
            done += job.cost * len(together)
            progress(job.name, done, total)
    store.commit()


def _ask(job: Job, queries: Sequence[Query], store: RunStore, cache: ScoreCache | None) -> None:
    """Ask these users together, unless every one of them has answers already."""
    lacking = [store.get(job.key, query.user_id) is None for query in queries]
    if any(lacking):
        units, source = job.run(queries, cache)
        for query, unit, lacks in zip(queries, units, lacking, strict=True):
            if lacks:
                store.put(job.key, query.user_id, unit)
        store.settle(source)


class Log(Protocol):
    """Where answers are found again: a run store, or what was read of one."""

    def get(self, questions: str, user_id: str) -> Unit | None: ...


def read(row: Row, queries: Sequence[Query], store: Log) -> Scored:
    """Turn the logged answers of a row into rankings."""
    answers, ms = [], []
    for query in queries:
        said, cost = logged(row, query, store)
        answers.append(said)
        ms.append(cost)
    scores = _scores(row.recommender, answers)
    rankings = tuple(
        Ranking.from_scores(own.query, points.tolist(), own.n_history)
        for own, points in zip(answers, scores, strict=True)
    )
    notes = _notes(row.recommender.verbalizer, answers, scores)
    return Scored(row.name, rankings, row.settings, float(np.mean(ms)), notes, row.recommender.verbalizer.kind)


def _scores(recommender: Recommender, answers: Sequence[Answers]) -> list[np.ndarray]:
    """Scores of each user; a transductive calibration looks at all of them together."""
    calibration = recommender.calibration
    if not calibration.transductive:
        return [recommender.scores(own) for own in answers]
    raw = [recommender.raw_scores(own) for own in answers]
    expected = priors(calibration.name, raw, [own.query for own in answers])
    return [calibration.apply(own, prior) for own, prior in zip(raw, expected, strict=True)]


def _notes(verbalizer: AnyVerbalizer, answers: Sequence[Answers], scores: Sequence[np.ndarray]) -> dict[str, float]:
    """What else the answers reveal, as numbers over all users."""
    asked = [rows for own in answers for rows in own.asked]
    notes = {"history_items_cut": float(sum(len(own.query.history) - own.n_history for own in answers))}
    if verbalizer.has_labels and asked:
        notes["label_mass"] = float(np.mean([label_mass(rows) for rows in asked]))
    if isinstance(verbalizer, InGroups) and max(map(len, scores)) > 1:
        notes["position_bias"] = float(np.nanmean([order_correlation(points) for points in scores]))
    if verbalizer.many_rounds:
        notes["questions_per_user"] = len(asked) / len(answers)
    return notes


def logged(row: Row, query: Query, store: Log) -> tuple[Answers, float]:
    """What a row was answered about one query, and what that cost (milliseconds)."""
    asked = _saved(store, row.asks, query)
    twins = [_saved(store, key, query) for key in row.asks_twins.values()]
    said = tuple(rows for unit in twins for rows in unit.logprobs)
    return Answers(asked.logprobs, said, asked.n_history, query), asked.ms + sum(unit.ms for unit in twins)


def n_answered(row: Row, queries: Sequence[Query], store: RunStore) -> int:
    """How many of the queries, from the first on, have all the answers that this row reads."""
    keys = [row.asks, *row.asks_twins.values()]
    lacks = (any(store.get(key, query.user_id) is None for key in keys) for query in queries)
    return next((at for at, lacking in enumerate(lacks) if lacking), len(queries))


def _saved(store: Log, key: str, query: Query) -> Unit:
    unit = store.get(key, query.user_id)
    assert unit is not None, "every unit was scored before it is read"
    return unit


def baselines(names: Sequence[str], queries: Sequence[Query], training: Training, seed: int) -> Iterator[Scored]:
    """The rows that ask no prompt, in the order they are named, each trained on the training part."""
    for name in names:
        ranker: Ranker = BASELINES.load(name)(training, seed)
        yield Scored(name, tuple(map(ranker.rank, queries)), about=getattr(ranker, "about", None))
