"""A search for how to learn: on people held out, from where it stopped, and never over the test users."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from test_few_shot import backend
from typer.testing import CliRunner

import fewrec_prompt
from fewrec_prompt import tasks, tune_search
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cli import app
from fewrec_prompt.errors import DataError, ModelError, NumericError, RunError, TaskError
from fewrec_prompt.evaluation import Options
from fewrec_prompt.metrics import better_of, metric_names
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tune_search import search
from fewrec_prompt.tuning import adapters, examples
from fewrec_prompt.tuning.lessons import metric_to_stop_by
from fewrec_prompt.tuning.loop import Watch
from fewrec_prompt.tuning.losses import LOSSES
from fewrec_prompt.tuning.settings import Settings

SOFT = Settings("soft-prompt", tokens=4, epochs=1, held_out=0.25)


@pytest.fixture
def task(model: Path, monkeypatch: pytest.MonkeyPatch) -> tasks.Task:
    """The made-up films have eight people to learn from: enough for this."""
    monkeypatch.setattr(examples, "SMALLEST_SPLIT", 4)
    monkeypatch.setattr(tune_search, "SMALLEST_SPLIT", 4)
    return Options(model=str(model)).applied(tasks.load_task("tiny"))


def test_the_best_on_those_held_out_is_kept_and_a_search_goes_on(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = tasks.load_queries
    monkeypatch.setattr(
        tasks,
        "load_queries",
        lambda task, split="test", *rest, **more: asked.append(split) or real(task, split, *rest, **more),
    )
    said: list[str] = []

    def run(out: str, trials: int) -> tune_search.Found:
        return search(task, SOFT, 8, tmp_path / out, trials, backend=backend(model), say=said.append)

    found = run("x", 3)
    assert "test" not in asked, "nobody who is tested was looked at"
    assert (found.n_trials, found.n_failed) == (3, 0)
    tried = [line for line in said if line.startswith("trial ")]
    values = [float(line.split("held out ")[1].split()[0]) for line in tried]
    assert 100 * found.value == pytest.approx(max(values), abs=0.06)
    kept = adapters.read(tmp_path / "x").about["settings"]
    assert kept["learning_rate"] == found.settings.learning_rate

    (tmp_path / "x").rename(tmp_path / "old")
    said.clear()
    more = run("x", 4)
    assert more.n_trials == 4
    assert sum(line.startswith("trial ") for line in said) <= 1, "the first three were kept"
    assert more.value >= found.value


def test_another_search_is_not_mixed_in(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    with pytest.raises(RunError, match="another search"):
        search(task, Settings("lora"), 8, tmp_path / "x", 1, backend=backend(model))


def test_a_search_without_anybody_held_out_is_refused(task: tasks.Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give 4 shots at least"):
        search(task, SOFT, 3, tmp_path / "x", 1)


# --- as it would have gone without a stop ----------------------------------------------------------------------------


class Toy:
    """In the place of a training: settings have a worth, and some trials an error. `tried` are the settings."""

    def __init__(
        self, worth: Callable[[Settings], float | None], errors: Mapping[int, BaseException] | None = None
    ) -> None:
        self.worth, self.errors, self.tried = worth, errors or {}, list[Settings]()

    def __call__(self, _lessons: object, settings: Settings, *, watch: Watch) -> Any:
        self.tried.append(settings)
        if error := self.errors.get(len(self.tried) - 1):
            raise error
        value = self.worth(settings)
        watch(1, 0.0 if value is None else value)
        return SimpleNamespace(passes=[SimpleNamespace(metric=value)], best_epoch=0)


def rate(settings: Settings) -> float:
    return settings.learning_rate or 0.0


def never(*_: object, **__: object) -> NoReturn:
    pytest.fail("something was trained")


@pytest.fixture
def winner(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings of winners, which are not trained."""
    found: list[Settings] = []
    monkeypatch.setattr(tune_search, "tune_task", lambda _task, settings, *_, **__: found.append(settings))
    return found


def test_a_search_that_was_stopped_tries_what_it_would_have_tried(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: list[Settings]
) -> None:
    """Also beyond the ten trials that are drawn at random before what came of them counts."""

    def run(out: str, toy: Toy) -> list[Settings]:
        monkeypatch.setattr(tune_search, "tune_together", toy)
        search(task, SOFT, 8, tmp_path / out, 14, backend=backend(model))
        return toy.tried

    whole = run("whole", Toy(rate))
    stopped = []
    for errors in ({2: KeyboardInterrupt()}, {9: KeyboardInterrupt()}):
        toy = Toy(rate, errors)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", toy)
        stopped += toy.tried[:-1]  # the one that was stopped is tried again
    assert stopped + run("stopped", Toy(rate)) == whole
    assert len({rate(settings) for settings in whole}) == 14
    assert winner[0] == winner[1] == replace(SOFT, **_searched(max(whole, key=rate)))


def _searched(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("learning_rate", "weight_decay", "epochs", "tokens")}


def test_a_folder_in_the_way_is_refused_before_anything_is_trained(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(tune_search, "tune_together", never)
    with pytest.raises(TaskError, match="x: exists already"):
        search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_winner_that_is_there_is_not_learnt_again_nor_written_over(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    assert first.tuned is not None
    monkeypatch.setattr(tune_search, "tune_together", never)
    monkeypatch.setattr(tune_search, "tune_task", never)
    again = search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    assert again == replace(first, tuned=None)
    with pytest.raises(TaskError, match="x: exists already"):
        search(task, SOFT, 8, tmp_path / "x", 2, backend=backend(model))
    (tmp_path / "x").rename(tmp_path / "moved")
    (tmp_path / "x").mkdir()
    with pytest.raises(TaskError, match="x: exists already"):
        search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))


def test_the_command_goes_on_to_the_test_where_only_that_is_left(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "soft-prompt", "--tokens", "4", "--shots", "8", "--search", "1", "--out", "adapters/x"]
    words = ["tune", "tiny", *flags, "--model", str(model), "--precision", "fp32", "--device", "cpu"]

    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fewrec_prompt, "evaluate", interrupted)
        stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code != 0
    assert "held out" in stopped.output
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "adapters/x: holds what the best trial learnt" in done.output
    assert "complete pmi 0.5 + x" in done.output


# --- trials that come to nothing -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_fails_one_trial(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real, started = tune_search.tune_together, list[Settings]()

    def second_is_broken(lessons: Any, settings: Settings, **how: Any) -> Any:
        started.append(settings)
        with monkeypatch.context() as patch:
            if len(started) == 2:
                patch.setitem(LOSSES, "listwise", lambda scores, _relevant: scores.sum() * math.nan)
            return real(lessons, settings, **how)

    monkeypatch.setattr(tune_search, "tune_together", second_is_broken)
    base = backend(model)
    found = search(task, SOFT, 8, tmp_path / "x", 3, backend=base, say=said.append)
    assert (found.n_trials, found.n_failed) == (3, 1)
    assert any(line.startswith("trial 1 failed: pass 1, user ") for line in said)
    assert sum("held out " in line and line.startswith("trial ") for line in said) == 2


def test_a_failed_trial_leaves_the_model_as_it_answers(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: list[Settings]
) -> None:
    """Within a pass it drops out what its configuration says."""
    base = backend(model)
    monkeypatch.setitem(LOSSES, "listwise", lambda scores, _relevant: scores.sum() * math.nan)
    with pytest.raises(RunError):
        search(task, SOFT, 8, tmp_path / "x", 1, backend=base)
    assert not base.model.training


def test_adalora_with_too_few_steps_fails_those_trials_alone(
    task: tasks.Task, model: Path, tmp_path: Path, winner: list[Settings]
) -> None:
    """Six people in one step a pass, and 2 to 6 passes: it needs four steps."""
    said: list[str] = []
    settings = Settings("adalora", batch=8, seed=1)
    found = search(task, settings, 8, tmp_path / "x", 4, backend=backend(model), say=said.append)
    failed = [line for line in said if " failed: adalora plans its ranks over" in line]
    assert found.n_failed == len(failed)
    assert 0 < found.n_failed < 4
    assert len(winner[0].complete().passes) - 1 >= 4


def test_a_trial_without_a_metric_failed(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: list[Settings]
) -> None:
    values = iter((None, 0.25))
    monkeypatch.setattr(tune_search, "tune_together", Toy(lambda _: next(values)))
    found = search(task, SOFT, 8, tmp_path / "x", 2, backend=backend(model))
    assert (found.value, found.n_failed) == (0.25, 1)


def test_a_search_of_which_every_trial_failed_says_why(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {0: ModelError("too few steps"), 1: NumericError("it is nan"), 2: ModelError("too few steps")}
    monkeypatch.setattr(tune_search, "tune_together", Toy(rate, errors))
    for _ in range(2):  # asked again, it says so again
        with pytest.raises(RunError, match=r"x\.search: every trial failed: too few steps \(2 times\); it is nan\. "):
            search(task, SOFT, 8, tmp_path / "x", 3, backend=backend(model))


# --- what is better --------------------------------------------------------------------------------------------------


def test_trials_are_chosen_by_the_metric_that_training_stops_by(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: list[Settings]
) -> None:
    """Not by the task's first one, of which less may be better."""
    said: list[str] = []
    toy = Toy(rate)
    monkeypatch.setattr(tune_search, "tune_together", toy)
    judging = Options(metrics=("log-loss", "novelty@2", "MRR"), rows=(RowSettings(prompt="judge"),)).applied(task)
    found = search(judging, SOFT, 8, tmp_path / "x", 4, backend=backend(model), say=said.append)
    assert found.value == max(map(rate, toy.tried)) == winner[0].learning_rate
    assert all("MRR of 2 held out" in line for line in said if line.startswith("trial "))


def test_more_is_better_of_every_metric_that_training_stops_by() -> None:
    names = [re.sub(r"\[?@k\]?", "@3", name) for name in metric_names()]
    assert {name for name in names if better_of(name) == "less"}, "there are others"
    assert {better_of(metric_to_stop_by([name])) for name in names} == {"more"}


@pytest.mark.parametrize("change", ["model", "metric", "precision"])
def test_trials_over_another_model_or_metric_are_not_mixed_in(
    change: str,
    task: tasks.Task,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    winner: list[Settings],
) -> None:
    monkeypatch.setattr(tune_search, "tune_together", Toy(rate))
    search(task, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    other = {"model": Options(model="another"), "metric": Options(metrics=("MRR",))}.get(change, Options())
    numerics = Numerics("bf16" if change == "precision" else "auto")
    with pytest.raises(RunError, match="another search"):
        search(other.applied(task), SOFT, 8, tmp_path / "x", 2, numerics=numerics, backend=backend(model))
