"""`fewrec runs export`: all or nothing, and with --share nothing that names a person, a title or a place."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_collection import begun
from test_evaluation import WordyBackend
from typer.testing import CliRunner

from fewrec_prompt import sharing
from fewrec_prompt.cli import app
from fewrec_prompt.comparison import compare
from fewrec_prompt.data.tables import sha256_of
from fewrec_prompt.errors import RunError, StorageError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.sharing import export
from fewrec_prompt.task_settings import METRICS, RowSettings
from fewrec_prompt.tasks import load_task

TITLES = [f"The Confidential Picture {number}" for number in range(40)]
ITEMS = [f"item-number-{number}" for number in range(40)]
USERS = [f"person-number-{number}" for number in range(30)]
WORDS = ("Whispered by the author", "ann lee", "secret-folder", "a private note", "hush-hush")
"""What else must not leave: the text of a template, folders, a description, a word of people."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose template, task, data and metric lie in somebody's own folders."""
    home = tmp_path_factory.mktemp("ann lee") / "secret-folder"
    home.mkdir()
    shelf = enumerate(zip(ITEMS, TITLES, strict=True))
    lines = [f"{item},{title},genre-{number % 3}" for number, (item, title) in shelf]
    (home / "items.csv").write_text("\n".join(["item_id,title,hush-hush", *lines]))
    rows = []
    for number, user in enumerate(USERS):
        history, candidates = [ITEMS[number]], [ITEMS[(number + step) % 40] for step in (1, 2, 3, 4)]
        rows.append({"user_id": user, "history": history, "candidates": candidates, "target": candidates[number % 4]})
    (home / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Path(__file__).parent.parent.joinpath("prompts/complete.jinja").read_text(encoding="utf-8")
    (home / "mine.jinja").write_text(text.replace("Here is", "Whispered by the author: here is"))
    (home / "own.toml").write_text(
        'description = "a private note"\n[data]\nitems = "items.csv"\nqueries = "queries.jsonl"\n'
    )
    asked = (RowSettings(prompt=str(home / "mine.jinja")), RowSettings(prompt="judge"))
    task = Options(rows=asked, metrics=(*METRICS, "exposure-gap@2")).applied(load_task(str(home / "own.toml")))
    return evaluate(task, out=home / "runs" / "one", backend=WordyBackend()).folder


def told(folder: Path) -> str:
    """Everything that can be read in a folder: bytes of every file, and the cells of every table."""
    found = []
    for path in sorted(folder.iterdir()):
        found.append(path.name)
        found.append(path.read_bytes().decode("utf-8", "replace"))
        if path.suffix == ".parquet":
            found.append(json.dumps(pq.read_table(path).to_pylist()) + str(pq.read_metadata(path).metadata))
    return "\n".join(found)


def test_a_whole_export_is_the_run_again(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "copy")
    about = json.loads((tmp_path / "copy" / "export.json").read_text())
    assert about["shared"] is False
    assert {name: sha256_of(tmp_path / "copy" / name) for name in about["files"]} == about["files"]
    assert {path.name for path in run.iterdir()} - {"lock"} == set(about["files"])
    same = {name for name in about["files"] if sha256_of(run / name) == about["files"][name]}
    assert set(about["files"]) - same <= {"results.sqlite"}  # copied by SQLite
    assert compare(run, tmp_path / "copy").pairs[0].n_gained == 0


def test_a_packed_export_has_the_same_bytes_each_time(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "copy.zip")
    (tmp_path / "twice").mkdir()
    export(run, tmp_path / "twice" / "copy.zip")
    assert sha256_of(tmp_path / "copy.zip") == sha256_of(tmp_path / "twice" / "copy.zip")
    with ZipFile(tmp_path / "copy.zip") as archive:
        assert archive.testzip() is None
        names = {Path(name).name for name in archive.namelist()}
    assert names == {path.name for path in run.iterdir()} - {"lock"} | {"export.json"}


def test_what_is_there_already_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("mine")
    with pytest.raises(StorageError, match=r"mine\.zip: is there already; remove it, or name another place"):
        export(run, tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "mine"


def test_an_unfinished_run_is_not_exported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"begun: holds no finished run"):
        export(begun(run, tmp_path / "begun"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("out", ["copy", "copy.zip"])
def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, share: bool
) -> None:
    def full(path: Path, text: str) -> None:
        raise StorageError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(sharing, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        export(run, tmp_path / out, share=share)
    assert list(tmp_path.iterdir()) == []


def test_the_secrets_are_in_the_run_itself(run: Path) -> None:
    """Else the search below would find nothing anywhere."""
    whole = told(run) + str(run)
    for word in (*TITLES[:30], *ITEMS[:30], *USERS, *WORDS):
        assert word in whole, word


def test_a_shared_export_names_no_person_title_or_place(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["runs", "export", str(run), "--out", str(tmp_path / "out"), "--share"])
    assert done.exit_code == 0, done.output
    assert "kept     " in done.output
    assert "dropped  prompts" in done.output
    shared = told(tmp_path / "out")
    assert [word for word in (*TITLES, *ITEMS, *USERS, *WORDS) if word in shared] == []
    assert not (tmp_path / "out" / "results.sqlite").exists()
    assert not (tmp_path / "out" / "examples.json").exists()


def test_a_shared_export_is_still_a_run_with_the_same_numbers(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", share=True)
    own, shared = FinishedRun(run), FinishedRun(tmp_path / "out")
    assert list(shared.rows) == ["random", "popularity", "mine.jinja", "judge"]
    for name, row in zip(shared.rows, own.rows, strict=True):
        may_leave = {key: one for key, one in own.rows[row]["metrics"].items() if "hush-hush" not in key}
        assert shared.rows[name]["metrics"] == may_leave
        assert len(own.rows[row]["metrics"]) == len(may_leave) + 3  # the gaps of three genres
        assert sorted(shared.values(name, "MRR")) == sorted(own.values(row, "MRR"))
    placed, other = shared.placed("judge"), own.placed("judge")
    assert np.allclose(np.sort(placed.score), np.sort(other.score))
    assert (placed.rank[placed.relevant].mean(), placed.place.max()) == (other.rank[other.relevant].mean(), 3)
    assert "mine.jinja" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_two_exports_cannot_be_joined(run: Path, tmp_path: Path) -> None:
    """Each has a salt of its own: neither their users nor their order can be laid side by side."""
    first, second = (FinishedRun(tmp_path / name) for name in "ab")
    for one in (first, second):
        export(run, one.folder, share=True)
    assert first.asked.keys().isdisjoint(second.asked.keys())
    with pytest.raises(RunError, match="cannot be compared"):
        compare(first.folder, second.folder)


def test_a_field_that_nobody_thought_of_stays_at_home(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    record = json.loads((copy / "run.json").read_text())
    record["surprise"] = record["settings"]["surprise"] = "news of tomorrow"
    record["settings"]["data"]["surprise"] = "news of tomorrow"
    (copy / "run.json").write_text(json.dumps(record))
    export(copy, tmp_path / "out", share=True)
    assert "news of tomorrow" not in told(tmp_path / "out")
