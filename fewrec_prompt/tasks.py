"""A task: whose data, which candidates, which rows and metrics. Read from eval/*.toml, turned into queries.

Names, paths and defaults only; scoring and measuring belong to evaluation.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from fewrec_prompt import artifacts, assets
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.candidates import sampler_of
from fewrec_prompt.data.catalogue import OnProblem, read_catalogue
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.filters import k_core, liked
from fewrec_prompt.data.layouts import tables
from fewrec_prompt.data.parquet_files import note
from fewrec_prompt.data.protocols import FormName, drawn_rows, read_protocol, read_untested
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.query_files import named_in, own_queries, read_queries, write_queries
from fewrec_prompt.data.registered import check, file_beside, registered
from fewrec_prompt.data.splits import Split, counts_of, cut, queries_of
from fewrec_prompt.data.tables import sha256_of
from fewrec_prompt.data.training import part_at
from fewrec_prompt.errors import ArtifactError, DataError, TaskError, did_you_mean
from fewrec_prompt.task_settings import PartSettings, TaskSettings
from fewrec_prompt.types import Domain, Item


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
    if settings.queries is None:
        return load_dataset(task, say).items
    return read_catalogue(task.file(str(settings.items))).items


def load_dataset(task: Task, say: Say = quiet) -> Dataset:
    """The data set that a task draws from, after its filters. Raises TaskError for a task with ready queries."""
    settings = task.settings.data
    if settings.queries is not None:
        raise TaskError(f"{task.path}: names ready queries, and no data set to draw from")
    if settings.dataset is None:
        data = _own_dataset(task)
    else:
        data = dataset_called(settings.dataset, settings.on_problem, wanted_by=f"{task.path}: ", say=say)
    if settings.min_rating is not None:
        data = liked(data, settings.min_rating)
    return data if settings.core is None else k_core(data, settings.core)


def load_queries(task: Task, split: Split = "test", candidates: Path | None = None, say: Say = quiet) -> QuerySet:
    """Queries and answers of a task: drawn from its data set, read from its files, or from a candidate file.

    `candidates` is a file that was frozen or that an earlier run wrote; it replaces what the task would draw. Raises
    TaskError, DataError.
    """
    settings = task.settings.data
    if split not in get_args(Split):
        raise TaskError(f"unknown split {split!r}; {did_you_mean(split, get_args(Split))}")
    if settings.queries is not None:
        found = _own_queries(task, split, candidates)
    else:
        found = _drawn_queries(task, load_dataset(task, say), split, candidates, say)
    if settings.users is not None and split == "test" and len(found.queries) < settings.users:
        raise TaskError(
            f"{candidates or task.path}: {settings.users} users were asked, but there are {len(found.queries)}; "
            "ask for that many or fewer"
        )
    if settings.history is None:
        return found
    shown = tuple(query.recent(min(settings.history, len(query.history))) for query in found.queries)
    return replace(found, queries=shown)


def freeze(task: Task, out: Path, split: Split = "test", say: Say = quiet) -> QuerySet:
    """Write the queries of a task, with their candidates and where they are from, as a file for `candidates`.

    Raises TaskError for a name that does not end in .parquet, StorageError if the disk refuses.
    """
    if out.suffix != ".parquet":
        raise TaskError(f"{out}: candidate files are parquet; call it {out.with_suffix('.parquet').name}")
    queries = load_queries(task, split, say=say)
    write_queries(out, queries, provenance(task, queries, split))
    return queries


def provenance(task: Task, queries: QuerySet, split: Split) -> dict[str, Any]:
    """Where candidates are from: the task and its text, the data, how they were drawn, by which version."""
    return {
        "task": task.name,
        "task_sha256": sha256_of(task.path),
        "data": dict(queries.sources),
        "part": split,
        "seed": task.settings.seed,
        "drawn": task.settings.data.model_dump(mode="json", exclude={"domain"}),
        "users": len(queries.queries),
        "problems": dict(queries.problems),
        "version": version("fewrec-prompt"),
    }


def _drawn_queries(task: Task, dataset: Dataset, split: Split, candidates: Path | None, say: Say) -> QuerySet:
    settings, seed = task.settings.data, task.settings.seed
    if settings.form is not None and candidates is None:
        return _protocol_queries(task, dataset, split, settings.form, say)
    made = cut(dataset, settings.split, share=settings.share, known=settings.known, seed=seed)
    if candidates is None:
        lists = task.file(settings.lists) if settings.lists else None
        sampler = sampler_of(settings.sampler, category=settings.category, lists=lists)
        found = queries_of(dataset, made, settings.sizes, seed=seed, split=split, sampler=sampler)
        if split == "test" or settings.learn_from is None:
            return found
        return named_in(_beside(task, settings.learn_from), found)
    _check_provenance(candidates, dataset)
    found = read_queries(
        candidates, dataset.items, on_problem=settings.on_problem, on_repeats="count", n_users=settings.users
    )
    problems = found.problems | {"empty_titles": dataset.empty_titles}  # the file knows only its own histories
    sources = dict(dataset.sources) | found.sources
    return replace(
        found,
        problems=problems,
        popularity=counts_of(dataset, made.training),
        sources=sources,
        training=part_at(dataset, made.training),
    )


def _protocol_queries(task: Task, dataset: Dataset, split: Split, form: FormName, say: Say) -> QuerySet:
    path, settings = _protocol_file(task, split), task.settings.data
    if split == "test":
        return read_protocol(path, form, dataset, settings.users)
    return read_untested(path, _protocol_file(task, "test"), form, dataset, say)


def prescribed_shots(task: Task, n: int, seed: int) -> tuple[str, ...] | None:
    """What the questions are called that the task's protocol has drawn to be learnt from; None where it drew none.

    Some may be of people who are tested, whom the part "train" does not hold. Raises TaskError, DataError.
    """
    draws = draws_of(task)
    return None if draws is None else drawn_rows(draws, _protocol_file(task, "train"), n, seed)


def draws_of(task: Task) -> Path | None:
    """The file of the rows that the task's protocol has drawn to be learnt from, if it has."""
    draws = task.settings.data.draws
    return None if draws is None else _beside(task, draws)


def _protocol_file(task: Task, split: Split) -> Path:
    """The file of a part of a protocol."""
    settings = task.settings.data
    file, parts = str(settings.file), settings.parts or PartSettings()
    if "{part}" not in file and split != "test":
        raise TaskError(
            f"{task.path}: {file} has no {split!r} part; choose things on another task over the same kind of data"
        )
    return _beside(task, file.replace("{part}", getattr(parts, split)))


def _beside(task: Task, file: str) -> Path:
    """A file in the folder of a data set that was added: that of the protocol, else the task's own."""
    settings = task.settings.data
    return file_beside(str(settings.file_of or settings.dataset), file, wanted_by=task.path)


def _check_provenance(candidates: Path, dataset: Dataset) -> None:
    """A frozen file belongs to the data it was drawn from; one without a note, such as an own one, to any."""
    if candidates.suffix != ".parquet" or not candidates.is_file():
        return
    drawn_from = note(candidates).get("data", {})
    for file, sha256 in drawn_from.items():
        if dataset.sources.get(file, sha256) != sha256:
            raise DataError(
                f"{candidates}: was drawn from another {file} (sha256 {sha256[:12]}…) than the task reads "
                f"({dataset.sources[file][:12]}…); draw it anew with: fewrec candidates build"
            )


def _own_queries(task: Task, split: Split, candidates: Path | None) -> QuerySet:
    if split == "test":
        return _own_test_queries(task, candidates)
    settings = task.settings.data
    if split == "train" or settings.selection is None:
        raise TaskError(
            f"{task.path}: a task with its own queries has no {split!r} split; for things to be chosen on give a file "
            'with queries of other users: selection = "FILE" below [data]'
        )
    chosen_on = _own_file(task, settings.selection)
    check_apart(chosen_on, _own_file(task, str(settings.queries)), f"{task.path}: {settings.selection}")
    return chosen_on


def _own_test_queries(task: Task, candidates: Path | None) -> QuerySet:
    settings = task.settings.data
    own = _own_file(task, str(settings.queries), settings.users if candidates is None else None)
    if candidates is None:
        return own
    found = own_queries(
        task.file(str(settings.items)), candidates, on_problem=settings.on_problem, n_users=settings.users
    )
    # How often items were taken is a matter of the task's data, not of which users a candidate file lists.
    sources = own.sources | found.sources
    return replace(found, popularity=own.popularity, training=own.training, sources=sources)


def _own_file(task: Task, queries: str, n_users: int | None = None) -> QuerySet:
    settings = task.settings.data
    return own_queries(
        task.file(str(settings.items)),
        task.file(queries),
        interactions=task.file(settings.interactions) if settings.interactions else None,
        on_problem=settings.on_problem,
        n_users=n_users,
        n_candidates=settings.candidates,
    )


def check_apart(selection: QuerySet, test: QuerySet, where: str) -> None:
    """Raises TaskError if a person is in both: what was chosen on people must not be measured on them."""
    tested = {query.person for query in test.queries}
    if both := [query.user_id for query in selection.queries if query.person in tested]:
        n = len(both)
        raise TaskError(
            f"{where}: {n} user{'s are' if n > 1 else ' is'} among the test users too (such as {both[0]!r}); nothing "
            "may be chosen on those it is measured on. Take them out of one of the two"
        )


def _own_dataset(task: Task) -> Dataset:
    settings = task.settings.data
    items, interactions = task.file(str(settings.items)), task.file(str(settings.interactions))
    return tables.own(interactions, items, settings.columns.named(), settings.on_problem)


def dataset_called(name: str, on_problem: OnProblem = "error", *, wanted_by: str = "", say: Say = quiet) -> Dataset:
    """A data set that a person added, or one that is fetched. What is read is what it was when it got its name.

    `wanted_by` begins the message of the TaskError for an unknown name.
    """
    added = registered()
    if entry := added.get(name):
        data = read_dataset(Path(entry.folder), entry.layout, on_problem)
        check(name, entry, data.sources)
        return replace(data, name=name)
    fetched = [asset for asset in assets.asset_names() if assets.describe(asset).layout]
    if name not in fetched:
        raise TaskError(
            f"{wanted_by}unknown dataset {name!r}; {did_you_mean(name, [*fetched, *added])} If you have its files: "
            f"fewrec assets add {name} FOLDER"
        )
    return read_dataset(assets.get(name, say), assets.describe(name).layout, on_problem)
