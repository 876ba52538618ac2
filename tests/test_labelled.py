"""Classifiers from labelled data and ratings: measured after every pass, searched, tested, and the commands."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_labelling import backend, judging, scores, settings
from test_tracking import Notes
from typer.testing import CliRunner

from fewrec_prompt import tasks
from fewrec_prompt.cli import app
from fewrec_prompt.curve import curve
from fewrec_prompt.data.registered import add
from fewrec_prompt.errors import DataError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import adapters, states
from fewrec_prompt.tuning.classifiers import PREFIX

# --- labelled data and ratings ---------------------------------------------------------------------------------------

TITLES = (
    "The Godfather (1972)",
    "Heat (1995)",
    "Ronin (1998)",
    "Alien (1979)",
    "Up (2009)",
    "Amélie (2001)",
    "Brat (1997)",
)


@pytest.fixture
def labelled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tasks.Task:
    """Twenty people to choose on and four to test, who all like film 5 after two others and none of the rest."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(TITLES)))
    taken = "".join(f"u{user},{user % 7},{user % 5 + 1},{user}\n" for user in range(24))
    (folder / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + taken)
    for part, users in (("train", range(20)), ("test", range(20, 24))):
        targets = [5 if user % 2 else 6 for user in users]
        columns = {
            "user_id": [f"u{user}" for user in users],
            "history": [[str(user % 4), str((user + 1) % 4)] for user in users],
            "history_label": [[1, 0] for _ in users],
            "target": [str(target) for target in targets],
            "label": [int(target == 5) for target in targets],
        }
        pq.write_table(pa.table(columns), folder / f"rows-{part}.parquet")
    add("films", folder)
    data = 'dataset = "films"\nfile = "rows-{part}.parquet"\nform = "labelled"\n'
    (folder / "mine.toml").write_text(f'model = "{model}"\n[data]\n{data}[[rows]]\nprompt = "judge"\n')
    return tasks.load_task(folder / "mine.toml")


def test_labelled_people_are_measured_after_every_pass_and_the_best_stays(
    labelled: tasks.Task, model: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    tuned = tune_task(
        labelled, settings("head", epochs=12), 20, tmp_path / "x", backend=backend(model), say=told.append
    )
    assert adapters.read(tmp_path / "x").about["tasks"][labelled.name]["n_labels"] == 15
    held = [one.metric for one in tuned.passes]
    assert [one.epoch for one in tuned.passes] == list(range(len(held)))
    assert held[tuned.best_epoch] == min(held)
    assert tuned.passes[tuned.best_epoch].classes["f1"] == 1.0
    passes = [line for line in told if line.startswith("head pass")]
    assert len(passes) == len(held)
    for word in ("log-loss of 5 held out", "accuracy", "precision", "recall", "F1", "s left"):
        assert all(word in line for line in passes[1:])
    assert adapters.read(tmp_path / "x").about["passes"][-1]["judged"] == dict(tuned.passes[-1].judged)


def test_the_command_end_to_end(labelled: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, plain = CliRunner().invoke, ["--precision", "fp32", "--device", "cpu"]
    for method, more in (("head", ["--learning-rate", "0.01"]), ("prototypes", [])):
        flags = ["--method", method, "--shots", "20", "--out", f"adapters/{method}", *more]
        done = run(app, ["tune", str(labelled.path), *flags, *plain])
        assert done.exit_code == 0, done.output
        assert "held out accuracy 100.0, precision 100.0, recall 100.0, F1 100.0" in done.stdout
        assert f"use it   fewrec eval {labelled.path} --adapter adapters/{method}" in done.stdout
    listed = run(app, ["adapters", "list"]).stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["head", "head"], ["prototypes", "prototypes"]]
    assert all(line.endswith("F1 100.0") for line in listed[1:])
    shown = json.loads(run(app, ["adapters", "show", "adapters/prototypes"]).stdout)
    assert shown["weights"][PREFIX + "means"] == [2, 32]
    scored = run(
        app, ["eval", str(labelled.path), "--adapter", "adapters/head", "--out", "run", "--metric", "AUC", *plain]
    )
    assert scored.exit_code == 0, scored.output
    assert "judge + head" in scored.output


def rating_task(model: Path, tmp_path: Path) -> tasks.Task:
    """The last film before the answer, 4, has four stars of those who began with film 0, and two of the others."""
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(TITLES)))
    stars = {(user, 4): 2 + 2 * (user % 2 == 0) for user in range(12)}
    taken = [(user, item, stars.get((user, item), 3), at) for user in range(12)
             for at, item in enumerate((user % 2, 3, 4, 5))]  # fmt: skip
    lines = [f"u{user},{item},{rating},{at}" for user, item, rating, at in taken]
    (tmp_path / "taken.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *lines]) + "\n")
    data = 'items = "items.csv"\ninteractions = "taken.csv"\nusers = 4\ncandidates = 3\n'
    (tmp_path / "mine.toml").write_text(f'model = "{model}"\n[data]\n{data}[[rows]]\nprompt = "rate"\n')
    return tasks.load_task(tmp_path / "mine.toml")


def test_ratings_are_learnt_as_classes(model: Path, tmp_path: Path) -> None:
    task = rating_task(model, tmp_path)
    tuned = tune_task(task, settings("head"), 8, tmp_path / "x", backend=backend(model))
    assert adapters.read(tmp_path / "x").about["tasks"][task.name]["n_labels"] == 8, "one of each person"
    assert tuned.learned
    found = judging(task, model, RowSettings(prompt="rate")).adapted(tmp_path / "x")
    assert np.abs(scores(task, found) - scores(task, tuned.recommender)).max() < 1e-5
    assert ((scores(task, found) > 1) & (scores(task, found) < 5)).all()


def test_settings_of_a_head_are_searched_and_the_best_is_tested_once(
    labelled: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    real = states.states_of
    monkeypatch.setattr(
        states, "states_of", lambda own, people: asked.extend(one.query.user_id for one in people) or real(own, people)
    )
    flags = ["--method", "head", "--shots", "20", "--out", "adapters/x", "--search", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, ["tune", str(labelled.path), *flags, "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    assert {*Counter(asked).values()} == {2}, "each person's states once for all trials, and once for the winner"
    assert "search   2 trials" in done.stdout
    assert "judge + x" in done.stdout
    tried = [line for line in done.output.splitlines() if line.startswith("trial ")]
    losses = [float(line.split("held out ")[1].split()[0]) for line in tried]
    best = adapters.read(tmp_path / "adapters" / "x").about
    assert best["passes"][best["best_epoch"]]["metric"] == pytest.approx(min(losses), rel=0.01)


def test_the_people_who_are_tested_are_judged_as_an_evaluation_judges_them(
    labelled: tasks.Task, model: Path, tmp_path: Path
) -> None:
    tuned = tune_task(labelled, settings("head", epochs=1), 20, tmp_path / "x", backend=backend(model), test=True)
    found = tuned.tested[labelled.name]
    assert adapters.read(tmp_path / "x").about["tested"] == {labelled.name: {"log-loss": found.value, **found.judged}}
    names = ("log-loss", "yes-accuracy", "yes-precision", "yes-recall", "yes-F1")
    run = evaluate(
        labelled, Options(adapters=(tmp_path / "x",), metrics=names), out=tmp_path / "run", backend=backend(model)
    )
    values = {name: run.rows[-1]["metrics"][name]["value"] for name in names}
    assert [values[name] for name in names] == pytest.approx([found.value, *found.judged.values()], abs=1e-5)


def test_ratings_of_people_who_are_tested_are_told_as_classes(tmp_path: Path, model: Path) -> None:
    task = rating_task(model, tmp_path)
    tuned = tune_task(task, settings("head"), 8, tmp_path / "x", backend=backend(model), test=True)
    assert set(tuned.tested[task.name].judged) == {"accuracy", "precision", "recall", "f1"}
    assert tuned.tested[task.name].value < tuned.zero_shot_loss


def test_the_command_says_how_right_it_is_on_people_who_are_tested(
    labelled: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "prototypes", "--shots", "20", "--out", "x", "--test", "--precision", "fp32"]
    done = CliRunner().invoke(app, ["tune", str(labelled.path), *flags])
    assert done.exit_code == 0, done.output
    assert "4 people who are tested are judged, once" in done.output
    assert "accuracy 100.0, precision 100.0, recall 100.0, F1 100.0" in done.stdout.split("tested   log-loss ")[1]
    found = CliRunner().invoke(app, ["tune", "tiny", "--method", "lora", "--out", "y", "--test"])
    assert "--test: means nothing without a classifier as --method" in str(found.exception)


def test_a_second_round_is_held_against_the_first(
    labelled: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ["--method", "head", "--epochs", "2", "--precision", "fp32", "--held-out", "0"]
    first = CliRunner().invoke(app, ["tune", str(labelled.path), "--shots", "8", "--out", "a", *plain])
    again = CliRunner().invoke(app, ["tune", str(labelled.path), "--shots", "8", "--out", "b", "--from", "a", *plain])
    assert again.exit_code == 0, again.output
    assert "without a look at the item" in first.stdout
    assert "without a look" not in again.stdout
    assert "earlier  loss of the earlier round's people" in again.stdout


def test_prototypes_are_told_of_as_other_methods_are(labelled: tasks.Task, model: Path, tmp_path: Path) -> None:
    notes, told = Notes(), []
    how: dict = {"backend": backend(model), "track": [notes], "say": told.append}
    tuned = tune_task(labelled, settings("prototypes"), 20, tmp_path / "x", **how)
    assert [step for step, _ in notes.told] == [0, 1]
    assert notes.told[1][1]["held_out/f1"] == 1.0
    assert notes.done
    (line,) = [line for line in told if line.startswith("prototypes pass 1: loss ")]
    assert f"log-loss of 5 held out {tuned.passes[1].metric:.3g} (accuracy 100.0" in line


def test_a_curve_looks_for_every_class_before_it_runs(model: Path, tmp_path: Path) -> None:
    task = rating_task(model, tmp_path)
    with pytest.raises(DataError, match="of 5 has no example"):
        curve(task, ["prototypes"], [4], 1, tmp_path / "curve", row=RowSettings(prompt="rate"), backend=backend(model))
    assert not (tmp_path / "curve").exists()


def test_a_metric_that_nobody_has_is_a_dash(labelled: tasks.Task, model: Path, tmp_path: Path) -> None:
    """Each person has one question, so there is no AUC of any."""
    metrics = ("pooled-AUC", "user-AUC")
    lines = curve(labelled, ["prototypes"], [20], 1, tmp_path / "c", metrics=metrics, backend=backend(model))
    assert {line.metric: line.n_people for line in lines}["user-AUC"] == 0
    told = json.loads((tmp_path / "c" / "curve.json").read_text())["lines"]
    assert [one["value"] for one in told if one["metric"] == "user-AUC"] == [None, None]
    page = (tmp_path / "c" / "curve.html").read_text()
    assert "nan" not in page
    assert page.count("<svg") == 1
