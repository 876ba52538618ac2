"""What all cells of a study share: a task, a row, people, and answers that are asked once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewrec_prompt import tasks
from fewrec_prompt.assets import Say, counted
from fewrec_prompt.backends import Backend
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.cells import Cell, name_of
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.evaluation import judged
from fewrec_prompt.few_shot import recommender_of
from fewrec_prompt.metrics import measure
from fewrec_prompt.recommender import Ranker, Recommender
from fewrec_prompt.score_cache import ScoreCache
from fewrec_prompt.scoring import Asking, Scored
from fewrec_prompt.shots import Pool, Shots, learnable, shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning.losses import LossName
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Query, Question, Ranking, TokenLogprobs


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
    def kept(self) -> Kept:
        """The model before anything is learnt, its answers kept."""
        return Kept(self.backend, self.cache)

    @cached_property
    def start(self) -> Recommender:
        """The row before anything is learnt."""
        return replace(recommender_of(self.task, self.row, self.backend), backend=self.kept)  # type: ignore[arg-type]  # all of a Backend

    @cached_property
    def people(self) -> Callable[..., Shots]:
        """`shots_of` this task; the same people are drawn, and told of, once."""

        def drawn(n: int, seed: int, *, held_out: float = 0.0, loss: LossName | None = None) -> Shots:
            return shots_of(self.task, n, seed, held_out=held_out, pool=self.pool(loss), say=self.say)

        return cache(drawn)

    @cached_property
    def pool(self) -> Callable[[LossName | None], Pool]:
        """Whom this task may be learnt from, read once."""
        return cache(lambda loss: learnable(self.task, loss, self.say))

    @cached_property
    def baseline(self) -> Callable[[str], Ranker]:
        """A baseline by its name, made once. Raises FewrecError where the data do not say what it goes by."""
        return cache(lambda name: BASELINES.load(name)(self.test.to_learn_from(), self.task.settings.seed))

    def shots_of(self, method: str, shots: int, seed: int) -> Shots:
        """The people that a method with passes learns from, and those it holds out."""
        settings = self.settings_of(method, seed)
        return self.people(shots, seed, held_out=settings.held_out, loss=settings.loss)

    def settings_of(self, method: str, seed: int) -> Settings:
        """How a method learns: of the settings that all share, those that it reads."""
        return Settings.shared(method, {**self.settings, "seed": seed})

    def cell(
        self,
        method: str,
        shots: int,
        seed: int,
        rank: Callable[[Query], Ranking],
        asked: Kept | None = None,
        **about: Any,
    ) -> Cell:
        """Rank all test users and measure; `about` is what else the cell says.

        The model is `asked`, or that before anything is learnt. An answer that was kept counts with the time that the
        model took for it, so that a cell costs the same whoever asked first.
        """
        asked = asked or self.kept
        begin, spared = time.perf_counter(), asked.ms_spared
        queries = counted(self.test.queries, name_of(method, shots, seed), self.say)
        scored = Scored(method, tuple(map(rank, queries)), kind=self.start.verbalizer.kind)
        ms = 1000 * (time.perf_counter() - begin) + asked.ms_spared - spared
        users = judged(scored, self.test)
        about = {"n_weights": 0, "train_seconds": 0.0} | about
        return Cell(
            method,
            shots,
            seed,
            tuple(user.user_id for user in users),
            {name: tuple(values.tolist()) for name, values in measure(self.metrics, users).items()},
            ms_per_user=round(ms / len(self.test.queries), 2),
            scores=tuple(tuple(user.scores.tolist()) for user in users),
            relevant=tuple(tuple(np.flatnonzero(user.relevant).tolist()) for user in users),
            **about,
        )


class Kept:
    """A backend that answers from the score cache what it was asked before."""

    def __init__(self, backend: Backend, cache: ScoreCache) -> None:
        self.backend, self._asking = backend, Asking(backend, cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def logprobs(self, questions: Sequence[Question]) -> list[TokenLogprobs]:
        return self._asking(list(questions))

    @property
    def ms_spared(self) -> float:
        """Milliseconds that the model took for all answers so far, now or earlier, less those that were waited now."""
        return self._asking.ms - self._asking.ms_waited
