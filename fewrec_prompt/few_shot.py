"""Adapt recommenders to a few people of their tasks: which people, then training, then a folder with what was learnt.

People who are learnt from, or looked at to stop in time, are never among those that a task tests, nor those that a task
beside it does; shots of one seed for fewer people are among those for more. What learns stands in tuning/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fewrec_prompt import tasks, templates
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.checked import parts_of
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Split
from fewrec_prompt.demos import Demos, DemosName
from fewrec_prompt.errors import AdapterError, DataError, TaskError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.files import made_folder
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.classifying import KINDS, check_kind, labels_of
from fewrec_prompt.tuning.examples import Example, drawn, examples_of, parted
from fewrec_prompt.tuning.identity import Earlier
from fewrec_prompt.tuning.lessons import Lesson, metric_to_stop_by
from fewrec_prompt.tuning.loop import Watch, speaks, tune_together, wait_for_all
from fewrec_prompt.tuning.losses import LossName
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings
from fewrec_prompt.tuning.tracking import Tracker, Tracking
from fewrec_prompt.types import Demo

Pool: TypeAlias = tuple[QuerySet, tuple[Example, ...]]
"""Whom a task may be learnt from: all of their queries, and those that say something."""
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

    def holding_out(self, people: Set[str]) -> Shots:
        """The same with these people among those held out."""
        moved = tuple(one for one in self.learnt if one.query.person in people)
        rest = tuple(one for one in self.learnt if one.query.person not in people)
        return replace(self, learnt=rest, held_out=self.held_out + moved)

    def traced(self) -> dict[str, Any]:
        """Whom these are, for a folder to say."""
        people = (one.query.person for one in self.learnt + self.held_out)
        return adapters.traced(people, self.queries.sources)

    @property
    def loss(self) -> LossName:
        """The loss that these answers ask for: likes and dislikes of single items are read by themselves."""
        return "binary" if all(len(one.query.candidates) == 1 for one in self.learnt) else "listwise"


def shots_of(
    task: Task,
    n: int,
    seed: int = 0,
    *,
    held_out: float = 0.0,
    without: Set[str] = frozenset(),
    unknown_to: Sequence[Path] = (),
    loss: LossName | None = None,
    pool: Pool | None = None,
    say: Say = quiet,
) -> Shots:
    """`n` people of the task to learn from, drawn by the seed; of them a share is held out.

    They are those of its part "train" where it names one, else of "selection": all who are not tested. Where a protocol
    has drawn rows, all of those are learnt from, and WATCHED rows of other people are held out if any share is. Nobody
    of `without` is among them, nor whom the adapters `unknown_to` were learnt from, nor, unless the `loss` is "binary",
    a list of candidates that no answer stands out of. Raises DataError for more than there are, AdapterError for an
    adapter that does not say whom it knows. `pool` is whom `learnable` found, where that was asked before.
    """
    queries, examples = pool or learnable(task, loss, say)
    everybody = {one.query.person for one in examples}
    without = frozenset(without).union(*(_known(folder, everybody, queries) for folder in unknown_to))
    examples = tuple(one for one in examples if one.query.person not in without)
    prescribed = tasks.prescribed_shots(task, n, seed)
    if prescribed is None:
        if n > len(examples):
            left_out = len(everybody & without)
            more = f" ({left_out} more are known to an adapter, or tested in another task)" if left_out else ""
            raise DataError(
                f"{task.name}: {n} shots were asked, but there are {len(examples)} people{more}; ask for fewer"
            )
        learnt, held = parted(drawn(examples, n, seed), held_out, seed)
        return Shots(learnt, held, queries)
    known = {example.query.user_id: example for example in examples}
    learnt = tuple(known[name] for name in prescribed if name in known)
    if len(learnt) < n:
        why = "tested, or known to the adapter" if unknown_to else "tested"
        say(f"{n - len(learnt)} of the {n} rows that were drawn are of people who are {why}, and are left out")
    if not learnt:
        raise DataError(f"{task.name}: none of the {n} rows that were drawn is left to learn from; ask for more shots")
    people = {example.query.person for example in learnt}
    others = [example for example in examples if example.query.person not in people]
    return Shots(learnt, drawn(others, min(WATCHED, len(others)), seed) if held_out else (), queries)


def learnable(task: Task, loss: LossName | None = None, say: Say = quiet) -> Pool:
    """All whom a task may be learnt from. A list needs answers and others beside them, unless each is judged alone."""
    queries = tasks.load_queries(task, _part(task), say=say)
    examples = examples_of(queries)
    if loss == "binary":
        return queries, examples
    answered = tuple(one for one in examples if len(one.query.candidates) == 1 or _has_both(one))
    if n_others := len(examples) - len(answered):
        say(f"{task.name}: {n_others} lists of candidates hold no answer, or nothing else; nothing is learnt from them")
    return queries, answered


def _has_both(example: Example) -> bool:
    return 0 < len(example.relevant) < len(example.query.candidates)


def _known(folder: Path, people: Set[str], queries: QuerySet) -> Set[str]:
    if not adapters.learnt_from(folder):
        raise AdapterError(f"{folder}: does not say whom it was learnt from, so they cannot be left out; tune it anew")
    return adapters.known(folder, people, queries.sources)


def shots_together(
    group: Sequence[Task],
    numbers: Sequence[int],
    seed: int = 0,
    *,
    held_out: float = 0.0,
    unknown_to: Sequence[Path] = (),
    loss: LossName | None = None,
    say: Say = quiet,
) -> list[Shots]:
    """So many people of each task, as `shots_of`. Who is tested or held out in one task is learnt from in none.

    People are told apart by their ids, so in tasks over other data somebody of the same id is left out, too. Raises
    DataError as `shots_of`, and where all people of a task are held out in others.
    """
    tested = [_tested(task, say) if len(group) > 1 else frozenset() for task in group]
    found = []
    for task, n in zip(group, numbers, strict=True):
        others = frozenset[str]().union(*(people for one, people in zip(group, tested, strict=True) if one is not task))
        how: Any = {"held_out": held_out, "unknown_to": unknown_to, "loss": loss}
        found.append(shots_of(task, n, seed, without=others, **how, say=say))
    held = {one.query.person for shots in found for one in shots.held_out}
    apart = [shots.holding_out(held) for shots in found]
    for task, shots in zip(group, apart, strict=True):
        if not shots.learnt:
            raise DataError(f"{task.name}: everybody is held out, here or in another task; ask for more shots")
    return apart


def _tested(task: Task, say: Say) -> frozenset[str]:
    return frozenset(query.person for query in tasks.load_queries(task, say=say).queries)


def _part(task: Task) -> Split:
    data = task.settings.data
    return "train" if data.shots or (data.file is not None and "{part}" in data.file) else "selection"


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
    say: Say = quiet,
) -> Tuned:
    """Learn from `shots` people of a task and write what was learnt to the folder `out`.

    `also` are tasks that are learnt together with it, over one model; then `shots` may be a number for each. Each asks
    with its own row (`row_to_tune`) unless `row` is given. `settings.seed` draws the people, too. `earlier` is an
    adapter to learn on from, `track` are experiment trackers. An interrupted training goes on from `out`.training,
    which is removed at the end. Raises FewrecError; nothing is trained where the folder could not be written.
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
    tuned = tune_together(lessons, settings, earlier=start, folder=scratch, track=tracking, watch=watch, say=say)
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


def check_apart(shots: Shots, test: QuerySet) -> None:
    """Raises DataError if somebody who is learnt from is tested."""
    tested = {query.person for query in test.queries}
    both = sorted({one.query.person for one in shots.learnt + shots.held_out} & tested)
    if both:
        raise DataError(f"{len(both)} people are learnt from and tested (such as {both[0]!r}); choose other shots")
