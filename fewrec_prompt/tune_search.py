"""Search how to learn: learning rate, weight decay, dropout, size and passes, chosen on people held out of the shots.

Optuna proposes (TPE, Bergstra et al. 2011) and stops what falls behind (median rule). Every trial learns from the same
people and is judged on the same held-out ones; where the model stays as it is, their states are computed once for all
trials. What a trial tries depends on the seed and on the trials before it, and a finished one is kept: a search that
stopped takes the way it would have taken. The test users are not looked at here: whoever wants the winner's result
evaluates it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewrec_prompt import claims, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.display import figure
from fewrec_prompt.errors import BudgetError, DataError, FewrecError, ModelError, NumericError, RunError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import about_of, check_free, lesson_of, row_to_tune, trainable, tune_task
from fewrec_prompt.metrics import better_of
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.shots import Shots, learnable, shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.examples import SMALLEST_SPLIT
from fewrec_prompt.tuning.lessons import OF_CLASSES, Lesson, metric_to_stop_by
from fewrec_prompt.tuning.loop import tune_together
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings

if TYPE_CHECKING:
    import optuna

STUDY, NOTE = "trials.sqlite", "search.json"
REASON = "failed"  # of a trial that came to nothing: why
OF_A_TRIAL = (BudgetError, ModelError, NumericError)  # its rate, steps or size may be at fault, and others' not


@dataclass(frozen=True, slots=True)
class Found:
    """The settings that did best on those held out, and what was learnt with them."""

    tuned: Tuned | None  # None: an earlier call learnt it
    settings: Settings
    value: float  # the metric of those held out, a fraction or (log-loss) nats
    n_trials: int
    n_pruned: int
    n_failed: int


def search(
    task: Task | str | Path,
    settings: Settings,
    shots: int,
    out: Path,
    trials: int,
    *,
    row: RowSettings | None = None,
    numerics: Numerics = AUTO,
    backend: Backend | None = None,
    say: Say = quiet,
) -> Found:
    """Try `trials` ways to learn from `shots` people, then write what the best one learns to `out`.

    The folder `out`.search keeps the trials; the same command goes on with them, and with what the best one learnt if
    that is in `out`. A trial that cannot learn is told and counted, and the search goes on. Raises DataError for too
    few people to hold any out, TaskError for something else in `out` before anything is trained, RunError for a folder
    that holds another search, and where every trial failed.
    """
    task = task if isinstance(task, Task) else tasks.load_task(task)
    if "learning_rate" not in METHODS[settings.method].reads:
        raise FewrecError(f"{settings.method!r} trains nothing, so there are no settings to search; leave --search out")
    row = row_to_tune(task, settings.method, row)
    metric = OF_CLASSES if settings.method in CLASSIFIERS else metric_to_stop_by(task.metrics)
    folder = out.with_name(f"{out.name}.search")
    if not folder.exists():
        check_free(out)
    pool = learnable(task, settings.loss, say)
    found = shots_of(task, shots, settings.seed, held_out=settings.held_out, pool=pool, say=say)
    _check_held_out(found, settings)
    header: dict[str, Any] = {
        "task": task.name,
        "model": task.settings.model,
        "numerics": asdict(numerics),
        "metric": metric,
    }
    header |= {"row": row.model_dump(mode="json"), "shots": shots, **settings.to_dict()}
    claims.claim(folder / NOTE, header | claims.asked(row, task) | claims.people(task, pool), "search")
    study = _study(folder, metric)
    n_done = len(_finished(study))
    if n_done >= trials and _holds(out, about_of(row, found, shots), task, _best(study, settings, folder)):
        say(f"{out}: holds what the best trial learnt, which is not learnt again")
        return _found(study, _best(study, settings, folder), None)
    check_free(out)
    backend = backend or load_backend(task, numerics, say)
    trying = _Trying(study, task, row, metric, settings, found, backend, say)
    for n in range(n_done, trials):
        trying.run(n)
    best = _best(study, settings, folder)
    tuned = tune_task(task, best, shots, out, row=row, backend=trainable(backend, best.method, task, say), say=say)
    return _found(study, best, tuned)


def _check_held_out(found: Shots, settings: Settings) -> None:
    """Raises DataError where nobody is held out."""
    if not found.held_out:
        n = len({one.query.person for one in found.learnt})
        raise DataError(
            f"a search chooses on people held out of the shots, and of these {n} people, the share "
            f"{settings.held_out:g} held out, there are none; give {SMALLEST_SPLIT} shots at least, or a larger share"
        )


@dataclass(frozen=True)
class _Trying:
    """What all trials of a search share."""

    study: optuna.Study
    task: Task
    row: RowSettings
    metric: str
    settings: Settings
    shots: Shots
    backend: Backend
    say: Say

    def _asking(self, backend: Backend) -> Lesson:
        return lesson_of(self.task, self.row, self.shots, backend, self.settings)

    @cached_property
    def lesson(self) -> Lesson:
        """Of all trials that learn in one model."""
        return self._asking(self.backend)

    def run(self, n: int) -> None:
        """The trial that comes after n others. If it cannot learn, the reason is told and kept."""
        from optuna.trial import TrialState

        study = self.study
        study.sampler = _sampler(self.settings.seed, n)
        trial = study.ask()
        chosen = proposed(trial, self.settings)
        try:
            value = self._learn(trial, chosen)
        except OF_A_TRIAL as error:
            trial.set_user_attr(REASON, str(error))
            study.tell(trial, state=TrialState.FAIL)
            self.say(f"trial {n} failed: {error}  {trial.params}")
            return
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
            return
        study.tell(trial, value)
        held = f"{self.metric} of {len(self.shots.held_out)} held out {figure(self.metric, value)}"
        self.say(f"trial {n}: {held}  {trial.params}")

    def _learn(self, trial: optuna.Trial, settings: Settings) -> float | None:
        """The metric of those held out; None if the trial fell behind. Raises an error OF_A_TRIAL."""
        import optuna

        def watch(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        backend = trainable(self.backend, settings.method, self.task, self.say)
        lesson = self.lesson if backend is self.backend else self._asking(backend)
        try:
            tuned = tune_together([lesson], settings, watch=watch)
        except optuna.TrialPruned:
            return None
        value = tuned.passes[tuned.best_epoch].metric
        if value is None:
            raise NumericError(f"{self.metric} of the {len(self.shots.held_out)} held out cannot be told")
        return value


def proposed(trial: optuna.Trial, settings: Settings) -> Settings:
    """What a trial tries: the numbers that matter for the method, around its defaults; the rest as it is given."""
    own = METHODS[settings.method]
    rate, epochs = own.rate, own.epochs
    assert rate is not None, "a method that trains nothing is refused"
    assert epochs is not None, "the same"
    values: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", rate / 10, min(1.0, rate * 10), log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
        "epochs": trial.suggest_int("epochs", max(1, epochs - 2), epochs + 2),
    }
    if own.inside in ("lora", "adalora"):
        values["dropout"] = trial.suggest_float("dropout", 0.0, 0.3)
        values["rank"] = trial.suggest_categorical("rank", [4, 8, 16, 32])
    elif own.inside in ("soft-prompt", "p-tuning", "prefix"):
        values["tokens"] = trial.suggest_categorical("tokens", [8, 20, 50, 100])
    return replace(settings, **values)


def _study(folder: Path, metric: str) -> optuna.Study:
    """The trials that the folder holds; none at first. Raises RunError for a file that is damaged."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            study_name="tune",
            storage=f"sqlite:///{folder / STUDY}",
            direction="maximize" if better_of(metric) == "more" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
            load_if_exists=True,
        )
    except DatabaseError as error:
        raise RunError(f"{folder / STUDY}: damaged ({error.orig}); remove {folder} to search anew") from error


def _sampler(seed: int, n: int) -> optuna.samplers.BaseSampler:
    """What proposes the trial after n others: one for all of them would begin anew where a search goes on."""
    from optuna.samplers import TPESampler

    # a liar would take a trial that was interrupted for one that still runs, and shun what it tried
    return TPESampler(seed=int(rng_for(seed, "trial", n).integers(2**31)), constant_liar=False)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that came to their end; one that was interrupted is none."""
    return [trial for trial in study.trials if trial.state.is_finished()]


def _failed(study: optuna.Study) -> list[str]:
    """Why trials failed, each that did."""
    return [trial.user_attrs[REASON] for trial in _finished(study) if REASON in trial.user_attrs]


def _best(study: optuna.Study, settings: Settings, folder: Path) -> Settings:
    """The settings of the best trial. Raises RunError where every trial failed."""
    failed = _failed(study)
    if len(failed) == len(_finished(study)):
        told = [reason if n == 1 else f"{reason} ({n} times)" for reason, n in Counter(failed).items()]
        raise RunError(
            f"{folder}: every trial failed: {'; '.join(told)}. Change what they share, such as --shots, --batch or "
            "--precision, and name another --out, or remove this folder"
        )
    return replace(settings, **study.best_params)


def _holds(out: Path, learnt: Mapping[str, Any], task: Task, settings: Settings) -> bool:
    """Whether a folder is what these settings learn from these people (`about_of`)."""
    if not (out / adapters.NOTE).is_file():
        return False
    about = adapters.described(out)
    own = about["tasks"].get(task.name, {})
    same = all(own.get(name) == value for name, value in learnt.items())
    return same and about.get("settings") == settings.complete().to_dict()


def _found(study: optuna.Study, settings: Settings, tuned: Tuned | None) -> Found:
    from optuna.trial import TrialState

    finished = _finished(study)
    n_pruned = sum(trial.state == TrialState.PRUNED for trial in finished)
    return Found(tuned, settings, float(study.best_value), len(finished), n_pruned, len(_failed(study)))
