"""Adapt recommenders to a few people of their tasks: training, then a folder with what was learnt.

Which people those are stands in shots.py, what learns in tuning/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewrec_prompt import tasks, templates
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.checked import parts_of
from fewrec_prompt.demos import Demos, DemosName
from fewrec_prompt.errors import AdapterError, DataError, TaskError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.files import made_folder
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.shots import Shots, check_apart, learnable, shots_together
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.classifying import KINDS, check_kind, labels_of
from fewrec_prompt.tuning.examples import Example, drawn, examples_of
from fewrec_prompt.tuning.identity import Earlier
from fewrec_prompt.tuning.labels import OverLabels
from fewrec_prompt.tuning.lessons import Lesson, metric_to_stop_by
from fewrec_prompt.tuning.loop import Watch, speaks, tune_together, wait_for_all
from fewrec_prompt.tuning.losses import LossName
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings
from fewrec_prompt.tuning.states import States
from fewrec_prompt.tuning.tracking import Tracker, Tracking
from fewrec_prompt.types import Demo


@dataclass(frozen=True, slots=True)
class Round:
    """An adapter to go on from: `replay` is the share of its people who are learnt from again, `pull` how strongly its
    weights are held on to."""

    folder: Path
    replay: float = 0.25
    pull: float = 0.0


def default_row(task: Task) -> RowSettings:
    """The row of a task that is tuned where nobody names one: its first calibrated one, else its first."""
    rows = task.settings.rows
    return next((row for row in rows if row.calibrate != "none"), rows[0])


def row_to_tune(task: Task, method: str, row: RowSettings | None = None) -> RowSettings:
    """The row that a method learns for: that given, else the default one.

    A classifier's is by default the first that judges or rates, and without its calibration: a classifier learns what a
    label word is worth. Raises VerbalizerError for a row that no classifier answers.
    """
    if method not in CLASSIFIERS:
        return row or default_row(task)
    kinds = {one.prompt: templates.load(one.prompt).kind for one in ([row] if row else task.settings.rows)}
    own = row or next((one for one in task.settings.rows if kinds[one.prompt] in KINDS), task.settings.rows[0])
    check_kind(templates.load(own.prompt))
    return own.model_copy(update={"calibrate": "none", "alpha": None})


def recommender_of(task: Task, row: RowSettings, backend: Backend) -> Recommender:
    """The recommender of one row of a task."""
    template, reader, calibration = parts_of(row)
    return Recommender(template, reader, backend, task.domain, calibration)


def with_demos(
    recommender: Recommender, examples: Sequence[Example], how: DemosName = "similar", n: int = 4, seed: int = 0
) -> Recommender:
    """The recommender with examples of these people in its prompts; nothing is trained.

    Its template is the one that shows examples: itself, or the one of the same name with "-demos" behind it. Where it
    judges, a single candidate that was not liked is an example, too; else who has no answer is left out. Raises
    ArtifactError where there is no such template.
    """
    judges = recommender.verbalizer.kind == "judge"
    told = (one for one in examples if one.relevant or (judges and len(one.query.candidates) == 1))
    pool = tuple(Demo(one.query, next(iter(one.relevant), 0), liked=bool(one.relevant)) for one in told)
    template = recommender.template
    if "demos" not in template.uses:
        template = templates.load(f"{template.name}-demos")
    return replace(recommender, template=template, demos=Demos(pool, how, n, seed))


def trainable(backend: Backend, method: str, task: Task, say: Say = quiet) -> Backend:
    """The backend, or one of its own for a method that changes the model, or whose adapters stand alone in one."""
    if METHODS[method].inside not in ("full", "adalora"):
        return backend
    mode = backend.mode
    return load_backend(task, Numerics(mode.precision, mode.device, mode.int8_threshold, mode.unit), say)


def tune_task(
    task: Task | str | Path,
    settings: Settings,
    shots: int | Sequence[int],
    out: Path,
    *,
    also: Sequence[Task | str | Path] = (),
    row: RowSettings | None = None,
    earlier: Round | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    track: Sequence[Tracker] = (),
    watch: Watch | None = None,
    test: bool = False,
    say: Say = quiet,
) -> Tuned:
    """Learn from `shots` people of a task and write what was learnt to the folder `out`.

    `also` are tasks that are learnt together with it, over one model; then `shots` may be a number for each. Each asks
    with its own row (`row_to_tune`) unless `row` is given. `settings.seed` draws the people, too. `earlier` is an
    adapter to learn on from, `track` are experiment trackers. With `test` a classifier tells the classes of the people
    who are tested, once, in the end. An interrupted training goes on from `out`.training, which is removed at the end.
    Raises FewrecError; nothing is trained where the folder could not be written.
    """
    group = [one if isinstance(one, Task) else tasks.load_task(one) for one in (task, *also)]
    numbers = _numbers(group, shots)
    _check_group(group, backend)
    check_free(out)
    rows = [row_to_tune(one, settings.method, row) for one in group]
    tracking = Tracking(track, out.name, out.with_name(f"{out.name}.tracked"))
    known = () if earlier is None else (earlier.folder,)  # a round learns from people who are new to it
    whom: Any = {"held_out": settings.held_out, "unknown_to": known, "loss": settings.loss}
    found = shots_together(group, numbers, settings.seed, **whom, say=say)
    backend = backend or load_backend(group[0], numerics, say)
    lessons = [lesson_of(*each, backend, settings) for each in zip(group, rows, found, strict=True)]
    bound = {lesson.name: adapters.bindings(lesson.recommender) for lesson in lessons}
    start = None
    if earlier is not None:
        start, lessons = _taken_up(earlier, settings, group, lessons, say)
    scratch = out.with_name(f"{out.name}.training")
    tests = [_tested(*each) for each in zip(group, lessons, found, strict=True)] if test else []
    tuned = tune_together(lessons, settings, earlier=start, folder=scratch, track=tracking, watch=watch, say=say)
    for part, own in zip(tests, tuned.recommenders, strict=False):
        say(f"{part.name}: {len(part.held_out)} people who are tested are judged, once")
        tuned = replace(tuned, tested={**tuned.tested, part.name: OverLabels(part, fixed=True).measured(own)})
    about = {
        "tasks": {
            lesson.name: about_of(own, people, n) | _taught(lesson, settings)
            for lesson, own, people, n in zip(lessons, rows, found, numbers, strict=True)
        },
        "learnt_from": [*(shots.traced() for shots in found), *_learnt_earlier(earlier)],
        "seed": settings.seed,
        "seconds": round(sum(done.seconds for done in tuned.passes), 1),  # those before an interruption, too
        "earlier": None if earlier is None else earlier.folder.name,
        **tuned.to_dict(),
    }
    if speaks():
        save_tuned(out, tuned, bound, about)
        _remove(scratch)
    wait_for_all()
    return tuned


def _tested(task: Task, lesson: Lesson, shots: Shots) -> Lesson:
    """The lesson with the people who are tested in the place of those held out. Raises DataError if none is judged."""
    queries = tasks.load_queries(task)
    check_apart(shots, queries)
    found = replace(lesson, held_out=examples_of(queries), states=States()).labelled()
    if not found.held_out:
        raise DataError(f"{task.name}: nobody who is tested has rated an item after another one; leave --test out")
    return found


def _learnt_earlier(earlier: Round | None) -> Sequence[Any]:
    """Whom the earlier rounds were learnt from."""
    return () if earlier is None else adapters.learnt_from(earlier.folder)


def check_free(out: Path) -> None:
    """Raises TaskError if something is where a folder is to be written, StorageError where none can be."""
    if out.exists():
        raise TaskError(f"{out}: exists already; name another folder with --out, or remove it")
    made_folder(out.parent)


def _numbers(group: Sequence[Task], shots: int | Sequence[int]) -> list[int]:
    """How many people of each task. Raises TaskError for neither one number nor one for each."""
    numbers = [shots] if isinstance(shots, int) else list(shots)
    if len(numbers) not in (1, len(group)):
        raise TaskError(f"{len(numbers)} numbers of shots for {len(group)} tasks; give one for all, or one for each")
    return numbers * len(group) if len(numbers) == 1 else numbers


def _check_group(group: Sequence[Task], backend: Backend | None) -> None:
    """Raises TaskError for a task that is named twice, and for other models than one."""
    names = [task.name for task in group]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TaskError(f"the task {twice[0]!r} is named twice; tasks that are learnt together differ by name")
    models = sorted({task.settings.model for task in group})
    if backend is None and len(models) > 1:
        raise TaskError(f"{', '.join(names)} name the models {', '.join(models)}; give one for all with --model")


def lesson_of(task: Task, row: RowSettings, shots: Shots, backend: Backend, settings: Settings) -> Lesson:
    """What a task brings to a training, with the loss and the negatives that suit it unless the settings name them."""
    recommender, fitted = recommender_of(task, row, backend), fitting(settings, shots)
    if fitted.method in CLASSIFIERS:
        return Lesson(recommender, shots.learnt, shots.held_out, name=task.name)
    assert fitted.loss is not None, "it was just chosen"
    assert fitted.negatives is not None, "it was just chosen"
    return Lesson(
        recommender,
        shots.learnt,
        shots.held_out,
        shots.queries.training,
        fitted.loss,
        fitted.negatives,
        metric_to_stop_by(task.metrics),
        name=task.name,
    )


def _taken_up(
    earlier: Round, settings: Settings, here: Sequence[Task], lessons: Sequence[Lesson], say: Say
) -> tuple[Earlier, list[Lesson]]:
    """The weights of an earlier round, and the lessons with its people. Its tasks are those `here` where names agree.

    Each of its tasks goes with the lesson that asks as it did, the one of its own name if there is. Raises AdapterError
    for another method, and for a task of either round that none of the other asks like.
    """
    saved = adapters.read(earlier.folder)
    if saved.method != settings.method:
        raise AdapterError(
            f"{earlier.folder}: was learnt with {saved.method!r}; go on with that, not {settings.method!r}"
        )
    for lesson in lessons:
        adapters.check_bindings(saved, lesson.recommender, force=False)
    about = saved.about["tasks"]
    by_name = {task.name: task for task in here}
    group = [by_name.get(name) or tasks.load_task(name) for name in about]
    found = [
        _learnt_before(earlier.folder, task, one["shots"], saved.about["seed"], settings.loss, say)
        for task, one in zip(group, about.values(), strict=True)
    ]
    people: dict[str, list[Example]] = {lesson.name: [] for lesson in lessons}
    for name, before in zip(about, found, strict=True):
        if not before:
            raise AdapterError(
                f"{earlier.folder}: nobody whom it was learnt from is among the people of {name!r} here; learn on with "
                "the data that it was learnt from, or anew"
            )
        alike = [one.name for one in lessons if not adapters.mismatches(saved.bound[name], one.recommender)]
        if not alike:
            raise AdapterError(f"{earlier.folder}: was learnt from {name!r}, too; name that task beside the others")
        people[name if name in alike else alike[0]] += before
    return Earlier(dict(saved.tensors), earlier.pull), [
        _replayed(lesson, people[lesson.name], earlier.replay, settings.seed) for lesson in lessons
    ]


def _learnt_before(folder: Path, task: Task, n: int, seed: int, loss: LossName | None, say: Say) -> tuple[Example, ...]:
    """The questions of a task whose people the rounds of an adapter have seen; of a protocol, the rows that it drew."""
    queries, examples = learnable(task, loss, say)
    known = adapters.known(folder, {one.query.person for one in examples}, queries.sources)
    rows = tasks.prescribed_shots(task, n, seed)
    return tuple(one for one in examples if one.query.person in known and (rows is None or one.query.user_id in rows))


def _replayed(lesson: Lesson, people: Sequence[Example], share: float, seed: int) -> Lesson:
    """The lesson with people of an earlier round, a share of whom are learnt from again."""
    n_again = round(share * len(people))
    again = drawn(people, n_again, seed) if n_again else ()
    return replace(lesson, examples=lesson.examples + again, earlier=tuple(people))


def save_tuned(out: Path, tuned: Tuned, bound: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the folder of a training, with a few questions of each task and what they score now."""
    pairs = zip(tuned.lessons, tuned.recommenders, strict=True)
    probes = {lesson.name: adapters.probed(made, lesson.examples, tuned.settings.seed) for lesson, made in pairs}
    learner = tuned.learner
    tensors, config = learner.export(), learner.config()
    adapters.save(out, tuned.settings.method, bound, tensors, config=config, about=about, probes=probes)


def fitting(settings: Settings, shots: Shots) -> Settings:
    """Where nothing is said: the loss that the answers ask for, and new negatives for every pass if there are any.

    Of a method that reads neither, the settings as they are.
    """
    if "loss" not in METHODS[settings.method].reads:
        return settings
    loss = settings.loss or shots.loss
    fresh = loss != "binary" and shots.queries.training is not None
    return replace(settings, loss=loss, negatives=settings.negatives or ("uniform" if fresh else "given"))


def _taught(lesson: Lesson, settings: Settings) -> dict[str, Any]:
    """How a folder says that a task was learnt, JSON-ready."""
    if settings.method in CLASSIFIERS:
        return {"n_labels": sum(len(labels_of(lesson.recommender, one)) for one in lesson.examples)}
    return {"loss": lesson.loss, "negatives": lesson.negatives}


def about_of(row: RowSettings, shots: Shots, n: int) -> dict[str, Any]:
    """What a folder says of whom it was learnt from in a task, JSON-ready."""
    return {
        "row": row.model_dump(mode="json"),
        "shots": n,
        "held_out": len(shots.held_out),
        "data": dict(shots.queries.sources),
    }


def _remove(scratch: Path) -> None:
    for path in scratch.glob("*"):
        path.unlink()
    if scratch.is_dir():
        scratch.rmdir()
