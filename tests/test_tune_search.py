"""A search for how to learn: on people held out, from where it stopped, and never over the test users."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_few_shot import backend

from fewrec_prompt import tasks, tune_search
from fewrec_prompt.errors import DataError, RunError
from fewrec_prompt.evaluation import Options
from fewrec_prompt.tune_search import search
from fewrec_prompt.tuning import adapters, examples
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
    assert found.n_trials == 3
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
