"""A classifier from a task's people to a row of its table: labels, training, folder, command, a cell of the curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _tiny import save_model
from safetensors.torch import load_file, save_file
from test_adapters import resealed
from typer.testing import CliRunner

from fewrec_prompt import tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cells import read_cell
from fewrec_prompt.cli import app
from fewrec_prompt.curve import curve
from fewrec_prompt.data.registered import add
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, NumericError, VerbalizerError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.few_shot import recommender_of, tune_task
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.adapters import NOTE, WEIGHTS
from fewrec_prompt.tuning.classifiers import PREFIX
from fewrec_prompt.tuning.classifying import labels_of
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.placing import adapted, merge
from fewrec_prompt.tuning.settings import CLASSIFIERS, Settings

METHODS = tuple(CLASSIFIERS)
HEADS = METHODS[:-1]
JUDGE = RowSettings(prompt="judge")
RATES = {"head": 1e-2, "head-lora": 1e-2, "head-full": 1e-3, "prototypes": 1e-2}


@pytest.fixture(scope="module")
def task(model: Path) -> tasks.Task:
    return Options(model=str(model)).applied(tasks.load_task("tiny"))


def backend(model: Path) -> causal.CausalBackend:
    return causal.load(str(model), Numerics("fp32", "cpu"))


def judging(task: tasks.Task, model: Path, row: RowSettings = JUDGE) -> Recommender:
    return recommender_of(task, row, backend(model))


def scores(task: tasks.Task, recommender: Recommender) -> np.ndarray:
    queries = tasks.load_queries(task).queries
    return np.array([recommender.scores(recommender.answers(query)) for query in queries])


def settings(method: str, **changes: object) -> Settings:
    return Settings.shared(method, {"learning_rate": RATES[method], "epochs": 6, "rank": 2} | changes)


@pytest.fixture(scope="module")
def made(task: tasks.Task, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tuned]]:
    """A folder of every classifier, learnt from four people, and what was in memory when it was written."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: (
            folder / name,
            tune_task(task, settings(name), 4, folder / name, row=JUDGE, backend=backend(model)),
        )
        for name in METHODS
    }


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", HEADS)
def test_the_loss_falls_below_that_of_who_looks_at_no_item(method: str, made: dict) -> None:
    tuned = made[method][1]
    assert tuned.passes[-1].loss < tuned.passes[1].loss
    assert tuned.learned
    assert tuned.zero_shot_loss == tuned.passes[0].loss


def test_labels_are_of_people_who_are_not_tested_and_all_their_candidates(task: tasks.Task, model: Path) -> None:
    shots = shots_of(task, 4)
    found = [label for one in shots.learnt for label in labels_of(judging(task, model), one)]
    assert not {one.query.person for one in found} & {query.person for query in tasks.load_queries(task).queries}
    assert {(one.query.user_id, one.item.id): one.label for one in found} == {
        (query.user_id, item.id): int(item.id in shots.queries.qrels[query.user_id])
        for query in (one.query for one in shots.learnt)
        for item in query.candidates
    }


def test_the_same_seed_gives_the_same_head(task: tasks.Task, model: Path, made: dict, tmp_path: Path) -> None:
    again = tune_task(task, settings("head"), 4, tmp_path / "again", row=JUDGE, backend=backend(model))
    for name, values in made["head"][1].learner.export().items():
        assert torch.equal(values, again.learner.export()[name])


def test_a_folder_says_how_many_labels_it_was_learnt_from(made: dict) -> None:
    assert adapters.read(made["head"][0]).about["tasks"]["tiny"]["n_labels"] == 4 * 6


# --- kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_scores_as_it_did(method: str, task: tasks.Task, model: Path, made: dict) -> None:
    folder, tuned = made[method]
    start = judging(task, model)
    untuned, learnt = scores(task, start), scores(task, tuned.recommender)
    found = adapted(start, folder)
    assert np.abs(scores(task, found.recommender) - learnt).max() < 1e-5
    assert np.array_equal(scores(task, start), untuned)
    assert np.abs(untuned - learnt).max() > 1e-3
    assert found.apart < 1e-5
    assert len(found.adapter.probes["tiny"]) == adapters.N_PROBES


def test_a_recommender_is_loaded_with_it(task: tasks.Task, model: Path, made: dict) -> None:
    folder, tuned = made["head-lora"]
    found = Recommender.load(
        str(model), prompt="judge", domain=task.domain, precision="fp32", device="cpu", adapter=folder
    )
    assert np.abs(scores(task, found) - scores(task, tuned.recommender)).max() < 1e-5


def test_head_and_adapters_answer_in_turn_on_one_model(task: tasks.Task, model: Path, made: dict) -> None:
    start = judging(task, model)
    untuned = scores(task, start)
    several = {name: start.adapted(made[name][0]) for name in ("head", "head-lora", "prototypes")}
    for name in ("head-lora", "head", "prototypes", "head-lora"):
        assert np.abs(scores(task, several[name]) - scores(task, made[name][1].recommender)).max() < 1e-5
        assert np.array_equal(scores(task, start), untuned)


def test_nothing_but_numbers_is_kept(made: dict) -> None:
    names = {path.name for path in made["head"][0].iterdir()}
    assert names == {WEIGHTS, NOTE}
    assert set(load_file(made["head"][0] / WEIGHTS)) == {
        PREFIX + name for name in ("weights", "bias", "centre", "spread")
    }
    note = json.loads((made["head-lora"][0] / NOTE).read_text())
    assert note["bound"]["tiny"]["template"]["name"] == "judge"
    assert note["about"]["settings"]["method"] == "head-lora"


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_folder_is_refused_by_name(method: str, made: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[method][0], tmp_path / "x"))
    whole = bytearray((folder / WEIGHTS).read_bytes())
    whole[-1] ^= 1
    (folder / WEIGHTS).write_bytes(whole)
    with pytest.raises(AdapterError, match=rf"x/{WEIGHTS}: was changed since it was written"):
        adapters.read(folder)


def test_another_row_or_model_is_refused_by_name(task: tasks.Task, model: Path, made: dict, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"with something else .*labels was .*template was .*verbalizer was"):
        judging(task, model, RowSettings(prompt="rate")).adapted(made["head"][0])
    other = save_model(tmp_path / "other", hidden_size=64, max_position_embeddings=512)
    with pytest.raises(AdapterError, match=r"with something else .*weights was"):
        judging(task, other).adapted(made["head"][0])


CONTENTS = {
    "a missing array": (
        lambda tensors: tensors.pop(PREFIX + "bias"),
        r"'classifier.bias' is missing; a classifier of 2",
    ),
    "one too many": (lambda tensors: tensors.update(more=torch.ones(2)), r"'more' is \(2,\); a .* has none"),
    "another shape": (
        lambda tensors: tensors.update({PREFIX + "weights": torch.ones(3, 32)}),
        r"'classifier.weights' is \(3, 32\); a classifier of 2 classes over this model has \(2, 32\)",
    ),
    "other numbers": (lambda tensors: tensors[PREFIX + "weights"].mul_(-3), "other scores"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_wrong_contents_are_refused_under_a_good_seal(
    what: str, task: tasks.Task, model: Path, made: dict, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["head"][0], tmp_path / "x"))
    change, message = CONTENTS[what]
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    resealed(folder, lambda note: None)
    with pytest.raises(AdapterError, match=message):
        judging(task, model).adapted(folder)


def test_shares_that_are_not_finite_are_refused(task: tasks.Task, model: Path, made: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["head"][0], tmp_path / "x"))
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {PREFIX + "spread": torch.zeros(32)}, folder / WEIGHTS)
    resealed(folder, lambda note: None)
    with pytest.raises(NumericError, match="not finite"):
        judging(task, model).adapted(folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_not_merged(method: str, task: tasks.Task, model: Path, made: dict, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=f"what '{method}' learnt stands before or behind the model.*cannot be merged"
    ):
        merge(judging(task, model), made[method][0], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --- from the task to the table --------------------------------------------------------------------------------------


def test_it_becomes_a_row_beside_the_one_it_was_learnt_from(
    task: tasks.Task, model: Path, made: dict, tmp_path: Path
) -> None:
    folder, tuned = made["head"]
    run = evaluate(task, Options(adapters=(folder,)), out=tmp_path / "run", backend=backend(model))
    assert [row["name"] for row in run.rows][-2:] == ["judge", "judge + head"]
    assert run.record["adapters"]["judge + head"]["method"] == "head"
    lines = pq.read_table(run.folder / "rankings.parquet").to_pylist()
    found = {(one["user_id"], one["item_id"]): one["score"] for one in lines if one["row"] == "judge + head"}
    for query in tasks.load_queries(task).queries:
        ranking = tuned.recommender.rank(query)
        for item_id, score in zip(ranking.item_ids, ranking.scores, strict=True):
            assert found[query.user_id, item_id] == pytest.approx(score, abs=1e-5)


def test_a_calibration_is_left_out_and_the_first_row_that_judges_is_taken(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    rows = (RowSettings(prompt="complete"), RowSettings(prompt="judge", calibrate="pmi", alpha=0.5))
    two = Options(rows=rows).applied(task)
    tune_task(two, settings("prototypes"), 4, tmp_path / "x", backend=backend(model))
    row = adapters.read(tmp_path / "x").about["tasks"][two.name]["row"]
    assert (row["prompt"], row["calibrate"], row["alpha"]) == ("judge", "none", None)


def test_a_cell_of_the_curve(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    row, methods = RowSettings(prompt="judge", calibrate="pmi"), ["head", "head-full", "prototypes"]
    how = {"epochs": 2, "held_out": 0.0}
    lines = curve(task, methods, [4], 1, tmp_path, row=row, settings=how, backend=backend(model))
    assert [line.method for line in lines] == ["zero", *methods]
    cell = read_cell(tmp_path / "cells" / "head-4-0.json")
    assert cell.n_weights == 2 * 32 + 2
    before = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert curve(task, methods, [4], 1, tmp_path, row=row, settings=how, backend=backend(model)) == lines
    assert {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == before


def test_a_curve_over_another_kind_of_row_is_refused_before_it_runs(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(VerbalizerError, match="name one, such as --prompt judge"):
        curve(task, ["mix", "head"], [2], 1, tmp_path / "curve", backend=backend(model))
    assert not (tmp_path / "curve").exists()


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


def test_people_without_ratings_are_refused_by_name(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nobody has rated an item after another one; learn from likes"):
        tune_task(task, settings("head"), 4, tmp_path / "x", row=RowSettings(prompt="rate"), backend=backend(model))
    assert not (tmp_path / "x").exists()


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["complete", "choose", "channel", "pairwise"])
def test_a_row_of_another_kind_is_refused_before_a_model_is_loaded(prompt: str, tmp_path: Path) -> None:
    nowhere = Options(model=str(tmp_path / "none")).applied(tasks.load_task("tiny"))
    with pytest.raises(VerbalizerError, match=r"takes a template of kind 'judge' or 'rate', not .* --prompt judge"):
        tune_task(nowhere, settings("head"), 4, tmp_path / "x", row=RowSettings(prompt=prompt))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--search", "2"], "'prototypes' are one look at the shots, without passes; leave --search out"),
        (["--from", "x"], "leave --from out"),
        (["--search", "2", "--track", "mlflow"], "leave --search, --track out"),
        (["--method", "mix", "--track", "mlflow"], "'mix' learns from the shots of one task alone; leave --track out"),
        (
            ["--method", "lora", "--search", "2", "--from", "x"],
            "--search tries settings on the shots of one task; leave --from out",
        ),
        (["--method", "lora", "--popularity"], "--popularity belongs to --method mix, not to 'lora'"),
    ],
)
def test_flags_of_other_methods_are_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tune", "tiny", "--method", "prototypes", "--out", str(tmp_path / "x"), *flags])
    assert isinstance(found.exception, FewrecError)
    assert says in str(found.exception)


def test_settings_of_a_head_are_searched_and_the_best_is_tested_once(
    labelled: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "head", "--shots", "20", "--out", "adapters/x", "--search", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, ["tune", str(labelled.path), *flags, "--precision", "fp32"])
    assert done.exit_code == 0, done.output
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
