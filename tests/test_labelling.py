"""A classifier from a task's people to a row of its table: labels, training, folder, command, a cell of the curve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
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
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, ModelError, NumericError, VerbalizerError
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
            "--search tries settings on the shots of one task, and tests the best; leave --from out",
        ),
        (["--method", "head", "--search", "2", "--test"], "tests the best; leave --test out"),
        (["--method", "mix", "--test"], "--test: means nothing without a classifier as --method"),
        (["--method", "lora", "--popularity"], "--popularity belongs to --method mix, not to 'lora'"),
    ],
)
def test_flags_of_other_methods_are_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tune", "tiny", "--method", "prototypes", "--out", str(tmp_path / "x"), *flags])
    assert isinstance(found.exception, FewrecError)
    assert says in str(found.exception)


@pytest.mark.parametrize("method", ["lora", "head-lora"])
def test_what_was_learnt_with_dropout_answers_without_it(
    method: str, task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    how = Settings(method, dropout=0.3, epochs=2, learning_rate=1e-2)  # type: ignore[arg-type]  # it is one
    tuned = tune_task(task, how, 4, tmp_path / "x", row=JUDGE, backend=backend(model))
    found = judging(task, model).adapted(tmp_path / "x")
    assert np.abs(scores(task, found) - scores(task, tuned.recommender)).max() < 1e-5
    assert np.array_equal(scores(task, found), scores(task, found))


def test_folders_from_before_are_listed_with_their_f1(
    made: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made["head"][0], tmp_path / "adapters" / "old"))

    def older(note: dict) -> None:
        about = note["about"]
        about["passes"] = [{"epoch": 0, "loss": 0.5, "held_out": {"loss": 0.4, "accuracy": 0.5, "f1": 0.25}}]
        about["best_epoch"] = 0

    resealed(folder, older)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["adapters", "list"]).stdout.splitlines()[1].endswith("F1 25.0")


def test_what_a_model_cannot_take_is_said_of_the_method_that_was_asked(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    rounded = causal.load(str(model), Numerics("bf16", "cpu"))
    with pytest.raises(ModelError, match=r"'head-full' changes .* or take head-lora"):
        tune_task(task, settings("head-full"), 4, tmp_path / "x", row=JUDGE, backend=rounded)


def in_two(model: Path, out: Path, *words: str) -> str:
    """What two processes say that learn together from the people of "tiny"."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fewrec_prompt.cli"]
    plain = ["tune", "tiny", "--model", str(model), "--prompt", "judge", "--shots", "4", "--out", str(out)]
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    flags = ["--precision", "fp32", "--device", "cpu"]
    done = subprocess.run([*launch, *plain, *words, *flags], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_write_prototypes_once(model: Path, tmp_path: Path) -> None:
    assert in_two(model, tmp_path / "x", "--method", "prototypes").count("use it") == 1


def test_two_processes_learn_the_head_that_one_learns(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """The words' head has no gradient, so nothing may change it: a decay would, where two add up nothing."""
    how = ["--method", "head-full", "--epochs", "2", "--batch", "2", "--weight-decay", "0.5"]
    assert in_two(model, tmp_path / "two", *how).count("use it") == 1
    alone = Settings("head-full", epochs=2, batch=2, weight_decay=0.5)
    tune_task(task, alone, 4, tmp_path / "one", row=JUDGE, backend=backend(model))
    one, two = (adapters.read(tmp_path / name).tensors for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert np.allclose(weights, two[name], atol=1e-5), name
    untouched = dict(backend(model).model.named_parameters())["lm_head.weight"]
    assert torch.equal(two["lm_head.weight"], untouched)
