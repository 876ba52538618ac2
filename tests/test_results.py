"""The page of results: every shipped task accounted for, tables from runs, and commands that would make them again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from test_evaluation import PLAIN, PMI, WordyBackend, tiny
from typer.testing import CliRunner

from fewrec_prompt import cli, evaluation, tasks
from fewrec_prompt.errors import TaskError
from fewrec_prompt.evaluation import evaluate
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.task_settings import RowSettings

ROOT = Path(__file__).resolve().parent.parent
OTHERS = (
    "amazon-office",
    "lastfm",
    "llamarec-ml-latest-small",
    "llmrank-ml-1m",
    "mind",
    "movielens-100k",
    "nir-ml-100k",
)
NOT_RUN = dict.fromkeys((*OTHERS, "tallrec-movie", "tallrec-movie-valid"), "no data")


@pytest.fixture(scope="module")
def results() -> Any:
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_of(out: Path, *rows: RowSettings, **changes: Any) -> FinishedRun:
    return FinishedRun(evaluate(tiny(*rows, **changes), out=out, backend=WordyBackend()).folder)


def test_a_table_has_every_row_with_intervals_time_and_users(tmp_path: Path, results: Any) -> None:
    run = run_of(tmp_path / "run", metrics=("nDCG@10", "popularity-lift@2"))
    text = results.page([run], NOT_RUN, "a processor")

    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| row | nDCG@10 | popularity-lift@2 | ms/user | users |"
    one = run.rows["popularity"]["metrics"]["nDCG@10"]
    wanted = "{value:.1f} ({low:.1f}–{high:.1f})".format(**{name: 100 * value for name, value in one.items()})
    assert lines[3].startswith(f"| popularity | {wanted} | ")
    assert lines[3].endswith(" | – | 6 |")
    assert len(lines) == 2 + len(run.rows)
    assert "fp32 on a processor" in text
    assert "## mind\n\nNot run: no data.\n" in text


def test_runs_of_one_task_stand_under_one_heading(tmp_path: Path, results: Any) -> None:
    runs = [run_of(tmp_path / name, row, baselines=()) for name, row in (("a", PLAIN), ("b", PMI))]
    text = results.page(runs, NOT_RUN, "")
    assert text.count("## tiny\n") == 1
    assert text.count("| row | ") == 2
    assert [text.count(f"| {name} |") for run in runs for name in run.rows] == [1, 1]


def test_a_shipped_task_without_run_or_reason_is_an_error(results: Any) -> None:
    with pytest.raises(TaskError, match="mind: no finished run, and no reason"):
        results.page([], {name: why for name, why in NOT_RUN.items() if name != "mind"}, "")


def test_published_rows_stand_in_the_table_of_their_protocol_alone(tmp_path: Path, results: Any) -> None:
    settings = tasks.load_task("nir-ml-100k").settings.model_dump(mode="json")
    record = dict(run_of(tmp_path / "run", metrics=("HR@10",)).record) | {"task": "nir-ml-100k"}
    changed = record | {"settings": record["settings"] | {"data": settings["data"]}}
    (tmp_path / "run" / "run.json").touch()
    with_them = results._table(FinishedRun(tmp_path / "run", changed), "")
    assert "| NIR (text-davinci-003) * | 12.09 | – | 943 |" in with_them
    assert "arXiv 2304.03153" in with_them
    assert "NIR (text" not in results._table(FinishedRun(tmp_path / "run", record), "")


CHANGES: dict[str, tuple[tuple[RowSettings, ...], dict[str, Any]]] = {
    "the task as it is": ((), {}),
    "rows, a weight of its own, baselines": (
        tuple(
            RowSettings(prompt=prompt, calibrate=name, alpha=alpha)
            for prompt in ("complete", "choose")
            for name, alpha in (("none", None), ("pmi", 0.3))
        ),
        {"baselines": ("random", "last-bm25"), "users": 4, "seed": 7},
    ),
    "calibrations with the weight that each has": (
        tuple(
            RowSettings(prompt=prompt, calibrate=name)
            for prompt in ("complete", "choose")
            for name in ("none", "pmi", "batch")
        ),
        {},
    ),
    "metrics": ((PLAIN,), {"metrics": ("MRR", "HR@2")}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_command_of_a_run_makes_the_same_run(
    tmp_path: Path, results: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows, changes = CHANGES[name]
    run = run_of(tmp_path / "a", *rows, **changes)
    words = results.command(run.record)
    monkeypatch.setattr(evaluation, "choice", type("Stub", (), {"load": lambda *_, **__: WordyBackend()}))
    done = CliRunner().invoke(cli.app, [*words[1:], "--out", str(tmp_path / "b"), "--no-cache"])
    assert done.exit_code == 0, done.output
    assert FinishedRun(tmp_path / "b").header == run.header


def test_rows_that_no_command_makes_are_said_so(tmp_path: Path, results: Any) -> None:
    run = run_of(tmp_path / "run", PLAIN, PMI, RowSettings(prompt="choose"))
    with pytest.raises(TaskError, match="no command of plain prompts and calibrations makes the rows"):
        results.command(run.record)


def test_a_folder_without_a_finished_run_is_left_out_and_said(
    tmp_path: Path, results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", PLAIN)
    assert [one.folder for one in results._finished([tmp_path, run.folder])] == [run.folder]
    assert capsys.readouterr().err == f"left out: {tmp_path}, no finished run\n"
