"""A mix from a task's people to a row of the table: learnt, kept, bound to its rows, and read from what they logged."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from _tiny import save_model
from typer.testing import CliRunner

from fewrec_prompt.backends import causal
from fewrec_prompt.checked import check
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, TaskError
from fewrec_prompt.evaluation import Options, evaluate, members_of
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.mixing import tune_mix
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
from fewrec_prompt.tasks import load_task
from fewrec_prompt.tuning import adapters, mixed
from fewrec_prompt.tuning.mix import Mix
from fewrec_prompt.tuning.settings import Settings

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


def test_a_mix_is_no_adapter_of_one_recommender(learnt, folder: Path) -> None:
    with pytest.raises(AdapterError, match="learnt: is a mix of rows, and no row itself; use it by fewrec eval"):
        Recommender.load(str(folder), prompt="complete", adapter=learnt[0])
    with pytest.raises(AdapterError, match="learnt: is a mix of rows, and no part of one; use it by fewrec eval"):
        Recommender.load(str(folder), prompt="complete").adapted(learnt[0])


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
    assert "item effect" in found.output
    assert (
        f"items    {len(json.loads((out / 'fewrec.json').read_text())['about']['mix']['effects'])} have an effect"
        in found.output
    )
    assert f"fewrec eval eval/tiny.toml --adapter {out}" in found.output
    assert json.loads((out / "fewrec.json").read_text())["method"] == "mix"
    shown = CliRunner().invoke(app, ["adapters", "show", str(out)])
    assert re.fullmatch(r"of \d+ items", json.loads(shown.stdout)["about"]["mix"]["effects"]), "and not each of them"
    listed = CliRunner().invoke(app, ["adapters", "list", str(tmp_path)])
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[1].split()[:3] == ["mix", "mix", "tiny"]


def test_a_note_that_could_not_be_read_again_is_not_written(
    backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "LARGEST_NOTE", 500)
    with pytest.raises(AdapterError, match="its note would be larger than 500 bytes"):
        tune_mix("eval/tiny.toml", 3, tmp_path / "mix", backend=backend)
    assert not any(tmp_path.iterdir())


def test_a_mix_that_lost_its_effects_is_refused(backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every item would be as good as one that nobody took."""
    real = Mix.to_tensors
    monkeypatch.setattr(Mix, "to_tensors", lambda self: real(replace(self, effects={})))
    tune_mix("eval/tiny.toml", 3, tmp_path / "mix", backend=backend)
    with pytest.raises(AdapterError, match="mix: weighs item effects, and knows none"):
        evaluate("eval/tiny.toml", Options(adapters=(tmp_path / "mix",)), out=tmp_path / "run", backend=backend)


def test_popularity_belongs_to_a_mix() -> None:
    found = CliRunner().invoke(app, ["tune", "eval/tiny.toml", "--method", "lora", "--popularity", "--out", "x"])
    assert "--popularity belongs to --method mix" in str(found.exception or found.output)


def test_a_mix_over_an_adapter_learns_from_others_and_carries_it(backend, tmp_path: Path) -> None:
    """Nobody whom the adapter knows is learnt from, and the folder is whole after the adapter itself is gone."""
    films, out = tmp_path / "films", tmp_path / "mix"
    settings = Settings("lora", epochs=1, held_out=0.0)
    tune_task("eval/tiny.toml", settings, 3, films, row=PMI, backend=backend)
    row = PMI.model_copy(update={"adapter": f"{films}/"})  # as a shell completes it
    made = tune_mix("eval/tiny.toml", 3, out, rows=(row,), popularity=True, backend=backend)
    assert made.names[0] == "complete pmi 0.5 + films sum"
    of_mix, of_adapter = adapters.learnt_from(out)
    assert not {*of_mix["people"]} & {*of_adapter["people"]}
    assert len(of_mix["people"]) == len(of_adapter["people"]) == 3

    shutil.rmtree(films)
    moved = tmp_path / "moved"
    out.rename(moved)
    run = evaluate("eval/tiny.toml", Options(adapters=(moved,)), out=tmp_path / "run", backend=backend)
    base, adapted = "complete pmi 0.5", "complete pmi 0.5 + films"
    assert [one["name"] for one in run.rows][-3:] == [base, adapted, f"{adapted} mix moved"]

    everybody = len(shots_of(load_task("eval/tiny.toml"), 1).queries.queries)
    row = PMI.model_copy(update={"adapter": str(moved / "rows" / "0" / "films")})
    with pytest.raises(DataError, match=rf"{everybody} shots .* are {everybody - 3} people \(3 more are known"):
        tune_mix("eval/tiny.toml", everybody, tmp_path / "more", rows=(row,), backend=backend)


def test_a_classifier_has_nothing_that_a_mix_could_weigh(backend, tmp_path: Path) -> None:
    judge = RowSettings(prompt="judge")
    tune_task(load_task("eval/tiny.toml"), Settings("prototypes"), 3, tmp_path / "p", row=judge, backend=backend)
    with pytest.raises(AdapterError, match=r"p: holds a classifier \(prototypes\), which has no log-probabilities"):
        tune_mix("eval/tiny.toml", 3, tmp_path / "m", rows=(judge.model_copy(update={"adapter": str(tmp_path / "p")}),))


def test_a_mix_over_an_adapter_is_bound_to_its_weights(backend, tmp_path: Path) -> None:
    """Another adapter in the place of the one that it was learnt over is refused, though it holds by itself."""
    out = tmp_path / "mix"
    for seed in (0, 1):
        settings = Settings("soft-prompt", epochs=1, tokens=2, held_out=0.0, seed=seed)
        tune_task("eval/tiny.toml", settings, 3, tmp_path / str(seed) / "films", row=PMI, backend=backend)
    row = PMI.model_copy(update={"adapter": str(tmp_path / "0" / "films")})
    tune_mix("eval/tiny.toml", 3, out, rows=(row,), backend=backend)
    shutil.rmtree(out / "rows" / "0" / "films")
    shutil.copytree(tmp_path / "1" / "films", out / "rows" / "0" / "films")
    with pytest.raises(AdapterError, match=r"learnt was .* and is "):
        evaluate("eval/tiny.toml", Options(adapters=(out,)), out=tmp_path / "run", backend=backend)


def test_the_command_mixes_over_an_adapter_and_refuses_one_elsewhere(folder: Path, tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "mix"
    command = ["tune", "eval/tiny.toml", "--shots", "3", "--model", str(folder), "--precision", "fp32"]
    made = CliRunner().invoke(app, [*command, "--method", "soft-prompt", "--epochs", "1", "--out", str(films)])
    assert made.exit_code == 0, made.output
    mix = [*command, "--out", str(out), "--adapter", str(films)]

    found = CliRunner().invoke(app, [*mix, "--method", "mix", "--popularity"])

    assert found.exit_code == 0, found.output
    assert "+ films twin" in found.output
    assert "popularity" in found.output
    over = [*command, "--out", str(tmp_path / "more"), "--adapter", str(out), "--method", "mix"]
    with pytest.raises(AdapterError, match="is a mix of rows, and no row itself"):
        CliRunner().invoke(app, over, catch_exceptions=False)
    with pytest.raises(FewrecError, match="--adapter belongs to --method mix, not to 'lora'"):
        CliRunner().invoke(app, [*mix, "--method", "lora"], catch_exceptions=False)
