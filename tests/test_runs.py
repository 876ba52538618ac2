"""A run on disk: what is saved survives kills and full disks, and going on gives what not stopping would have given."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation import PLAIN, PMI, WordyBackend, rankings_in, record_in, tiny
from test_tasks import task_in

from fewrec_prompt import runs
from fewrec_prompt.errors import LockedError, RunError, StorageError
from fewrec_prompt.evaluation import evaluate
from fewrec_prompt.runs import Unit, run_store
from fewrec_prompt.task_settings import RowSettings

ROOT = Path(__file__).resolve().parent.parent
HEADER = {"task": "t", "settings": {"seed": 0, "description": "d"}, "numerics": {"precision": "fp32", "reason": "r"}}
RUN = """
import resource, sys, time
from test_evaluation import PLAIN, PMI, WordyBackend, tiny
from fewrec_prompt import runs
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.evaluation import evaluate

out, seconds, limit = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
runs.COMMIT_SECONDS = 0.0
class Slow(WordyBackend):
    def logprobs(self, questions, *, grad=False):
        time.sleep(seconds)
        return super().logprobs(questions)
Slow.__name__ = "WordyBackend"
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    evaluate(tiny(PLAIN, PMI), out=out, backend=Slow(), progress=lambda *point: print(point, flush=True))
except FewrecError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def child(out: Path, seconds: float = 0.0, limit: int = 0) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(out), str(seconds), str(limit)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """rankings.parquet of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield rankings_in(finished(tmp_path_factory.mktemp("whole") / "run").folder)


def finished(out: Path, backend: WordyBackend | None = None) -> Any:
    return evaluate(tiny(PLAIN, PMI), out=out, backend=backend or WordyBackend())


def unit(*numbers: float) -> Unit:
    return Unit(((np.array(numbers),),), n_history=2, ms=1.5)


# --- killed, interrupted, full ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_seen", [0, 1, 5, 11])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: bytes, n_seen: int
) -> None:
    process = child(tmp_path / "run", seconds=0.05)
    assert process.stdout is not None
    for _ in range(n_seen):
        process.stdout.readline()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    backend = WordyBackend()

    finished(tmp_path / "run", backend)

    assert rankings_in(tmp_path / "run") == uninterrupted
    assert 12 - n_seen - 1 <= len(backend.asked) <= 12 - n_seen  # what was reported is not asked again


def test_ctrl_c_keeps_what_was_finished(tmp_path: Path, uninterrupted: bytes) -> None:
    class Interrupted(WordyBackend):
        def logprobs(self, questions: Any, *, grad: bool = False) -> Any:
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().logprobs(questions)

    Interrupted.__name__ = "WordyBackend"
    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "run", Interrupted())
    backend = WordyBackend()
    finished(tmp_path / "run", backend)
    assert len(backend.asked) == 7
    assert rankings_in(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("limit", [0, 1_000, 7_000, 20_000, 33_000, 36_000, 40_000])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, uninterrupted: bytes, limit: int
) -> None:
    process = child(tmp_path / "run", limit=limit)
    _, said = process.communicate()
    if not limit:
        assert process.returncode == 0, said
        assert rankings_in(tmp_path / "run") == uninterrupted
        return
    assert process.returncode == 74, said
    assert str(tmp_path / "run") in said
    assert "ree some space" in said
    assert not (tmp_path / "run" / "run.json").exists()
    finished(tmp_path / "run")
    assert rankings_in(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("name", ["candidates.parquet", "rankings.parquet", "report.html", "run.json"])
def test_a_write_that_fails_at_the_end_leaves_an_unfinished_run(
    tmp_path: Path, uninterrupted: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        return renamed(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match=name):
            finished(tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    backend = WordyBackend()
    finished(tmp_path / "run", backend)
    assert backend.asked == []
    assert rankings_in(tmp_path / "run") == uninterrupted
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_half_written_files_of_a_killed_process_are_swept_away(tmp_path: Path, uninterrupted: bytes) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".header.json.123.part", ".rankings.parquet.123.tmp", "lock"):
        (folder / name).write_text("half")
    finished(folder)
    assert rankings_in(folder) == uninterrupted
    assert not list(folder.glob(".*"))


def test_a_damaged_answer_is_asked_again(tmp_path: Path, uninterrupted: bytes) -> None:
    folder = tmp_path / "run"
    finished(folder)
    (folder / "run.json").unlink()
    with sqlite3.connect(folder / "results.sqlite") as database:
        (blob,) = database.execute("SELECT logprobs FROM units WHERE user_id='bob'").fetchone()
        database.execute("UPDATE units SET logprobs=? WHERE user_id='bob'", (blob[:-1] + bytes([blob[-1] ^ 1]),))
        database.execute("UPDATE units SET n_history=n_history+1 WHERE user_id='eva'")
    backend = WordyBackend()

    finished(folder, backend)

    assert len(backend.asked) == 4
    assert rankings_in(folder) == uninterrupted


def test_the_row_of_another_user_is_no_answer(tmp_path: Path) -> None:
    with run_store(tmp_path / "run", HEADER) as store:
        store.put("q", "u2", unit(-1.0))
        store._database.execute("UPDATE units SET user_id='u3'")  # one bit
        assert store.get("q", "u3") is None


def test_text_that_is_damaged_is_asked_again(tmp_path: Path) -> None:
    with run_store(tmp_path / "run", HEADER) as store:
        store.put("q", "u2", unit(-1.0))
        store._database.execute("UPDATE units SET shapes=CAST(x'ff5b31' AS TEXT)")
        assert store.get("q", "u2") is None


def test_a_file_that_is_no_database_any_more_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "results.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(RunError, match=r"results\.sqlite: .*damaged\. Run again with a new --out"):
        finished(tmp_path / "run")


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    with run_store(tmp_path / "run", HEADER) as store:
        store.put("q", "ann", unit(-1.0))
        with (
            pytest.raises(LockedError, match="another process is writing this run") as caught,
            run_store(tmp_path / "run", HEADER),
        ):
            pass
        assert caught.value.exit_code == 75
        assert store.get("q", "ann") is not None  # and the first is not disturbed


def test_a_run_that_another_process_finished_meanwhile_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked before the lock, finished by its owner, then locked: checked again."""
    locked = runs.locked

    def late(folder: Path) -> Any:
        (folder / "run.json").write_text("{}")
        return locked(folder)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(runs, "locked", late)
    with pytest.raises(RunError, match="holds a finished run"), run_store(tmp_path / "run", HEADER):
        pass
    assert (tmp_path / "run" / "run.json").read_text() == "{}"


# --- what may be resumed -----------------------------------------------------------------------------------------


def unfinished(folder: Path, header: dict[str, Any] | None = None) -> Path:
    with run_store(folder, header or HEADER) as store:
        store.put("q", "ann", unit(-1.0, -2.0))
    return folder


def test_what_was_put_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    unfinished(tmp_path / "run")
    with run_store(tmp_path / "run", HEADER) as store:
        found = store.get("q", "ann")
        assert store.get("q", "bob") is None
    assert found is not None
    assert (found.n_history, found.ms) == (2, 1.5)
    assert [row.tolist() for rows in found.logprobs for row in rows] == [[-1.0, -2.0]]


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    with run_store(tmp_path / "run", HEADER) as store:
        assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._database.execute("PRAGMA journal_mode").fetchone() == (b"wal",)


def test_a_folder_in_which_nothing_was_finished_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_store(tmp_path / "new", HEADER):
        raise RuntimeError
    assert not (tmp_path / "new").exists()

    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError), run_store(tmp_path / "empty", HEADER):
        raise RuntimeError
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_with_anything_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    (folder / ".thesis.part").write_text("x")
    with pytest.raises(RunError, match="not empty and not an unfinished run"):
        unfinished(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".thesis.part", "thesis.tex"]
    with pytest.raises(RunError, match="not a folder"):
        unfinished(folder / "thesis.tex")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "u"}, 'task was "t", now "u"'),
        ({"settings": {"seed": 1, "description": "d"}}, "settings.seed was 0, now 1"),
        ({"numerics": {"precision": "bf16", "reason": "r"}}, 'numerics.precision was "fp32", now "bf16"'),
        ({"model": {"sha256": "9"}}, 'model.sha256 was null, now "9"'),
    ],
)
def test_what_decides_a_result_must_be_the_same(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = unfinished(tmp_path / "run")
    before = (folder / "header.json").read_bytes()
    with pytest.raises(RunError) as caught:
        unfinished(folder, HEADER | change)
    assert said in str(caught.value)
    assert "Repeat its command to resume it, or give --out a new folder" in str(caught.value)
    assert (folder / "header.json").read_bytes() == before


def test_what_only_describes_may_differ(tmp_path: Path) -> None:
    header = HEADER | {
        "call": {"precision": "auto"},
        "templates": {"a.b": {"origin": "/here/a.jinja", "sha256": "1"}},
        "model": {"name": "x", "sha256": "2"},
    }
    other = HEADER | {
        "call": {"precision": "fp32"},
        "templates": {"a.b": {"origin": "/there/a.jinja", "sha256": "1"}},
        "model": {"name": "y", "sha256": "2"},
        "settings": {"seed": 0, "description": "e", "model": "y"},
        "numerics": {"precision": "fp32", "reason": "asked for"},
    }
    folder = unfinished(tmp_path / "run", header)
    unfinished(folder, other)
    changed = other | {"templates": {"a.b": {"origin": "/here/a.jinja", "sha256": "3"}}}
    with pytest.raises(RunError, match=r"templates\.a\.b\.sha256"):
        unfinished(folder, changed)


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ((PLAIN,), {}, "settings.rows"),
        ((PLAIN, PMI), {"users": 3}, "settings.data.users"),
        ((PLAIN, PMI), {"seed": 3}, "settings.seed"),
        ((PLAIN, PMI), {"metrics": ("MRR",)}, "settings.metrics"),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(
    tmp_path: Path, rows: tuple[Any, ...], changes: dict[str, Any], said: str
) -> None:
    finished(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunError) as caught:
        evaluate(tiny(*rows, **changes), out=tmp_path / "run", backend=WordyBackend())
    assert said in str(caught.value)


def test_other_titles_and_another_template_are_another_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(Path("prompts/complete.jinja").read_text(encoding="utf-8"))
    task = replace(task_in(tmp_path), settings=task_in(tmp_path).settings.model_copy(update={"rows": rows_of(mine)}))
    evaluate(task, out=tmp_path / "run", backend=WordyBackend())
    (tmp_path / "run" / "run.json").unlink()

    items = tmp_path / "items.csv"
    before = items.read_bytes()
    items.write_bytes(before.replace(b"Ronin", b"Robin"))
    with pytest.raises(RunError, match=r"data\.items\.csv was"):
        evaluate(task, out=tmp_path / "run", backend=WordyBackend())
    items.write_bytes(before)

    mine.write_text(mine.read_text(encoding="utf-8").replace("list", "row"))
    with pytest.raises(RunError, match=r"templates\..*\.sha256 was"):
        evaluate(task, out=tmp_path / "run", backend=WordyBackend())


def rows_of(template: Path) -> tuple[RowSettings, ...]:
    return (RowSettings(prompt=str(template)),)


def test_a_header_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    (folder / "header.json").write_text("{")
    with pytest.raises(RunError, match=r"header\.json: not valid JSON"):
        unfinished(folder)


def test_the_record_holds_no_number_that_is_not_json(tmp_path: Path) -> None:
    assert json.loads(runs.dump({"value": None})) == {"value": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.dump({"value": float("nan")})


def test_the_lock_is_free_after_the_run(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    with (folder / "lock").open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert record_in(finished(tmp_path / "other").folder)["task"] == "tiny"
