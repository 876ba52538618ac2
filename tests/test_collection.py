"""`fewrec runs list | show | gc`: what there is, and that nothing goes which should stay."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import PLAIN, PMI, WordyBackend, run_of, tiny
from typer.testing import CliRunner

from fewrec_prompt import collection, runs
from fewrec_prompt.cli import app
from fewrec_prompt.errors import RunError
from fewrec_prompt.evaluation import evaluate
from fewrec_prompt.score_cache import score_cache

HOME = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOME)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a finished run, a copy of it, an unfinished one, and the beginning of the finished one."""
    parent = tmp_path / "runs"
    run_of(parent / "first", PLAIN)
    shutil.copytree(parent / "first", parent / "again")
    begun(run_of(tmp_path / "whole", PMI).folder, parent / "begun")
    begun(parent / "first", parent / "stub")
    (parent / "notes").mkdir()  # not a run
    (parent / "notes" / "mine.txt").write_text("mine")
    return parent


def begun(source: Path, to: Path) -> Path:
    """The run as it was before it had finished."""
    to.mkdir()
    for name in ("header.json", "results.sqlite", "lock"):
        if (source / name).is_file():
            shutil.copy(source / name, to / name)
    return to


def fewrec(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_list_shows_every_run_and_nothing_else(shelf: Path) -> None:
    lines = fewrec("runs", "list", shelf).splitlines()
    assert len(lines) == 1 + 4
    of = {Path(line.split()[0]).name: re.split("  +", line) for line in lines[1:]}
    assert of.keys() == {"first", "again", "begun", "stub"}
    assert "unfinished" in of["begun"]
    assert "unfinished" in of["stub"]
    record = json.loads((shelf / "first" / "run.json").read_text())
    best = max(record["rows"], key=lambda row: row["metrics"]["nDCG@10"]["value"])
    value = f"nDCG@10 {100 * best['metrics']['nDCG@10']['value']:.1f}"
    assert of["first"][1:7] == ["tiny", "WordyBackend", "3", "6", best["name"], value]
    assert of["first"][8] == "finished"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no such folder; .*name another"):
        fewrec("runs", "list", tmp_path / "nowhere")


def test_show_says_what_a_run_is_finished_or_not(shelf: Path) -> None:
    shown = fewrec("runs", "show", shelf / "first")
    for line in ("task  tiny", "settings.seed  0", "numerics.precision  fp32", "versions.torch", "templates.complete"):
        assert f"\n{line}" in shown
    assert "\nrandom " in shown
    assert "repeat its command" in fewrec("runs", "show", shelf / "begun")
    with pytest.raises(RunError, match=r"notes: holds no run; name a folder"):
        fewrec("runs", "show", shelf / "notes")


def test_a_damaged_record_is_listed_and_said_to_be_damaged(shelf: Path) -> None:
    (shelf / "first" / "run.json").write_text("{half")
    assert "damaged" in fewrec("runs", "list", shelf)
    with pytest.raises(RunError, match=r"first: damaged.*new --out"):
        fewrec("runs", "show", shelf / "first")
    fewrec("runs", "gc", "--in", shelf, "--yes")
    assert "first" in names(shelf)


def test_gc_deletes_nothing_unless_told_to(shelf: Path) -> None:
    before = {path: path.stat().st_mtime for path in sorted(shelf.rglob("*"))}
    said = fewrec("runs", "gc", "--in", shelf)
    assert "nothing is deleted yet; repeat with --yes" in said
    assert [line.split()[0] for line in said.splitlines()[1:-1]].count("goes") == 2
    assert {path: path.stat().st_mtime for path in sorted(shelf.rglob("*"))} == before


def test_gc_takes_unfinished_runs_and_leaves_finished_ones(shelf: Path) -> None:
    fewrec("runs", "gc", "--in", shelf, "--yes")
    assert names(shelf) == {"first", "again", "notes"}
    assert fewrec("runs", "gc", "--in", shelf).splitlines()[1].startswith("stays")  # one of two that are the same


def test_a_finished_run_goes_if_it_is_named(shelf: Path) -> None:
    fewrec("runs", "gc", shelf / "again", "--in", shelf, "--yes")
    assert names(shelf) == {"first", "notes"}
    with pytest.raises(RunError, match="notes: holds no run"):
        fewrec("runs", "gc", shelf / "notes", "--in", shelf, "--yes")


def test_a_run_that_is_being_written_never_goes(shelf: Path) -> None:
    for folder in ("begun", "first"):
        with runs.locked(shelf / folder):
            said = fewrec("runs", "gc", shelf / folder, "--in", shelf, "--yes")
            assert f"deleted  {shelf / folder}" not in said
        assert folder in names(shelf)


def test_a_run_that_finishes_while_gc_looks_stays(shelf: Path) -> None:
    found = collection.leftovers(shelf)
    (shelf / "begun" / "run.json").write_text("{}")
    problems = {left.folder.name: problem for left, problem in collection.clear(found)}
    assert "holds a finished run" in problems["begun"]
    assert "begun" in names(shelf)


def test_a_folder_with_somebodys_own_files_stays(shelf: Path) -> None:
    (shelf / "begun" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"begun: not deleted, for no run writes 'notes.txt'; move it elsewhere"):
        fewrec("runs", "gc", "--in", shelf, "--yes")
    assert (shelf / "begun" / "notes.txt").read_text() == "mine"
    assert "stub" not in names(shelf)  # the others went all the same


def test_what_a_link_points_to_stays(shelf: Path, tmp_path: Path) -> None:
    (shelf / "link").symlink_to(tmp_path / "whole")
    fewrec("runs", "gc", "--in", shelf, "--yes")
    assert (tmp_path / "whole" / "run.json").is_file()
    with pytest.raises(RunError, match="link: holds no run"):
        runs.delete(shelf / "link", even_finished=True)


@pytest.mark.parametrize("n_deleted", range(8))
def test_what_a_kill_leaves_of_a_deletion_is_an_unfinished_run(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, n_deleted: int
) -> None:
    unlink, left = Path.unlink, n_deleted

    def dies(self: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            runs.delete(shelf / "again", even_finished=True)
    assert collection.look(shelf / "again").state == ("finished" if n_deleted == 0 else "unfinished")
    backend = WordyBackend()
    if n_deleted:
        evaluate(tiny(PLAIN), out=shelf / "again", backend=backend)  # it can go on
    assert (shelf / "again" / "run.json").is_file()


def test_gc_shrinks_kept_answers_only_where_it_is_told_to(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "kept"))
    with score_cache() as cache:
        for number in range(40):
            cache.put(f"unit {number}", [np.zeros(10_000)], 1.0)
    words = ("runs", "gc", "--in", shelf, "--answers", "1")
    assert "stay" in fewrec("runs", "gc", "--in", shelf, "--answers", "4").splitlines()[0]
    assert "go with --yes" in fewrec(*words).splitlines()[0]
    with score_cache() as cache:
        assert cache.size()[0] == 40
    assert "deleted" in fewrec(*words, "--yes").splitlines()[0]
    with score_cache() as cache:
        n_units, n_bytes = cache.size()
    assert 0 < n_units < 40
    assert n_bytes <= 1_000_000
