"""Tasks: what a file with only [data] means, where paths start, which users and candidates come of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewrec_prompt.errors import DataError, TaskError
from fewrec_prompt.evaluation import Options
from fewrec_prompt.task_settings import METRICS
from fewrec_prompt.tasks import Task, load_queries, load_task

ITEMS = {"a": "NA", "b": "", "c": "Heat", "d": "Heat", "e": "Ronin, or not", "f": "Up"}
QUERIES = [
    {"user_id": "u1", "history": ["c", "a"], "candidates": ["d", "b", "e"], "target": "b"},
    {"user_id": "u2", "history": ["d"], "candidates": ["a", "f", "c"], "target": "f"},
    {"user_id": "u3", "history": ["e"], "candidates": ["a", "b", "d"], "target": "a"},
]


def items_in(folder: Path, form: str) -> str:
    rows = [{"item_id": item_id, "title": title} for item_id, title in ITEMS.items()]
    return _write(folder / f"items.{form}", rows)


def queries_in(folder: Path, form: str, rows: list[dict] | None = None) -> str:
    return _write(folder / f"queries.{form}", QUERIES if rows is None else rows)


def _write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0])] + [",".join(_cell(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path.name


def _cell(value: str | list[str]) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"'


def task_in(folder: Path, form: str = "csv", more: str = "", rows: list[dict] | None = None) -> Task:
    file = folder / "mine.toml"
    items, queries = items_in(folder, form), queries_in(folder, form, rows)
    file.write_text(f'[data]\nitems = "{items}"\nqueries = "{queries}"\n{more}')
    return load_task(file)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_data_alone_is_a_complete_task_in_every_form(tmp_path: Path, form: str) -> None:
    """CSV comes with a BOM. Titles that are twice there or read NA are titles; an empty one becomes item and its id."""
    task = task_in(tmp_path, form)

    found = load_queries(task)

    assert [query.user_id for query in found.queries] == ["u1", "u2", "u3"]
    assert [seen.item.title for seen in found.queries[0].history] == ["Heat", "NA"]
    assert [item.title for item in found.queries[0].candidates] == ["Heat", "item b", "Ronin, or not"]
    assert found.qrels == {"u1": {"b"}, "u2": {"f"}, "u3": {"a"}}
    assert found.popularity == {"a": 1, "b": 0, "c": 1, "d": 1, "e": 1, "f": 0}
    assert task.settings.metrics == METRICS
    assert [(row.prompt, row.calibrate) for row in task.settings.rows] == [("complete", "none"), ("complete", "pmi")]
    assert task.settings.model == "smollm2-135m"
    assert task.domain.plural == "items"


def test_paths_start_from_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    task_in(tmp_path / "deep")
    monkeypatch.chdir(tmp_path)

    assert len(load_queries(load_task("deep/mine.toml")).queries) == 3
    shutil.copy("deep/mine.toml", "mine.toml")
    with pytest.raises(TaskError, match=r"mine\.toml: items\.csv: no such file; paths are relative to the task file"):
        load_queries(load_task("./mine.toml"))


def test_a_metric_that_is_a_path_starts_from_the_task_file_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('metrics = ["MRR", "./gain", "gain/gain.py"]\n[data]\ndataset = "ml-100k"\n')
    assert load_task(file).metrics == ("MRR", str(tmp_path / "gain"), str(tmp_path / "gain/gain.py"))


def test_a_metric_of_a_call_starts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_in(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Options(metrics=("MRR", "./gain")).applied(task).metrics == ("MRR", str(tmp_path / "here" / "gain"))


def test_a_number_of_users_takes_the_first_of_the_file(tmp_path: Path) -> None:
    task = Options(users=2).applied(task_in(tmp_path))
    assert [query.user_id for query in load_queries(task).queries] == ["u1", "u2"]


def test_more_users_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="4 users were asked, but there are 3"):
        load_queries(Options(users=4).applied(task_in(tmp_path)))
    with pytest.raises(TaskError, match="0 users"):
        Options(users=0).applied(task_in(tmp_path))


def test_fewer_candidates_than_the_task_says_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"queries.csv:2, column 'candidates', user 'u1': 3 candidates, but 4 were"):
        load_queries(task_in(tmp_path, more="candidates = 4\n"))


def test_own_queries_have_no_selection_split(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="has no 'selection' split"):
        load_queries(task_in(tmp_path), "selection")
    with pytest.raises(TaskError, match=r"unknown split 'tset'.*Did you mean 'test'"):
        load_queries(task_in(tmp_path), "tset")  # type: ignore[arg-type]  # what a call from Python may hold


def test_a_candidate_file_brings_its_users_and_leaves_popularity_alone(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    (tmp_path / "again").mkdir()
    file = tmp_path / "again" / queries_in(tmp_path / "again", "csv", QUERIES[1:2])

    task = Options(candidates=file).applied(task)
    found = load_queries(task, candidates=file)

    assert [query.user_id for query in found.queries] == ["u2"]
    assert found.popularity == load_queries(task_in(tmp_path)).popularity


def test_history_is_cut_to_the_latest(tmp_path: Path) -> None:
    found = load_queries(task_in(tmp_path, more="history = 1\n"))
    assert [[seen.item.id for seen in query.history] for query in found.queries] == [["a"], ["d"], ["e"]]


def test_an_unknown_data_set_brings_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[data]\ndataset = "ml100k"\n')
    with pytest.raises(
        TaskError, match=r"mine\.toml: unknown dataset 'ml100k'; known: .*ml-100k.*\. Did you mean 'ml-100k'"
    ):
        load_queries(load_task(file))
