"""Two runs beside each other: the same users only, what is said of a difference, and what changed beside it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_evaluation import PLAIN, PMI, WordyBackend, run_of, tiny
from typer.testing import CliRunner

from fewrec_prompt import comparison, tasks
from fewrec_prompt.cli import app
from fewrec_prompt.comparison import compare
from fewrec_prompt.errors import RunError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.significance import detectable, permutation_p
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task

JUDGE = RowSettings(prompt="judge")
METRICS = ("nDCG@10", "AUC", "coverage@2", "pooled-AUC", "Brier")
HOME = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOME)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same task, once as it is, once with another wording and a calibration."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HOME)
        text = Path("prompts/complete.jinja").read_text(encoding="utf-8")
        mine = folder / "mine.jinja"
        mine.write_text(text.replace("one person likes", "I have seen"))
        run_of(folder / "a", PLAIN, JUDGE, metrics=METRICS)
        run_of(folder / "b", RowSettings(prompt=str(mine), calibrate="pmi", alpha=0.5), JUDGE, metrics=METRICS)
    return folder / "a", folder / "b"


def values(folder: Path, row: str, metric: str) -> dict[str, float]:
    frame = pq.read_table(folder / "measurements.parquet").to_pandas()
    frame = frame[(frame["row"] == row) & (frame["metric"] == metric)]
    return dict(zip(frame["user_id"], frame["value"], strict=True))


def spoiled(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a run whose candidates.parquet says something else: column=(user, cell)."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    record = json.loads((to / "run.json").read_text())
    (to / "run.json").write_text(json.dumps(record | {"queries": "other"}))
    table = pq.read_table(to / "candidates.parquet")
    columns = table.to_pydict()
    for column, (user, cell) in changes.items():
        columns[column][user] = cell
    pq.write_table(table.from_pydict(columns, schema=table.schema), to / "candidates.parquet")
    return to


# --- what is the same test


def test_other_users_are_refused_and_counted(tmp_path: Path) -> None:
    run_of(tmp_path / "all", PLAIN)
    run_of(tmp_path / "four", PLAIN, users=4)
    with pytest.raises(RunError, match=r"2 users of 6 only in .*all \((\w+), (\w+)\).*--candidates"):
        compare(tmp_path / "all", tmp_path / "four")


def test_other_candidates_and_targets_are_refused_and_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first = pq.read_table(pair[0] / "candidates.parquet").to_pylist()[0]
    fewer = spoiled(pair[0], tmp_path / "fewer", candidates=(0, first["candidates"][:-2]))
    with pytest.raises(RunError, match=rf"1 user with other candidates \({first['user_id']}; 2 ids differ"):
        compare(pair[0], fewer)
    other = spoiled(pair[0], tmp_path / "other", target=(0, ["someone-else"]))
    with pytest.raises(RunError, match="1 user with other targets"):
        compare(pair[0], other)


def test_another_order_of_candidates_or_a_shorter_history_is_the_same_test(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first = pq.read_table(pair[0] / "candidates.parquet").to_pylist()[0]
    turned = spoiled(pair[0], tmp_path / "turned", candidates=(0, first["candidates"][::-1]), history=(0, ["x"]))
    assert compare(pair[0], turned).n_users == 6


def test_a_folder_without_a_finished_run_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing: holds no finished run"):
        compare(pair[0], tmp_path / "nothing")


# --- what is said of a difference


def test_differences_are_of_the_same_user_and_b_minus_a(pair: tuple[Path, Path]) -> None:
    found = compare(*pair)
    assert (found.pairs[0].row_a, found.pairs[0].row_b) == ("judge", "judge")
    assert found.pairs[1].row_a == "complete"
    assert found.pairs[1].row_b.endswith("mine.jinja pmi 0.5")
    ndcg = found.pairs[1].differences[0]
    a, b = values(pair[0], "complete", "nDCG@10"), values(pair[1], found.pairs[1].row_b, "nDCG@10")
    gap = np.array([b[user] - a[user] for user in sorted(a)])
    assert ndcg.metric == "nDCG@10"
    assert ndcg.difference.value == pytest.approx(gap.mean())
    assert ndcg.p_value == pytest.approx(permutation_p({"m": gap}, 0)["m"])
    assert ndcg.smallest == pytest.approx(detectable(gap))
    assert (ndcg.a, ndcg.b) == (pytest.approx(np.mean([*a.values()])), pytest.approx(np.mean([*b.values()])))


def test_metrics_of_the_whole_run_have_an_interval_too(pair: tuple[Path, Path]) -> None:
    found = {one.metric: one for one in compare(*pair).pairs[1].differences}
    records = [json.loads((folder / "run.json").read_text()) for folder in pair]
    a, b = (record["rows"][2]["metrics"]["pooled-AUC"]["value"] for record in records)
    assert found["pooled-AUC"].difference.value == pytest.approx(b - a)
    assert found["pooled-AUC"].difference.low < b - a < found["pooled-AUC"].difference.high
    assert "Brier" not in found  # of titles there is none


def test_holm_counts_every_metric_of_every_pair(pair: tuple[Path, Path]) -> None:
    found = compare(*pair)
    all_of_them = sorted((one for each in found.pairs for one in each.differences), key=lambda one: one.p_value)
    assert len(all_of_them) == 5 + 4
    assert all_of_them[0].p_holm == pytest.approx(min(1.0, 9 * all_of_them[0].p_value))
    alone = compare(*pair, rows=["judge"], metrics=["AUC"]).pairs[0].differences
    assert [one.p_holm for one in alone] == [one.p_value for one in alone]


def test_a_run_is_no_better_than_itself(pair: tuple[Path, Path]) -> None:
    for each in compare(pair[0], pair[0]).pairs:
        assert {one.verdict for one in each.differences} == {"the same for every user"}
        assert (each.n_gained, each.n_lost, each.template_diff, each.changed) == (0, 0, "", ())


def ranked_by(place: Any) -> type[WordyBackend]:
    """A model whose answers rank the target where it is told to: for tests of what is said, not of models."""

    class Knowing(WordyBackend):
        def _told(self, question: Any, continuation: str) -> np.ndarray:
            return np.array([place(str(question.prompt), continuation)])

    return Knowing


def test_better_and_worse_are_said_where_they_are_true(ml_100k: Path, tmp_path: Path) -> None:
    """60 users, once with films that were targets far up, once ranked blindly."""
    task = Options(rows=(JUDGE,), users=60, metrics=("nDCG@10", "novelty@3")).applied(load_task("movielens-100k"))
    found = tasks.load_queries(task)
    wanted = {item.title for one in found.queries for item in one.candidates if item.id in found.qrels[one.user_id]}

    def knowing(prompt: str, word: str) -> float:
        likely = any(title in prompt[-300:] for title in wanted)
        return math.log(0.9 if likely == (word.strip().lower() == "yes") else 0.1)

    blind, seeing = tmp_path / "blind", tmp_path / "seeing"
    evaluate(task, out=blind, backend=WordyBackend())
    evaluate(task, out=seeing, backend=ranked_by(knowing)())
    assert compare(blind, seeing).pairs[0].differences[0].verdict == "better"
    assert compare(seeing, blind).pairs[0].differences[0].verdict == "worse"
    assert compare(seeing, blind).pairs[0].differences[1].verdict not in ("better", "worse")


def test_a_metric_of_what_comes_up_is_higher_not_better() -> None:
    interval = comparison.Interval(0.2, 0.1, 0.3, 50, 0)
    one = comparison.Difference("novelty@5", 1.0, 1.2, interval, 0.01, math.nan, 0.1, "")
    assert comparison._judged(one, 0.02).verdict == "higher"
    assert comparison._judged(replace(one, metric="log-loss"), 0.02).verdict == "worse"
    assert comparison._judged(replace(one, metric="MRR"), 0.02).verdict == "better"
    assert comparison._judged(one, 0.2).verdict.startswith("cannot be told apart (smallest difference that 50 users")


# --- what stands beside it


def test_users_who_gained_and_lost_come_with_the_places_of_their_targets(pair: tuple[Path, Path]) -> None:
    each = compare(*pair).pairs[1]
    a, b = values(pair[0], each.row_a, each.metric), values(pair[1], each.row_b, each.metric)
    gaps = {user: b[user] - a[user] for user in a}
    assert each.n_gained == sum(gap > 0 for gap in gaps.values())
    assert each.n_lost == sum(gap < 0 for gap in gaps.values())
    assert [one.difference for one in each.lost] == sorted(one.difference for one in each.lost)
    for one in (*each.gained, *each.lost):
        assert one.difference == pytest.approx(gaps[one.user_id])
        assert (one.rank_b < one.rank_a) == (one.difference > 0)


def test_the_change_of_a_template_and_of_settings_is_shown(pair: tuple[Path, Path]) -> None:
    each = compare(*pair).pairs[1]
    before, after = (line for line in each.template_diff.splitlines() if "Here is a list of" in line)
    assert before[0] == "-"
    assert after[0] == "+"
    assert after[1:] == before[1:].replace("one person likes", "I have seen") != before[1:]
    changed = {what: (before, now) for what, before, now in each.changed}
    assert changed["calibration"] == ("none", "pmi")
    assert changed["alpha"] == (None, 0.5)
    assert each.ms_a is not None
    assert each.ms_b is not None


def test_rows_can_be_named_also_of_one_run(pair: tuple[Path, Path]) -> None:
    (each,) = compare(pair[0], pair[0], rows=["popularity = complete"]).pairs
    assert (each.row_a, each.row_b, each.ms_a) == ("popularity", "complete", None)
    with pytest.raises(RunError, match=r"no row 'complet'.*Did you mean 'complete'"):
        compare(*pair, rows=["complet"])


def test_rows_that_nobody_can_pair_have_to_be_named(tmp_path: Path) -> None:
    run_of(tmp_path / "one", PLAIN)
    run_of(tmp_path / "two", PMI, JUDGE)
    with pytest.raises(RunError, match=r"one has the prompt rows complete, .*two has complete pmi 0.6, judge; .*--row"):
        compare(tmp_path / "one", tmp_path / "two")


def test_a_metric_that_only_one_run_has_is_left_out_or_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run_of(tmp_path / "mrr", PLAIN, JUDGE, metrics=("AUC", "MRR"))
    assert [one.metric for one in compare(pair[0], tmp_path / "mrr").pairs[0].differences] == ["AUC"]
    with pytest.raises(RunError, match="metric 'MRR' is not in both runs; known: AUC"):
        compare(pair[0], tmp_path / "mrr", metrics=["MRR"])


def test_more_than_two_are_compared_with_the_first(pair: tuple[Path, Path]) -> None:
    found = compare(pair[0], pair[1], pair[0])
    assert [(one.a, one.b) for one in found.pairs] == [(str(pair[0]), str(pair[at])) for at in (1, 1, 0, 0)]


# --- as data, and on the command line


def test_json_and_pandas_say_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["compare", *map(str, pair), "--json", str(tmp_path / "c.json")])
    assert answer.exit_code == 0, answer.output
    written = json.loads((tmp_path / "c.json").read_text())
    found = compare(*pair)
    assert written == json.loads(json.dumps(found.to_dict()))
    assert {"difference", "low", "high", "p_value", "p_holm", "verdict"} <= written["pairs"][0]["differences"][0].keys()
    frame = found.to_pandas()
    assert len(frame) == 9
    assert list(frame["verdict"]) == [one["verdict"] for each in written["pairs"] for one in each["differences"]]


def test_the_printed_comparison_names_runs_users_and_cost(pair: tuple[Path, Path]) -> None:
    said = CliRunner().invoke(app, ["compare", *map(str, pair)]).output
    assert f"A  {pair[0]}: complete" in said
    assert "ms/user" in said
    assert "gained and" in said
    assert "cannot be told apart (smallest difference that 6 users would show:" in said
    assert "changed  calibration: none → pmi" in said


def test_comparing_needs_no_model() -> None:
    code = "import sys, fewrec_prompt.comparison; sys.exit(', '.join({'torch', 'evaluate'} & set(sys.modules)) or None)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_runs_are_of_the_tiny_task() -> None:
    assert len(tasks.load_queries(tiny(PLAIN)).queries) == 6
