"""Adapt a task's recommender to a few of its people: which people, then training, then a folder with what was learnt.

People who are learnt from, or looked at to stop in time, are never among those a task tests; shots of one seed for
fewer people are among those for more. What learns stands in tuning/.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewrec_prompt import tasks, templates
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Split
from fewrec_prompt.demos import Demos, DemosName
from fewrec_prompt.display import MAIN, main_metric
from fewrec_prompt.errors import AdapterError, DataError, TaskError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tasks import RowSettings, Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.examples import Example, drawn, examples_of, parted
from fewrec_prompt.tuning.loop import Earlier, Tuned, Watch, speaks, tune, wait_for_all
from fewrec_prompt.tuning.losses import LossName
from fewrec_prompt.tuning.settings import CLASSIFIERS, Settings
from fewrec_prompt.types import Demo

WATCHED = 128  # rows that early stopping looks at, beside those that a protocol has drawn to learn from


@dataclass(frozen=True, slots=True)
class Round:
    """An adapter to go on from: `replay` is the share of its people who are learnt from again, `pull` how strongly its
    weights are held on to."""

    folder: Path
    replay: float = 0.25
    pull: float = 0.0


@dataclass(frozen=True, slots=True)
class Shots:
    """People to learn from and people to stop by, and where both came from."""

    learnt: tuple[Example, ...]
    held_out: tuple[Example, ...]
    queries: QuerySet

    @property
    def loss(self) -> LossName:
        """The loss that these answers ask for: likes and dislikes of single items are read by themselves."""
        return "binary" if all(len(one.query.candidates) == 1 for one in self.learnt) else "listwise"


def shots_of(task: Task, n: int, seed: int = 0, *, held_out: float = 0.0, say: Say = quiet) -> Shots:
    """`n` people of the task to learn from, drawn by the seed; of them a share is held out.

    They are those of its part "train" where it names one, else of "selection": all who are not tested. Where a protocol
    has drawn rows, all of those are learnt from, and WATCHED rows of other people are held out if any share is. Raises
    DataError for more than there are.
    """
    queries = tasks.load_queries(task, _part(task), say=say)
    examples = examples_of(queries)
    prescribed = tasks.prescribed_shots(task, n, seed)
    if prescribed is None:
        learnt, held = parted(drawn(examples, n, seed), held_out, seed)
        return Shots(learnt, held, queries)
    known = {example.query.user_id: example for example in examples}
    learnt = tuple(known[name] for name in prescribed if name in known)
    if len(learnt) < n:
        say(f"{n - len(learnt)} of the {n} rows that were drawn are of people who are tested, and are left out")
    people = {example.query.person for example in learnt}
    others = [example for example in examples if example.query.person not in people]
    return Shots(learnt, drawn(others, min(WATCHED, len(others)), seed) if held_out else (), queries)


def _part(task: Task) -> Split:
    data = task.settings.data
    return "train" if data.shots or (data.file is not None and "{part}" in data.file) else "selection"


def default_row(task: Task) -> RowSettings:
    """The row of a task that is tuned where nobody names one: its first calibrated one, else its first."""
    rows = task.settings.rows
    return next((row for row in rows if row.calibrate != "none"), rows[0])


def recommender_of(task: Task, row: RowSettings, backend: Backend) -> Recommender:
    """The recommender of one row of a task."""
    template, reader, calibration = choose(row.prompt, row.verbalizer, row.calibrate, row.alpha, row.length)
    return Recommender(template, reader, backend, task.domain, calibration)


def with_demos(
    recommender: Recommender, examples: Sequence[Example], how: DemosName = "similar", n: int = 4, seed: int = 0
) -> Recommender:
    """The recommender with examples of these people in its prompts; nothing is trained.

    Its template is the one that shows examples: itself, or the one of the same name with "-demos" behind it. Raises
    ArtifactError where there is neither.
    """
    pool = tuple(Demo(one.query, one.relevant[0]) for one in examples if one.relevant)
    template = recommender.template
    if "demos" not in template.uses:
        template = templates.load(f"{template.name}-demos")
    return replace(recommender, template=template, demos=Demos(pool, how, n, seed))


def trainable(backend: Backend, method: str, task: Task, say: Say = quiet) -> Backend:
    """The backend, or one of its own for a method that changes the model, or whose adapters stand alone in one."""
    if CLASSIFIERS.get(method, method) not in ("full", "adalora"):
        return backend
    mode = backend.mode
    return load_backend(task, Numerics(mode.precision, mode.device, mode.int8_threshold, mode.unit), say)


def tune_task(
    task: Task | str | Path,
    settings: Settings,
    shots: int,
    out: Path,
    *,
    row: RowSettings | None = None,
    earlier: Round | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    watch: Watch | None = None,
    say: Say = quiet,
) -> Tuned:
    """Learn from `shots` people of a task and write what was learnt to the folder `out`.

    `settings.seed` draws the people, too. `earlier` is an adapter to learn on from. An interrupted training goes on
    from `out`.training, which is removed at the end. Raises FewrecError; nothing is trained where the folder could not
    be written.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    check_free(out)
    found = shots_of(task, shots, settings.seed, held_out=settings.held_out, say=say)
    row = row or default_row(task)
    backend = backend or load_backend(task, numerics, say)
    recommender = recommender_of(task, row, backend)
    bound = adapters.bindings(recommender)
    scratch = out.with_name(f"{out.name}.training")
    begin = time.perf_counter()
    tuned = tune(
        recommender,
        found.learnt,
        fitting(settings, found),
        held_out=found.held_out,
        training=found.queries.training,
        earlier=None if earlier is None else _taken_up(earlier, settings, recommender, say),
        folder=scratch,
        metric=main_metric(task.metrics) or MAIN,
        watch=watch,
        say=say,
    )
    about = about_of(task, row, found, shots, settings.seed, time.perf_counter() - begin) | tuned.to_dict()
    about["earlier"] = None if earlier is None else earlier.folder.name
    if speaks():
        save_tuned(out, tuned, bound, about, found.learnt)
        _remove(scratch)
    wait_for_all()
    return tuned


def check_free(out: Path) -> None:
    """Raises TaskError if something is where a folder is to be written."""
    if out.exists():
        raise TaskError(f"{out}: exists already; name another folder with --out, or remove it")


def _taken_up(earlier: Round, settings: Settings, recommender: Recommender, say: Say) -> Earlier:
    """The weights and the people of an earlier round. Raises AdapterError for another method or other bindings."""
    saved = adapters.read(earlier.folder)
    if saved.method != settings.method:
        raise AdapterError(
            f"{earlier.folder}: was learnt with {saved.method!r}; go on with that, not {settings.method!r}"
        )
    adapters.check_bindings(saved, recommender, force=False)
    about = saved.about
    people = shots_of(tasks.load_task(about["task"]), about["shots"], about["seed"], say=say).learnt
    n_again = round(earlier.replay * len(people))
    replay = drawn(people, n_again, settings.seed) if n_again else ()
    return Earlier(dict(saved.tensors), people, replay, earlier.pull)


def save_tuned(
    out: Path, tuned: Tuned, bound: dict[str, Any], about: dict[str, Any], examples: Sequence[Example]
) -> None:
    """Write the folder of a training, with a few questions and what they score now."""
    probes = adapters.probed(tuned.recommender, examples, tuned.settings.seed)
    learner = tuned.learner
    tensors, config = learner.export(), learner.config()
    adapters.save(out, tuned.settings.method, bound, tensors, config=config, about=about, probes=probes)


def fitting(settings: Settings, shots: Shots) -> Settings:
    """Where nothing is said: the loss that the answers ask for, and new negatives for every pass if there are any."""
    loss = settings.loss or shots.loss
    fresh = loss != "binary" and shots.queries.training is not None
    return replace(settings, loss=loss, negatives=settings.negatives or ("uniform" if fresh else "given"))


def about_of(task: Task, row: RowSettings, shots: Shots, n: int, seed: int, seconds: float) -> dict[str, Any]:
    """What a folder says of whom it was learnt from, JSON-ready."""
    return {
        "task": task.name,
        "row": row.model_dump(mode="json"),
        "shots": n,
        "held_out": len(shots.held_out),
        "seed": seed,
        "data": dict(shots.queries.sources),
        "seconds": round(seconds, 1),
    }


def _remove(scratch: Path) -> None:
    for path in scratch.glob("*"):
        path.unlink()
    if scratch.is_dir():
        scratch.rmdir()


def check_apart(shots: Shots, test: QuerySet) -> None:
    """Raises DataError if somebody who is learnt from is tested."""
    tested = {query.person for query in test.queries}
    both = sorted({one.query.person for one in shots.learnt + shots.held_out} & tested)
    if both:
        raise DataError(f"{len(both)} people are learnt from and tested (such as {both[0]!r}); choose other shots")
