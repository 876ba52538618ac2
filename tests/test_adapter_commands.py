"""`fewrec adapters merge`, as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_few_shot import LORA, backend
from typer.testing import CliRunner, Result

from fewrec_prompt import tasks
from fewrec_prompt.backends import causal, precision
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError
from fewrec_prompt.few_shot import default_row, recommender_of, shots_of, tune_task
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.placing import adapted
from fewrec_prompt.tuning.settings import Settings


def run(*words: str | Path) -> Result:
    """The command, with whatever it raises."""
    done = CliRunner().invoke(app, ["adapters", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def merged(model: Path, folder: Path, out: Path) -> Result:
    return run("merge", folder, "--out", out, "--model", model, "--device", "cpu")


@pytest.mark.parametrize("row", [RowSettings(prompt="complete"), RowSettings(prompt="choose", orders=2)])
def test_a_merged_model_scores_as_base_and_adapter(
    row: RowSettings, task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    """Also where the row asks more orders than its verbalizer: the adapter is bound to them."""
    tune_task(task, LORA, 3, tmp_path / "a", row=row, backend=backend(model))
    done = merged(model, tmp_path / "a", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert f"model    {tmp_path / 'merged'}" in done.stdout
    assert "was learnt in" not in done.output
    query = shots_of(task, 3).learnt[0].query
    one = recommender_of(task, row, backend(model)).adapted(tmp_path / "a")
    two = recommender_of(task, row, backend(tmp_path / "merged"))
    assert two.scores(two.answers(query)) == pytest.approx(one.scores(one.answers(query)), abs=1e-4)


def test_an_adapter_learnt_in_bf16_is_merged_into_fp32_and_it_is_said(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    if why := precision._missing("bf16", "cpu"):
        pytest.skip(f"this machine cannot: {why}")
    learner = causal.load(str(model), Numerics("bf16", "cpu"))
    tuned = tune_task(task, LORA, 3, tmp_path / "a", backend=learner)
    done = merged(model, tmp_path / "a", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "a: was learnt in bf16 and is merged into fp32, so its scores will be a little different" in done.stderr
    query = tuned.lessons[0].examples[0].query
    row = default_row(task)
    one = adapted(recommender_of(task, row, backend(model)), tmp_path / "a", force=True).recommender
    two = recommender_of(task, row, backend(tmp_path / "merged"))
    assert two.scores(two.answers(query)) == pytest.approx(one.scores(one.answers(query)), abs=1e-4)


def test_what_cannot_be_merged_is_an_error_and_nothing_is_written(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    settings = Settings("soft-prompt", tokens=4, epochs=1)
    tune_task(task, settings, 3, tmp_path / "a", backend=backend(model))
    with pytest.raises(AdapterError, match="what 'soft-prompt' learnt stands before or behind the model"):
        merged(model, tmp_path / "a", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
