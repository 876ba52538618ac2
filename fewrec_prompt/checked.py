"""Check a task before any model is loaded: its queries, how each of its rows asks and reads, what rows are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from fewrec_prompt import metrics, scoring, tasks, verbalizers
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.baselines import BASELINES, check_baselines
from fewrec_prompt.calibration import TRANSDUCTIVE
from fewrec_prompt.data.controls import Control, controlled
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Split
from fewrec_prompt.ensembles import Together, called, together
from fewrec_prompt.errors import TaskError
from fewrec_prompt.recommender import Chosen, Recommender, choose
from fewrec_prompt.scoring import Row
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.templates import Template


@dataclass(frozen=True, slots=True)
class Checked:
    """A task of which all that needs no model was checked: its queries, and how each of its rows asks and reads."""

    task: Task  # the defaults of every row filled in
    parts: tuple[Chosen, ...]
    members: tuple[tuple[Chosen, ...], ...]  # of each ensemble
    queries: QuerySet

    def rows(self, backend: Backend, *, force: bool = False) -> list[Row]:
        """The rows, over a model, those with learnt weights too."""
        return self._rows(self.task.settings.rows, self.parts, backend, force=force)

    def ensembles(self, backend: Backend, *, force: bool = False) -> list[Together]:
        """The ensembles, over the same model."""
        groups = zip(self.task.settings.ensembles, self.members, strict=True)
        made = ((one, self._rows(one.members, parts, backend, force=force)) for one, parts in groups)
        return [together(one, members, self.queries.popularity, force=force) for one, members in made]

    def _rows(
        self, rows: Sequence[RowSettings], parts: Sequence[Chosen], backend: Backend, *, force: bool
    ) -> list[Row]:
        made = []
        for settings, (template, reader, calibration) in zip(rows, parts, strict=True):
            name = _name(settings, template)
            recommender = Recommender(template, reader, backend, self.task.domain, calibration)
            if settings.adapter is None:
                made.append(Row(name, settings, recommender))
            else:
                made.append(_adapted(name, settings, recommender, force=force))
        return made


def check(
    task: Task,
    split: Split = "test",
    candidates: Path | None = None,
    *,
    control: Control | None = None,
    given: Recommender | None = None,
    queries: QuerySet | None = None,
    say: Say = quiet,
) -> Checked:
    """Load what the task names, its queries too unless they are given, and make every question once for no model.

    A recommender that is given is the task's only row.
    """
    metrics.check_metrics(task.metrics)
    check_baselines(task.settings.baselines)
    parts = tuple(map(parts_of, task.settings.rows)) if given is None else (_parts_of(given),)
    members = tuple(tuple(map(parts_of, one.members)) for one in task.settings.ensembles)
    task = _resolved(task, parts, members)
    _check_names(task, parts, members)
    queries = queries or tasks.load_queries(task, split, candidates, say)
    _check_untested(task, queries)
    queries = queries if control is None else controlled(queries, control, task.settings.seed)
    scoring.rehearse((*parts, *chain(*members)), task.domain, queries.queries)
    return Checked(task, parts, members, queries)


def _check_untested(task: Task, queries: QuerySet) -> None:
    """Raises AdapterError for learnt weights that know the answer of somebody who is tested."""
    ensembles = task.settings.ensembles
    rows = chain(task.settings.rows, *(one.members for one in ensembles))
    folders = [row.adapter for row in rows if row.adapter] + [one.mix for one in ensembles if one.mix]
    if not folders:
        return
    from fewrec_prompt.tuning.adapters import check_untested

    people = {query.person for query in queries.queries}
    for folder in dict.fromkeys(folders):
        check_untested(Path(folder), people, queries.sources)


def _adapted(name: str, settings: RowSettings, recommender: Recommender, *, force: bool) -> Row:
    from fewrec_prompt.tuning.placing import adapted

    found = adapted(recommender, str(settings.adapter), force=force)
    return Row(name, settings, found.recommender, found.to_dict())


def parts_of(row: RowSettings) -> Chosen:
    """Template, verbalizer and calibration of a row."""
    return choose(row.prompt, row.verbalizer, row.calibrate, row.alpha, row.length, row.orders)


def _parts_of(recommender: Recommender) -> Chosen:
    return recommender.template, recommender.verbalizer, recommender.calibration


def _resolved(task: Task, parts: Sequence[Chosen], members: Sequence[Sequence[Chosen]]) -> Task:
    """The task with every row's defaults filled in, so that the record says what was done."""
    settings = task.settings
    ensembles = tuple(
        one.model_copy(update={"members": _filled(one.members, own)})
        for one, own in zip(settings.ensembles, members, strict=True)
    )
    changes = {"rows": _filled(settings.rows, parts), "ensembles": ensembles}
    return replace(task, settings=settings.model_copy(update=changes))


def filled(row: RowSettings) -> RowSettings:
    """A row with its defaults filled in."""
    return _filled([row], [parts_of(row)])[0]


def _filled(rows: Sequence[RowSettings], parts: Sequence[Chosen]) -> tuple[RowSettings, ...]:
    return tuple(
        row.model_copy(
            update={
                "verbalizer": row.verbalizer or template.front.verbalizer,
                "alpha": calibration.alpha if calibration.name != "none" else None,
            }
            | verbalizers.of_rows(reader)
        )
        for row, (template, reader, calibration) in zip(rows, parts, strict=True)
    )


def _check_names(task: Task, parts: Sequence[Chosen], members: Sequence[Sequence[Chosen]]) -> None:
    """Raises TaskError where the table would call two rows, or two members of an ensemble, the same."""
    ensembles = task.settings.ensembles
    groups = [(one, _names(one.members, own)) for one, own in zip(ensembles, members, strict=True)]
    for _, names in groups:
        _check_distinct(names, "members of an ensemble")
    rows = _names(task.settings.rows, parts)
    _check_distinct([*BASELINES, *rows, *(called(one, names) for one, names in groups)], "rows")


def _names(rows: Sequence[RowSettings], parts: Sequence[Chosen]) -> list[str]:
    return [_name(row, template) for row, (template, _, _) in zip(rows, parts, strict=True)]


def _check_distinct(names: Sequence[str], what: str) -> None:
    taken: set[str] = set()
    for name in names:
        if name in taken:
            raise TaskError(
                f"two {what} are called {name!r}; they must differ in prompt, verbalizer, length, orders or calibration"
            )
        taken.add(name)


def _name(row: RowSettings, template: Template) -> str:
    """A row's prompt, and whatever is not that prompt's default."""
    verbalizer = row.verbalizer if row.verbalizer != template.front.verbalizer else None
    length = row.length if row.length != "sum" else None
    orders = f"{row.orders} orders" if row.orders not in (None, 1) else None
    calibration = f"{row.calibrate} {row.alpha:g}" if row.calibrate != "none" else None
    warning = "(transductive)" if row.calibrate in TRANSDUCTIVE else None
    adapter = f"+ {Path(row.adapter).name}" if row.adapter else None
    return " ".join(part for part in (row.prompt, verbalizer, length, orders, calibration, warning, adapter) if part)
