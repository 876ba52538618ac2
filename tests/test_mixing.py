"""A mix from a task's people to a row of the table: learnt, kept, bound to its rows, and read from what they logged."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from _tiny import save_model
from typer.testing import CliRunner

from fewrec_prompt.backends import causal
from fewrec_prompt.checked import check
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError, TaskError
from fewrec_prompt.evaluation import Options, evaluate, members_of
from fewrec_prompt.mixing import tune_mix
from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
from fewrec_prompt.tasks import load_task
from fewrec_prompt.tuning import mixed

PMI, JUDGE = RowSettings(prompt="complete", calibrate="pmi", alpha=0.5), RowSettings(prompt="judge")
NAME = "complete pmi 0.5 + judge mix learnt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backend(folder: Path):
    return causal.load(str(folder))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, backend):
    """A mix over two rows and popularity, learnt from three people who are not tested."""
    out = tmp_path_factory.mktemp("mixes") / "learnt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent.parent)
        made = tune_mix("eval/tiny.toml", 3, out, rows=(PMI, JUDGE), popularity=True, backend=backend)
    return out, made


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


def test_a_mix_names_its_features_by_the_rows_of_the_table(learnt):
    _, made = learnt
    rows = "complete pmi 0.5 sum", "complete pmi 0.5 mean", "complete pmi 0.5 tokens", "complete pmi 0.5 twin"
    assert made.names == (*rows, "judge score", "popularity")
    assert made.n_users == 3


def test_an_adapter_that_is_a_mix_becomes_a_row_beside_those_it_reads(tmp_path: Path, learnt, backend) -> None:
    out, made = learnt
    run = evaluate("eval/tiny.toml", Options(adapters=(out,)), out=tmp_path / "run", backend=backend)

    assert [row["name"] for row in run.rows][-3:] == ["complete pmi 0.5", "judge", NAME]
    assert run.record["adapters"][NAME]["method"] == "mix"
    assert run.record["settings"]["ensembles"][0]["mix"] == str(out)
    lines = pq.read_table(run.folder / "rankings.parquet").to_pylist()
    scores = {(one["user_id"], one["item_id"]): one["score"] for one in lines if one["row"] == NAME}
    checked = check(Options(rows=(PMI, JUDGE)).applied(load_task("eval/tiny.toml")))
    rows = {row.name: row.recommender for row in checked.rows(backend)}
    ranker = mixed.MixRecommender(rows, made, checked.queries.popularity)
    for query in checked.queries.queries:
        ranking = ranker.rank(query)
        expected = dict(zip(ranking.item_ids, ranking.scores, strict=True))
        assert {item: scores[query.user_id, item] for item in expected} == pytest.approx(expected, abs=1e-9)


def test_a_mix_comes_back_from_its_folder_as_it_was(learnt, backend) -> None:
    out, made = learnt
    checked = check(Options(rows=(PMI, JUDGE)).applied(load_task("eval/tiny.toml")))
    rows = {row.name: row.recommender for row in checked.rows(backend)}
    again, about = mixed.load(out, rows)
    assert again == made
    assert about["forced"] == []
    assert [row.prompt for row in members_of(out)] == ["complete", "judge"]


def test_a_mix_of_other_rows_is_refused_by_name(learnt, backend, tmp_path: Path) -> None:
    out, _ = learnt
    other = EnsembleSettings(members=(PMI,), mix=str(out))
    with pytest.raises(AdapterError, match=r"is a mix of complete pmi 0.5, judge, and not of complete pmi 0.5"):
        evaluate("eval/tiny.toml", Options(ensembles=(other,)), out=tmp_path / "run", backend=backend)


def test_a_mix_of_another_model_is_refused_by_name(learnt, tmp_path: Path) -> None:
    out, _ = learnt
    other = causal.load(str(save_model(tmp_path / "other", hidden_size=64)))
    with pytest.raises(AdapterError, match=r"was learnt with something else than it is to be used with: .*weights was"):
        evaluate("eval/tiny.toml", Options(adapters=(out,)), out=tmp_path / "run", backend=other)


def test_what_is_there_already_is_not_written_over(learnt, backend) -> None:
    out, _ = learnt
    with pytest.raises(TaskError, match="exists already"):
        tune_mix("eval/tiny.toml", 3, out, backend=backend)


def test_the_command_says_what_was_learnt_and_how_to_use_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix"
    command = ["tune", "eval/tiny.toml", "--method", "mix", "--shots", "3", "--model", str(folder), "--out", str(out)]

    found = CliRunner().invoke(app, command)

    assert found.exit_code == 0, found.output
    assert "complete pmi 0.5 twin" in found.output
    assert f"fewrec eval eval/tiny.toml --adapter {out}" in found.output
    assert json.loads((out / "fewrec.json").read_text())["method"] == "mix"
    listed = CliRunner().invoke(app, ["adapters", "list", str(tmp_path)])
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[1].split()[:3] == ["mix", "mix", "tiny"]


def test_popularity_belongs_to_a_mix() -> None:
    found = CliRunner().invoke(app, ["tune", "eval/tiny.toml", "--method", "lora", "--popularity", "--out", "x"])
    assert "--popularity belongs to --method mix" in str(found.exception or found.output)
