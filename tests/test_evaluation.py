"""A whole run with a model that is worked out by hand: what is asked, shared, ranked, measured and written down."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_tasks import QUERIES, task_in

from fewrec_prompt import checked, evaluation, tasks
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.errors import RunError, TaskError, TemplateError, VerbalizerError
from fewrec_prompt.evaluation import Options, Run, evaluate
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.task_settings import METRICS, RowSettings
from fewrec_prompt.tasks import Task, load_task
from fewrec_prompt.types import Question, TokenLogprobs

PMI = RowSettings(prompt="complete", calibrate="pmi", alpha=0.6)
FULL = RowSettings(prompt="complete", calibrate="pmi", alpha=1.0)
PLAIN = RowSettings(prompt="complete")


class WordyBackend(ToyBackend):
    """Its answer depends on prompt and continuation, and on nothing else: a model without a model."""

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        self.asked.extend(questions)
        return [tuple(self._told(question, text) for text in question.continuations) for question in questions]

    def _told(self, question: Question, continuation: str) -> np.ndarray:
        text = str(question.prompt) + continuation
        share = (sum(ord(letter) * place for place, letter in enumerate(text, 1)) % 997 + 1) / 3000
        return np.array([math.log(share)])


def tiny(*rows: RowSettings, **changes: Any) -> Task:
    return Options(rows=rows or None, **changes).applied(load_task("eval/tiny.toml"))


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


def run_of(out: Path, *rows: RowSettings, **changes: Any) -> Run:
    return evaluate(tiny(*rows, **changes), out=out, backend=WordyBackend())


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def rankings_in(folder: Path) -> bytes:
    return (folder / "rankings.parquet").read_bytes()


# --- what is written ---------------------------------------------------------------------------------------------


def test_run_json_has_the_keys_that_are_promised(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", PLAIN, PMI, users=4)

    record = record_in(run.folder)
    names = [row["name"] for row in record["rows"]]
    assert names == ["random", "popularity", "complete", "complete pmi 0.6"]
    for row in record["rows"]:
        assert {"name", "prompt", "verbalizer", "calibration", "n_users", "ms_per_user", "metrics"} <= row.keys()
        assert row["n_users"] == 4
        assert set(row["metrics"]) == set(METRICS)
        for metric in row["metrics"].values():
            assert set(metric) == {"value", "low", "high"}
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1  # fractions
    last = record["rows"][-1]
    assert (last["prompt"], last["verbalizer"], last["calibration"], last["alpha"]) == ("complete", "title", "pmi", 0.6)
    assert record == json.loads(json.dumps(run.record))


def test_run_json_holds_what_it_takes_to_repeat_the_run(tmp_path: Path) -> None:
    record = record_in(run_of(tmp_path / "run", PMI, seed=5, users=3).folder)

    assert record["settings"]["seed"] == 5
    assert record["settings"]["data"]["users"] == 3
    assert record["settings"]["rows"][0] == {
        "prompt": "complete",
        "verbalizer": "title",
        "calibrate": "pmi",
        "alpha": 0.6,
        "length": "sum",
        "orders": None,
        "adapter": None,
    }
    assert "{% for seen in history %}" in record["templates"]["complete"]["text"]
    assert len(record["templates"]["complete"]["sha256"]) == 64
    assert record["verbalizers"]["title"]["kind"] == "complete"
    assert {"torch", "transformers", "python", "fewrec-prompt"} <= record["versions"].keys()
    assert sorted(record["data"]) == ["items.csv", "queries.csv"]
    assert {"name", "sha256", "backend"} == record["model"].keys()
    assert record["numerics"]["precision"] == "fp32"
    assert record["split"] == "test"
    asked = {"precision": "auto", "device": None, "int8_threshold": None, "unit": "auto", "token_budget": None}
    assert record["call"] == {"candidates": None} | asked


def test_rankings_have_five_columns_and_every_candidate_once(tmp_path: Path) -> None:
    table = pq.read_table(run_of(tmp_path / "run").folder / "rankings.parquet")

    assert table.column_names == ["row", "user_id", "item_id", "score", "rank"]
    frame = table.to_pandas()
    assert len(frame) == 4 * 6 * 6
    for _, one in frame.groupby(["row", "user_id"], sort=False):
        assert list(one["rank"]) == [1, 2, 3, 4, 5, 6]
        assert list(one["score"]) == sorted(one["score"], reverse=True)
        assert one["item_id"].is_unique


def test_measurements_are_there_for_every_user(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", PLAIN)
    frame = pq.read_table(run.folder / "measurements.parquet").to_pandas()

    assert list(frame.columns) == ["row", "user_id", "metric", "value"]
    own = frame[(frame["row"] == "complete") & (frame["metric"] == "nDCG@10")]
    assert sorted(own["user_id"]) == ["ann", "bob", "cem", "dot", "eva", "flo"]
    assert own["value"].mean() == pytest.approx(run.rows[2]["metrics"]["nDCG@10"]["value"])


def test_random_is_the_expectation_of_chance_and_has_no_noise(tmp_path: Path) -> None:
    random, *_ = run_of(tmp_path / "run", PLAIN).rows
    assert random["metrics"]["nDCG@1"] == {"value": pytest.approx(1 / 6)} | {
        "low": pytest.approx(1 / 6),
        "high": pytest.approx(1 / 6),
    }


def test_a_recommender_at_hand_is_measured_as_its_row_would_be(tmp_path: Path) -> None:
    for row in (PLAIN, PMI, RowSettings(prompt="complete", length="mean")):
        template, verbalizer, calibration = choose("complete", None, row.calibrate, row.alpha, row.length)
        recommender = Recommender(template, verbalizer, WordyBackend(), calibration=calibration)
        mine = evaluate("eval/tiny.toml", recommender, out=tmp_path / f"mine {row}")
        named = run_of(tmp_path / f"named {row}", row)
        assert record_in(mine.folder)["settings"]["rows"] == record_in(named.folder)["settings"]["rows"]
        assert rankings_in(mine.folder) == rankings_in(named.folder)


def test_label_words_of_ones_own_have_no_name_but_are_in_the_record(tmp_path: Path) -> None:
    template, verbalizer, _ = choose("judge", None, "none", None, None)
    sure = verbalizer.model_copy(update={"yes": ("Sure",)})
    run = evaluate("eval/tiny.toml", Recommender(template, sure, WordyBackend()), out=tmp_path / "run")
    assert run.rows[-1]["name"] == "judge own judge"
    assert record_in(run.folder)["verbalizers"]["own judge"]["yes"] == ["Sure"]


def test_to_pandas_gives_a_line_a_row(tmp_path: Path) -> None:
    frame = run_of(tmp_path / "run", PLAIN).to_pandas()
    assert list(frame["name"]) == ["random", "popularity", "complete"]
    assert {"n_users", "ms_per_user", "MRR"} <= set(frame.columns)


# --- data that people bring --------------------------------------------------------------------------------------


def test_without_targets_there_are_rankings_and_no_metrics(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "target"} for row in QUERIES]
    run = evaluate(task_in(tmp_path, rows=rows), out=tmp_path / "run", backend=WordyBackend())

    assert [row["metrics"] for row in run.rows] == [{}, {}, {}, {}]
    assert [row["n_users"] for row in run.rows] == [3, 3, 3, 3]
    assert pq.read_table(run.folder / "rankings.parquet").num_rows == 4 * 9
    assert "nothing to measure" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_problems_are_counted_and_a_query_without_its_target_scores_nothing(tmp_path: Path) -> None:
    rows = [
        {"user_id": "u1", "history": ["c"], "candidates": ["d", "d", "e"], "target": "b"},
        {"user_id": "u2", "history": ["d", "zz"], "candidates": ["a", "f", "yy"], "target": "f"},
        {"user_id": "u3", "history": ["e", "a"], "candidates": ["a", "b", "e"], "target": "a"},
    ]
    task = task_in(tmp_path, "jsonl", 'on_problem = "count"\n', rows)

    run = evaluate(task, out=tmp_path / "run", backend=WordyBackend())

    assert record_in(run.folder)["problems"] == {
        "missing_target": 1,
        "duplicate_candidates": 1,
        "history_repeats": 1,
        "unknown_ids": 1,
        "empty_titles": 1,
    }
    values = pq.read_table(run.folder / "measurements.parquet").to_pandas().query("user_id == 'u1'")
    assert set(values["value"]) == {0.0}
    ranked = pq.read_table(run.folder / "rankings.parquet").to_pandas()
    assert len(ranked.query("row == 'complete' and user_id == 'u1'")) == 2
    assert set(ranked.query("row == 'complete' and user_id == 'u3'")["item_id"]) == {"a", "b", "e"}


def test_a_metric_beside_the_task_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "first.py").write_text(
        "import datasets\nimport evaluate\n\n\nclass First(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        return evaluate.MetricInfo(description='d', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': datasets.Value('float32'),\n"
        "                                        'references': datasets.Value('int32')}))\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'first': sum((p > -1) == r for p, r in zip(predictions, references)) / len(references)}\n"
    )
    task = task_in(tmp_path)
    task = replace(task, settings=task.settings.model_copy(update={"metrics": ("MRR", "./first")}))
    run = evaluate(task, out=tmp_path / "run", backend=WordyBackend())
    assert set(run.rows[2]["metrics"]) == {"MRR", "first"}


# --- what is asked, and what it costs ----------------------------------------------------------------------------


def test_rows_that_ask_the_same_are_asked_once(tmp_path: Path) -> None:
    """Another alpha and another length rule cost nothing; twins are asked once as well."""
    backend = WordyBackend()
    mean = RowSettings(prompt="complete", length="mean")

    evaluate(tiny(PLAIN, PMI, FULL, mean), out=tmp_path / "run", backend=backend)

    assert len(backend.asked) == 6 + 6
    assert max(Counter(backend.asked).values()) == 1


def test_the_price_of_a_calibrated_row_includes_its_twins(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", PLAIN, PMI, FULL)
    plain, pmi, full = (row["ms_per_user"] for row in run.rows[2:])
    assert 0 < plain < pmi == full
    assert [row["ms_per_user"] for row in run.rows[:2]] == [None, None]


def test_other_words_for_the_things_are_other_questions(tmp_path: Path) -> None:
    films, pmi = checked.check(tiny(PLAIN, PMI)).rows(WordyBackend())
    books = replace(films.recommender, domain=replace(films.recommender.domain, plural="books"))
    assert films.asks == pmi.asks != replace(films, recommender=books).asks


def test_progress_ends_where_it_said_it_would(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    evaluate(tiny(PMI), out=tmp_path / "run", backend=WordyBackend(), progress=lambda *point: seen.append(point))
    assert len(seen) == 12
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == pytest.approx(seen[-1][2])
    assert {what for what, _, _ in seen} == {"complete", "complete without history"}


def test_a_first_number_is_that_of_the_users_answered_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EARLY_SECONDS", 0.0)
    said: list[str] = []
    run = evaluate(tiny(PLAIN, PMI), out=tmp_path / "run", backend=WordyBackend(), early=said.append)

    assert [line.split(":")[0].removeprefix("so far  ") for line in said] == ["complete"] * 6 + ["complete pmi 0.6"] * 6
    assert said[1].endswith(", 2 of 6 users")
    table = pq.read_table(run.folder / "measurements.parquet").to_pandas()
    values = table[(table["row"] == "complete") & (table["metric"] == "nDCG@10")]["value"]
    assert f": nDCG@10 {100 * values.iloc[:2].mean():.1f} (" in said[1]
    assert f": nDCG@10 {100 * values.mean():.1f} (" in said[5]


def test_a_run_that_is_over_soon_or_has_no_answers_tells_no_first_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    evaluate(tiny(PLAIN), out=tmp_path / "soon", backend=WordyBackend(), early=said.append)
    monkeypatch.setattr(evaluation, "EARLY_SECONDS", 0.0)
    rows = [{key: value for key, value in row.items() if key != "target"} for row in QUERIES]
    evaluate(task_in(tmp_path, rows=rows), out=tmp_path / "none", backend=WordyBackend(), early=said.append)
    assert said == []


# --- nothing that scores sees an answer --------------------------------------------------------------------------


def test_other_answers_change_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [PLAIN, PMI, RowSettings(prompt="choose"), RowSettings(prompt="judge")]
    run_of(tmp_path / "true", *rows)
    honest = tasks.load_queries

    def permuted(*args: Any, **kwargs: Any) -> Any:
        found = honest(*args, **kwargs)
        other = {query.user_id: frozenset({query.candidates[0].id}) for query in found.queries}
        assert other != found.qrels
        return replace(found, qrels=other)

    monkeypatch.setattr(tasks, "load_queries", permuted)
    run_of(tmp_path / "permuted", *rows)

    assert rankings_in(tmp_path / "true") == rankings_in(tmp_path / "permuted")
    assert record_in(tmp_path / "true")["rows"] != record_in(tmp_path / "permuted")["rows"]


def test_the_candidate_file_of_a_run_gives_the_same_rankings(tmp_path: Path) -> None:
    run_of(tmp_path / "first", PLAIN, PMI, users=4)
    task = Options(rows=(PLAIN, PMI), candidates=tmp_path / "first" / "candidates.parquet")

    evaluate("eval/tiny.toml", task, out=tmp_path / "again", backend=WordyBackend())

    assert rankings_in(tmp_path / "first") == rankings_in(tmp_path / "again")
    assert record_in(tmp_path / "again")["split"] == "candidate file"


def test_test_users_and_selection_users_are_different_people(ml_100k: Path, tmp_path: Path) -> None:
    users = {}
    for split in ("test", "selection"):
        found = tasks.load_queries(Options(users=900).applied(load_task("movielens-100k")), split)
        users[split] = {query.user_id for query in found.queries}
    assert len(users["test"]) == 900
    assert users["test"].isdisjoint(users["selection"])
    assert len(users["test"] | users["selection"]) == 943


def test_movielens_candidates_can_be_used_again(ml_100k: Path, tmp_path: Path) -> None:
    options = Options(rows=(PLAIN,), users=5)
    evaluate("movielens-100k", options, out=tmp_path / "first", backend=WordyBackend())
    again = Options(rows=(PLAIN,), candidates=tmp_path / "first" / "candidates.parquet")
    evaluate("movielens-100k", again, out=tmp_path / "again", backend=WordyBackend())
    assert rankings_in(tmp_path / "first") == rankings_in(tmp_path / "again")


# --- what is found before anything is scored ---------------------------------------------------------------------


class NeverAsked(ToyBackend):
    """A backend that must not be needed."""

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        raise AssertionError("nothing should be scored")


def refused(tmp_path: Path, task: Task) -> str:
    with pytest.raises((TaskError, TemplateError, VerbalizerError)) as caught:
        evaluate(task, out=tmp_path / "run", backend=NeverAsked())
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_a_label_that_compares_nothing_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    few = tmp_path / "few.toml"
    few.write_text('kind = "choose"\ndescription = "d"\nlabels = ["A"]\n')
    said = refused(tmp_path, tiny(RowSettings(prompt="choose", verbalizer=str(few))))
    assert "user 'ann': 6 candidates but only 1 label" in said


def test_a_field_that_no_item_has_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(
        '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'
        "{% for item in history %}\n{{ item.title }} ({{ item.director }})\n{% endfor %}\n-\n"
    )
    said = refused(tmp_path, tiny(RowSettings(prompt=str(mine))))
    assert said.startswith(f"{mine}:8: there is no field 'director'")


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "two rows are called 'complete'" in refused(tmp_path, tiny(PLAIN, PLAIN))


def test_a_template_and_a_verbalizer_of_another_kind_are_refused(tmp_path: Path) -> None:
    assert "needs a verbalizer of that kind" in refused(tmp_path, tiny(RowSettings(prompt="judge", verbalizer="title")))


def test_a_finished_run_is_never_written_over(tmp_path: Path) -> None:
    run_of(tmp_path / "run", PLAIN)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"holds a finished run; give --out a new folder"):
        run_of(tmp_path / "run", PLAIN)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_without_a_folder_the_same_run_is_shown_again_and_another_gets_the_next_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task("tiny").path.resolve()
    monkeypatch.chdir(tmp_path)
    toy, said = ToyBackend(), []

    first = evaluate(task, backend=toy)
    asked = len(toy.asked)
    again = evaluate(task, backend=toy, say=said.append)
    other = evaluate(task, Options(seed=1), backend=toy)

    assert (first.folder, again.folder, other.folder) == (Path("runs/tiny-1"), Path("runs/tiny-1"), Path("runs/tiny-2"))
    assert again.record == json.loads((tmp_path / "runs/tiny-1/run.json").read_text())
    assert any("holds this very run" in line for line in said)
    assert len(toy.asked) == 2 * asked  # the other run's; none for the one that was there
