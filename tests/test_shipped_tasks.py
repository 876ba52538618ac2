"""The tasks and the published rows that ship: on real excerpts, and with nothing of one machine in them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fewrec_prompt import artifacts, published
from fewrec_prompt.data.registered import add
from fewrec_prompt.errors import ArtifactError
from fewrec_prompt.tasks import load_queries, load_task

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EVAL = artifacts.shipped_folder("eval")
SCENARIOS = {"amazon-office": "amazon-office", "lastfm": "lastfm-2k", "mind": "mind-mini"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, so that no test sees what a person has added."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_no_shipped_task_holds_a_path_outside_of_the_project() -> None:
    for path in artifacts.names("eval").values():
        for value in strings(tomllib.loads(path.read_text())):
            assert not value.startswith(("/", "~", "..")), f"{path}: {value}"
            assert "../" not in value, f"{path}: {value}"


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in inner for text in strings(part)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_tasks_of_the_other_scenarios_run_on_real_excerpts(name: str) -> None:
    folder = SHARED / SCENARIOS[name]
    if not folder.is_dir():
        pytest.skip(f"../shared/data/{SCENARIOS[name]} is not there")
    add(SCENARIOS[name], folder)
    task = load_task(EVAL / f"{name}.toml")

    found = load_queries(task)

    assert len(found.queries) == task.settings.data.users
    assert {len(query.candidates) for query in found.queries} == {20}
    assert not any(count for kind, count in found.problems.items() if kind != "history_repeats")
    assert (found.problems["history_repeats"] > 0) == (name == "amazon-office")  # people buy things again
    assert task.domain.singular in {"product", "artist", "article"}
    for query in found.queries:
        assert found.qrels[query.user_id] <= {item.id for item in query.candidates}
        assert not {taken.item.id for taken in query.history} & {item.id for item in query.candidates}


def test_published_rows_belong_to_tasks_that_ship_and_measure_the_same() -> None:
    tables = published.read()
    assert {table.protocol for table in tables} == {"LLMRank", "LlamaRec", "TALLRec", "NIR"}
    for table in tables:
        task = load_task(EVAL / f"{table.task}.toml")
        assert all(set(row.metrics) <= set(task.settings.metrics) for row in table.rows)
        assert "arXiv" in table.source
        assert all(0 <= value <= 100 for row in table.rows for value in row.metrics.values())


def test_published_rows_stand_beside_the_same_protocol_only() -> None:
    task = load_task(EVAL / "llamarec-ml-latest-small.toml")
    record = {"task": task.name, "split": "test", "settings": task.settings.model_dump(mode="json")}

    shown = published.beside(record)
    assert [row.name for row in shown[0].rows] == ["LRURec", "LlamaRec (Llama-2-7B)"]
    assert any("HR@10 15.24" in line for line in published.lines(shown))
    for change in ({"users": 100, "all_users": False}, {"core": 4}, {"sampler": "uniform"}, {"history": 10}):
        data = record["settings"]["data"] | change
        assert published.beside(record | {"settings": record["settings"] | {"data": data}}) == ()
    assert (
        published.beside(record | {"split": "selection"})
        == published.beside(record | {"split": "candidate file"})
        == ()
    )
    assert published.beside(record | {"task": "tiny"}) == ()


def test_a_key_nobody_knows_in_the_published_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "published.toml"
    file.write_text((EVAL / "published.toml").read_text() + '\n[[tables]]\ntask = "x"\nprotcol = "y"\n')
    with pytest.raises(ArtifactError, match=r"published\.toml:\d+: unknown key 'protcol'"):
        artifacts.read_toml(file, published.Published)
