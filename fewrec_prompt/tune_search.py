"""Search how to learn: learning rate, weight decay, dropout, size and passes, chosen on people held out of the shots.

Optuna proposes (TPE, Bergstra et al. 2011) and stops what falls behind (median rule). Every trial learns from the same
people and is judged on the same held-out ones; a finished trial is kept, so a search goes on where it stopped. The test
users are not looked at here: whoever wants the winner's result evaluates it once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewrec_prompt import tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.display import MAIN, main_metric
from fewrec_prompt.errors import DataError, RunError
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import default_row, fitting, recommender_of, shots_of, trainable, tune_task
from fewrec_prompt.files import write_text
from fewrec_prompt.runs import dump
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning.examples import SMALLEST_SPLIT
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    import optuna

STUDY, NOTE = "trials.sqlite", "search.json"


@dataclass(frozen=True, slots=True)
class Found:
    """The settings that did best on those held out, and what was learnt with them."""

    tuned: Tuned
    settings: Settings
    value: float  # the metric of those held out, a fraction
    n_trials: int
    n_pruned: int


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

    The folder `out`.search keeps the trials; the same command goes on with them. Raises DataError for too few people to
    hold any out, RunError for a folder that holds another search.
    """
    import optuna

    task = task if isinstance(task, Task) else tasks.load_task(task)
    if shots < SMALLEST_SPLIT or settings.held_out == 0:
        raise DataError(
            f"a search chooses on people held out of the shots, and of {shots}, {settings.held_out:g} held out, there "
            f"are none; give {SMALLEST_SPLIT} shots at least"
        )
    row, metric = row or default_row(task), main_metric(task.metrics) or MAIN
    backend = backend or load_backend(task, numerics, say)
    folder = out.with_name(f"{out.name}.search")
    _claim(folder, {"task": task.name, "row": row.model_dump(mode="json"), "shots": shots, **settings.to_dict()})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="tune",
        storage=f"sqlite:///{folder / STUDY}",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
        load_if_exists=True,
    )
    found = shots_of(task, shots, settings.seed, held_out=settings.held_out, say=say)

    def objective(trial: optuna.Trial) -> float:
        chosen = fitting(proposed(trial, settings), found)

        def watch(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        tuned = tune(
            recommender_of(task, row, trainable(backend, chosen.method, task, say)),
            found.learnt,
            chosen,
            held_out=found.held_out,
            training=found.queries.training,
            metric=metric,
            watch=watch,
        )
        value = tuned.passes[tuned.best_epoch].metric
        assert value is not None, "people are held out"
        say(f"trial {trial.number}: {metric} of {len(found.held_out)} held out {100 * value:.1f}  {trial.params}")
        return value

    left = trials - sum(trial.state.is_finished() for trial in study.trials)
    study.optimize(objective, n_trials=max(0, left))
    best = replace(settings, **study.best_params)
    tuned = tune_task(task, best, shots, out, row=row, backend=trainable(backend, best.method, task, say), say=say)
    n_pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    return Found(tuned, best, float(study.best_value), len(study.trials), n_pruned)


def proposed(trial: optuna.Trial, settings: Settings) -> Settings:
    """What a trial tries: the numbers that matter for the method, around its defaults; the rest as it is given."""
    rate, epochs = DEFAULTS[settings.method]
    values: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", rate / 10, min(1.0, rate * 10), log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
        "epochs": trial.suggest_int("epochs", max(1, epochs - 2), epochs + 2),
    }
    if settings.method in ("lora", "adalora"):
        values["dropout"] = trial.suggest_float("dropout", 0.0, 0.3)
        values["rank"] = trial.suggest_categorical("rank", [4, 8, 16, 32])
    elif settings.method in ("soft-prompt", "p-tuning", "prefix"):
        values["tokens"] = trial.suggest_categorical("tokens", [8, 20, 50, 100])
    return replace(settings, **values)


def _claim(folder: Path, header: Mapping[str, Any]) -> None:
    """Make the folder this search's, or see that it is."""
    header = json.loads(json.dumps(header))
    path = folder / NOTE
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != header:
            raise RunError(f"{folder}: holds another search; name another --out, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, dump(header))
