"""A task: whose data, which candidates, which rows and metrics. Read from eval/*.toml, turned into queries.

Names, paths and defaults only; scoring and measuring belong to evaluation.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from fewrec_prompt import artifacts, assets
from fewrec_prompt.artifacts import Settings
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.calibration import CalibrationName
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.catalogue import read_catalogue
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.query_files import own_queries, read_queries
from fewrec_prompt.data.splits import Split, leave_one_out, popularity
from fewrec_prompt.data.training import all_but_last
from fewrec_prompt.errors import ArtifactError, TaskError, did_you_mean
from fewrec_prompt.types import Domain, Item
from fewrec_prompt.verbalizers import Length

DEFAULT_USERS, DEFAULT_HISTORY, DEFAULT_CANDIDATES = 200, 10, 20
BASELINES = ("random", "popularity")
METRICS = ("nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "HR@10", "MRR")
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class DomainSettings(Settings):
    """Words that templates use for what is recommended."""

    singular: str = Domain().singular
    plural: str = Domain().plural
    verb: str = Domain().verb


class DataSettings(Settings):
    """Either a data set by name, from which queries are drawn, or files with ready queries."""

    dataset: str | None = None
    items: str | None = None
    queries: str | None = None
    interactions: str | None = None
    domain: DomainSettings = DomainSettings()
    on_problem: Literal["error", "count"] = "error"
    users: PositiveInt | None = None  # None: 200 of a data set, all of a queries file
    history: PositiveInt | None = None  # latest items shown; None: 10 of a data set, all of a queries file
    candidates: Annotated[int, Field(ge=2)] | None = None  # None: 20 of a data set; of a file as many as it lists

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.queries is None):
            raise ValueError("give either `dataset` (a name) or `items` and `queries` (files)")
        if self.queries is not None and self.items is None:
            raise ValueError("`queries` needs `items`, the file with their titles")
        if self.queries is None and (self.items or self.interactions):
            raise ValueError("`items` and `interactions` belong to `queries`; a data set brings its own")
        return self


class RowSettings(Settings):
    """One row of the table: how a prompt is asked, read and calibrated."""

    prompt: str
    verbalizer: str | None = None  # None: the template's own
    calibrate: CalibrationName = "none"
    alpha: FiniteFloat | None = None  # None: the verbalizer's own
    length: Length | None = None

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.alpha is not None and self.calibrate == "none":
            raise ValueError('`alpha` is the weight of a calibration; add calibrate = "pmi"')
        return self


class TaskSettings(Settings):
    """A whole task file. `[data]` alone is complete."""

    description: str = ""
    model: str = "smollm2-135m"
    seed: int = 0
    metrics: Names = METRICS
    baselines: Annotated[tuple[str, ...], Field(strict=False)] = BASELINES
    data: DataSettings
    rows: Annotated[tuple[RowSettings, ...], Field(min_length=1, strict=False)] = (
        RowSettings(prompt="complete"),
        RowSettings(prompt="complete", calibrate="pmi"),
    )


@dataclass(frozen=True, slots=True)
class Task:
    """A task file and where it lies; relative paths in it are relative to its folder."""

    name: str
    path: Path
    settings: TaskSettings

    @property
    def domain(self) -> Domain:
        words = self.settings.data.domain
        return Domain(words.singular, words.plural, words.verb)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics to measure; one that is a path starts from the task file's folder, as all its paths do."""
        return tuple(
            str(self.path.parent / Path(name).expanduser()) if is_path(name) else name for name in self.settings.metrics
        )

    def file(self, name: str) -> Path:
        """A path of the task file. Raises TaskError if nothing is there."""
        path = self.path.parent / name
        if not path.is_file():
            raise TaskError(
                f"{self.path}: {name}: no such file; paths are relative to the task file ({self.path.parent}/)"
            )
        return path


def is_path(metric: str) -> bool:
    """Whether a metric is named by the place of its script or folder."""
    return "/" in metric or metric.endswith(".py")


def load_task(name: str | Path) -> Task:
    """The task called `name`: a path, a file of ./eval, or a shipped one. Raises TaskError with file and line."""
    try:
        path = artifacts.find("eval", str(name))
        return Task(path.stem, path, artifacts.read_toml(path, TaskSettings))
    except ArtifactError as error:
        raise TaskError(str(error)) from error


def load_catalogue(task: Task, say: Say = quiet) -> Mapping[str, Item]:
    """The items of a task, by id."""
    settings = task.settings.data
    if settings.dataset is not None:
        return _dataset(settings.dataset, task, say).items
    return read_catalogue(task.file(str(settings.items))).items


def load_queries(task: Task, split: Split = "test", candidates: Path | None = None, say: Say = quiet) -> QuerySet:
    """Queries and answers of a task: drawn from its data set, read from its files, or from a candidate file.

    `candidates` is a file that an earlier run wrote; it replaces what the task would draw. Raises TaskError, DataError.
    """
    settings = task.settings.data
    if split not in get_args(Split):
        raise TaskError(f"unknown split {split!r}; {did_you_mean(split, get_args(Split))}")
    if settings.dataset is None:
        found = _own_queries(task, split, candidates)
    else:
        found = _drawn_queries(task, _dataset(settings.dataset, task, say), split, candidates)
    if settings.users is not None and split == "test" and len(found.queries) < settings.users:
        raise TaskError(
            f"{candidates or task.path}: {settings.users} users were asked, but there are {len(found.queries)}; "
            "ask for that many or fewer"
        )
    if settings.history is None:
        return found
    shown = tuple(query.recent(min(settings.history, len(query.history))) for query in found.queries)
    return replace(found, queries=shown)


def _drawn_queries(task: Task, dataset: Dataset, split: Split, candidates: Path | None) -> QuerySet:
    settings = task.settings.data
    if candidates is None:
        return leave_one_out(
            dataset,
            n_users=settings.users or DEFAULT_USERS,
            n_history=settings.history or DEFAULT_HISTORY,
            n_candidates=settings.candidates or DEFAULT_CANDIDATES,
            seed=task.settings.seed,
            split=split,
        )
    found = read_queries(candidates, dataset.items, on_problem=settings.on_problem, n_users=settings.users)
    problems = found.problems | {"empty_titles": dataset.empty_titles}  # the file knows only its own histories
    sources = dict(dataset.sources) | found.sources
    training = all_but_last(dataset)
    return replace(found, problems=problems, popularity=popularity(dataset), sources=sources, training=training)


def _own_queries(task: Task, split: Split, candidates: Path | None) -> QuerySet:
    settings = task.settings.data
    if split != "test":
        raise TaskError(f"{task.path}: a task with its own queries has no {split!r} split; name another queries file")
    items = task.file(str(settings.items))
    own = own_queries(
        items,
        task.file(str(settings.queries)),
        interactions=task.file(settings.interactions) if settings.interactions else None,
        on_problem=settings.on_problem,
        n_users=settings.users if candidates is None else None,
        n_candidates=settings.candidates,
    )
    if candidates is None:
        return own
    found = own_queries(items, candidates, on_problem=settings.on_problem, n_users=settings.users)
    # How often items were taken is a matter of the task's data, not of which users a candidate file lists.
    sources = own.sources | found.sources
    return replace(found, popularity=own.popularity, training=own.training, sources=sources)


def _dataset(name: str, task: Task, say: Say) -> Dataset:
    if name not in assets.asset_names() or assets.describe(name).layout is None:
        known = [asset for asset in assets.asset_names() if assets.describe(asset).layout]
        raise TaskError(f"{task.path}: unknown dataset {name!r}; {did_you_mean(name, known)}")
    return read_dataset(assets.get(name, say), str(assets.describe(name).layout))
