"""From a task to an adapter to a row of its table, and the curve over all of it, on the made-up films."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from fewrec_prompt import few_shot, shots, tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cells import ZERO, Cell, read_cell
from fewrec_prompt.cli import app
from fewrec_prompt.cli.ranking import spread_lists
from fewrec_prompt.curve import curve
from fewrec_prompt.curve_table import Line, shown, table
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, ModelError, RunError, TaskError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.mixing import tune_mix
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.settings import Settings

NDCG = ("nDCG@10",)
LORA = Settings("lora", rank=2, epochs=2, learning_rate=1e-2)


def backend(model: Path) -> causal.CausalBackend:
    return causal.load(str(model), Numerics("fp32", "cpu"))


def test_nobody_who_is_tested_is_learnt_from(task: tasks.Task) -> None:
    found = shots_of(task, 3)
    tested = {query.user_id for query in tasks.load_queries(task).queries}
    assert len(found.learnt) == 3
    assert not {one.query.user_id for one in found.learnt} & tested
    shots.check_apart(found, tasks.load_queries(task))
    with pytest.raises(DataError, match="learnt from and tested"):
        shots.check_apart(found, found.queries)


def test_what_is_tuned_becomes_a_row(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters" / "x"
    tuned = tune_task(task, LORA, 3, out, backend=backend(model))
    about = adapters.read(out).about
    assert about["tasks"]["tiny"]["shots"] == 3
    assert about["passes"][-1]["loss"] == tuned.passes[-1].loss
    assert about["seconds"] == pytest.approx(sum(done.seconds for done in tuned.passes), abs=0.1)
    assert not out.with_name("x.training").exists()

    run = evaluate(task, Options(adapters=(out,)), out=tmp_path / "run", backend=backend(model))
    names = [row["name"] for row in run.rows]
    assert names[-2:] == ["complete pmi 0.5", "complete pmi 0.5 + x"]
    assert run.record["adapters"]["complete pmi 0.5 + x"]["method"] == "lora"
    table = parquet.read_table(run.folder / "rankings.parquet").to_pylist()
    untuned, learnt = (
        {(one["user_id"], one["item_id"]): one["score"] for one in table if one["row"] == name} for name in names[-2:]
    )
    assert untuned.keys() == learnt.keys()
    assert max(abs(untuned[pair] - learnt[pair]) for pair in untuned) > 1e-3


@pytest.mark.parametrize("method", ["lora", "mix", "prototypes"])
def test_weights_are_not_tested_on_whom_they_were_learnt_from(
    method: str, task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x"
    match method:
        case "mix":
            tune_mix(task, 3, out, backend=backend(model))
        case "prototypes":
            row = RowSettings(prompt="judge")
            tune_task(task, Settings("prototypes"), 3, out, row=row, backend=backend(model))
        case _:
            tune_task(task, LORA, 3, out, backend=backend(model))
    with pytest.raises(AdapterError, match="x: was learnt from 3 of the 8 people who are to be tested"):
        evaluate(task, Options(adapters=(out,), split="selection", force=True), backend=backend(model))
    (trace,) = adapters.read(out).about["learnt_from"]
    assert not any(one.query.person in trace["people"] for one in shots_of(task, 3).learnt)  # not by their ids
    adapters.check_untested(out, ["u1"], {"other.csv": "another file, where ids are other people"})


def test_a_later_round_is_not_tested_on_people_of_the_first(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    tune_task(task, LORA, 1, tmp_path / "first", backend=backend(model))
    people = {seed: shots_of(task, 1, seed).learnt[0].query.person for seed in range(20)}
    again = replace(LORA, seed=next(seed for seed, person in people.items() if person != people[0]))
    earlier = few_shot.Round(tmp_path / "first", replay=0.0)
    tune_task(task, again, 1, tmp_path / "second", earlier=earlier, backend=backend(model))
    with pytest.raises(AdapterError, match="second: was learnt from 2 of the 8 people"):
        evaluate(task, Options(adapters=(tmp_path / "second",), split="selection"), backend=backend(model))


def test_an_adapter_is_not_written_over(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(TaskError, match="exists already"):
        tune_task(task, LORA, 3, tmp_path / "x", backend=backend(model))


@pytest.mark.parametrize("method", ["soft-prompt", "prefix", "lora", "full"])
def test_a_second_round_begins_where_the_first_ended(
    method: str, task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    settings = Settings.shared(method, {"tokens": 4, "rank": 2, "epochs": 1, "learning_rate": 1e-2})
    first = tune_task(task, settings, 3, tmp_path / "first", backend=backend(model))
    still = replace(settings, learning_rate=1e-8, seed=1)
    earlier = few_shot.Round(tmp_path / "first", replay=0.0)
    second = tune_task(task, still, 3, tmp_path / "second", earlier=earlier, backend=backend(model))
    for name, weights in adapters.read(tmp_path / "first").tensors.items():
        assert np.allclose(weights, adapters.read(tmp_path / "second").tensors[name], atol=1e-6)
    before, after = second.earlier_loss or (0.0, 0.0)
    assert before == pytest.approx(after, abs=1e-4)
    assert first.earlier_loss is None
    assert adapters.read(tmp_path / "second").about["earlier"] == "first"


def test_a_pull_keeps_near_and_a_replay_keeps_in_mind(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    settings = Settings("soft-prompt", tokens=4, epochs=4, learning_rate=3e-2)
    tune_task(task, settings, 3, tmp_path / "first", backend=backend(model))
    anchor = adapters.read(tmp_path / "first").tensors["prompt_embeddings"]

    def moved(name: str, **how: float) -> float:
        earlier = few_shot.Round(tmp_path / "first", **how)
        tune_task(task, replace(settings, seed=1), 3, tmp_path / name, earlier=earlier, backend=backend(model))
        return float((adapters.read(tmp_path / name).tensors["prompt_embeddings"] - anchor).norm())

    assert moved("held", replay=0.0, pull=10.0) < moved("free", replay=0.0)
    moved("again", replay=1.0)
    losses = {name: adapters.read(tmp_path / name).about["passes"][1]["loss"] for name in ("free", "again")}
    assert losses["free"] != losses["again"], "the earlier people are among those who are learnt from"


def test_a_later_round_learns_from_new_people_and_keeps_them_apart(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    """The seed is the same, and nobody is learnt from twice unless as one of the earlier round."""
    tune_task(task, LORA, 3, tmp_path / "first", backend=backend(model))
    earlier = few_shot.Round(tmp_path / "first", replay=1.0)
    second = tune_task(task, LORA, 3, tmp_path / "second", earlier=earlier, backend=backend(model))
    lesson = second.lessons[0]
    new, before = lesson.examples[:3], lesson.earlier
    assert len(before) == 3
    assert not {one.query.person for one in new} & {one.query.person for one in before}
    assert lesson.examples[3:] == before or set(lesson.examples[3:]) == set(before)
    everybody = len(shots.shots_of(task, 1).queries.queries)
    with pytest.raises(DataError, match="3 more are known to an adapter"):
        tune_task(task, LORA, everybody, tmp_path / "x", earlier=earlier, backend=backend(model))


def test_a_later_round_has_to_beat_where_it_began(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """And not the untrained model, which anything beats by then."""
    tune_task(task, replace(LORA, epochs=6), 3, tmp_path / "first", backend=backend(model))
    again = replace(LORA, learning_rate=1e-8, epochs=1, negatives="given")
    second = tune_task(
        task, again, 2, tmp_path / "second", earlier=few_shot.Round(tmp_path / "first", 0.0), backend=backend(model)
    )
    lesson = second.lessons[0]
    adapted = lesson.recommender.adapted(tmp_path / "first")
    bare, began = (lesson.suited(one, lesson.examples)[1] for one in (lesson.recommender, adapted))
    assert second.zero_shot_loss == pytest.approx(began)
    assert began != pytest.approx(bare)


def test_a_later_round_of_a_task_that_no_folder_holds(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    mine = replace(task, name="mine")
    tune_task(mine, LORA, 2, tmp_path / "first", backend=backend(model))
    second = tune_task(
        mine, LORA, 2, tmp_path / "second", earlier=few_shot.Round(tmp_path / "first"), backend=backend(model)
    )
    assert len(second.lessons[0].earlier) == 2


def test_a_later_round_over_data_that_hold_nobody_of_the_first(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune_task(task, LORA, 2, tmp_path / "first", backend=backend(model))
    monkeypatch.setattr(adapters, "known", lambda *_: frozenset())
    with pytest.raises(AdapterError, match="first: nobody whom it was learnt from is among the people of 'tiny' here"):
        tune_task(task, LORA, 2, tmp_path / "x", earlier=few_shot.Round(tmp_path / "first"), backend=backend(model))


def test_lists_without_an_answer_are_left_out_and_counted(task: tasks.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shots.examples_of
    monkeypatch.setattr(
        shots, "examples_of", lambda queries: (replace(real(queries)[0], relevant=()), *real(queries)[1:])
    )
    said: list[str] = []
    n = len(shots_of(task, 1).queries.queries)
    assert all(one.relevant for one in shots_of(task, n - 1, say=said.append).learnt)
    assert said == ["tiny: 1 lists of candidates hold no answer, or nothing else; nothing is learnt from them"]
    with pytest.raises(DataError, match=f"{n} shots were asked, but there are {n - 1} people"):
        shots_of(task, n)
    assert len(shots_of(task, n, loss="binary").learnt) == n


def test_a_round_of_another_method_or_adalora_is_refused(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    settings = Settings("adalora", rank=2, epochs=4, batch=1, learning_rate=1e-2)
    tune_task(task, settings, 3, tmp_path / "first", backend=backend(model))
    earlier = few_shot.Round(tmp_path / "first")
    with pytest.raises(AdapterError, match="was learnt with 'adalora'; go on with that, not 'lora'"):
        tune_task(task, LORA, 3, tmp_path / "x", earlier=earlier, backend=backend(model))
    with pytest.raises(ModelError, match="cannot be learnt on"):
        tune_task(task, settings, 3, tmp_path / "x", earlier=earlier, backend=backend(model))


def test_the_command_tunes_and_the_table_shows_it(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    run, plain = CliRunner().invoke, ["--model", str(model), "--precision", "fp32"]
    flags = ["--method", "soft-prompt", "--shots", "3", "--epochs", "1", "--tokens", "4", "--out", "adapters/x"]
    tuned = run(app, ["tune", "tiny", *flags, *plain])
    assert tuned.exit_code == 0, tuned.output
    assert "use it   fewrec eval tiny --adapter adapters/x" in tuned.output
    listed = run(app, ["adapters", "list"])
    assert [word in listed.output for word in ("x", "soft-prompt", "tiny")] == [True] * 3
    assert json.loads(run(app, ["adapters", "show", "adapters/x"]).stdout)["weights"] == {"prompt_embeddings": [4, 32]}
    scored = run(app, ["eval", "tiny", "--adapter", "adapters/x", "--out", "run", *plain])
    assert scored.exit_code == 0, scored.output
    assert "complete pmi 0.5 + x" in scored.output


def test_two_processes_learn_what_one_learns(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """People of a step are shared out, gradients added up; one of the two writes and talks."""
    words = ["tune", "tiny", "--model", str(model), "--method", "lora", "--shots", "4", "--epochs", "2", "--batch", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fewrec_prompt.cli"]
    root = Path(few_shot.__file__).resolve().parent.parent
    settings = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *words, "--precision", "fp32", "--device", "cpu", "--out", str(tmp_path / "two")],
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("use it") == 1
    tune_task(task, Settings("lora", epochs=2, batch=2), 4, tmp_path / "one", backend=backend(model))
    one, two = (adapters.read(tmp_path / name) for name in ("one", "two"))
    for name, weights in one.tensors.items():
        assert np.allclose(weights, two.tensors[name], atol=1e-5), name
    assert one.about["passes"][-1]["loss"] == pytest.approx(two.about["passes"][-1]["loss"], abs=1e-5)


def test_a_curve_has_a_cell_for_everything_and_runs_none_twice(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, settings = [ZERO, "mix", "soft-prompt", "lora"], {"epochs": 1, "held_out": 0.0}

    def run(shots: list[int]) -> list[Line]:
        return curve(task, methods, shots, 2, tmp_path, settings=settings, backend=backend(model))

    lines = run([2])
    assert [(line.method, line.shots, line.n_seeds) for line in lines] == [
        (ZERO, 0, 1),
        ("mix", 2, 2),
        ("soft-prompt", 2, 2),
        ("lora", 2, 2),
    ]
    cells = {path.stem for path in (tmp_path / "cells").iterdir()}
    assert cells == {ZERO, *(f"{name}-2-{seed}" for name in methods[1:] for seed in (0, 1))}
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    more = run([2, 3])
    assert len(more) == 7
    assert all((tmp_path / "cells" / name).stat().st_mtime_ns == at for name, at in before.items())
    assert more[:4] == lines
    assert "<svg" in (tmp_path / "curve.html").read_text()

    zero = read_cell(tmp_path / "cells" / "zero.json")
    two = [read_cell(tmp_path / "cells" / f"lora-2-{seed}.json") for seed in (0, 1)]
    gap = np.mean([cell.values["nDCG@10"] for cell in two]) - np.mean(zero.values["nDCG@10"])
    assert lines[3].difference == pytest.approx(gap)


def test_a_difference_is_that_of_the_method_to_zero_paired_by_user() -> None:
    """Worked out by hand: 0.5, 1, 0.75 against 0.25, 0.5, 0.75 is better by 0.25 on the mean."""

    def cell(method: str, seed: int, *values: float) -> Cell:
        return Cell(method, 0 if method == ZERO else 4, seed, ("a", "b", "c"), {"nDCG@10": values}, 7, 2.0, 10.0)

    cells = [cell(ZERO, 0, 0.25, 0.5, 0.75), cell("lora", 0, 0.5, 1.0, 0.5), cell("lora", 1, 0.5, 1.0, 1.0)]
    zero, lora = table(cells, NDCG, 0)
    assert (zero.value, zero.difference) == (0.5, 0.0)
    assert (lora.n_seeds, lora.value, lora.difference) == (2, 0.75, 0.25)
    assert lora.difference_low <= 0.25 <= lora.difference_high
    assert shown(lora)[6] == "+25.0"
    other = replace(cells[1], user_ids=("a", "b", "d"))
    with pytest.raises(RunError, match="lora-4-0: is over other users"):
        table([cells[0], other], NDCG, 0)


def test_a_cell_that_was_changed_is_refused(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    curve(task, [ZERO, "mix"], [2], 1, tmp_path, backend=backend(model))
    path = tmp_path / "cells" / "mix-2-0.json"
    path.write_text(path.read_text().replace('"shots": 2', '"shots": 3'))
    with pytest.raises(RunError, match=r"mix-2-0\.json: damaged"):
        curve(task, [ZERO, "mix"], [2], 1, tmp_path, backend=backend(model))


def test_another_study_is_not_mixed_in(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    curve(task, [ZERO], [2], 1, tmp_path, backend=backend(model))
    with pytest.raises(RunError, match="another study, which differs in metric"):
        curve(task, [ZERO], [2], 1, tmp_path, metrics=("MRR",), backend=backend(model))
    with pytest.raises(FewrecError, match=r"unknown method 'lorra'.*lora"):
        curve(task, ["lorra"], [2], 1, tmp_path, backend=backend(model))


def test_lists_of_the_command_may_follow_one_flag() -> None:
    words = ["curve", "tiny", "--methods", "zero", "mix", "--shots", "4", "16", "--seeds", "3"]
    spread = ["curve", "tiny", "--methods=zero", "--methods=mix", "--shots=4", "--shots=16", "--seeds", "3"]
    assert spread_lists(words) == spread
