"""The file of kept answers: what comes out is what went in or nothing, and whatever is wrong with it ends no run."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewrec_prompt import score_cache as module
from fewrec_prompt.score_cache import Kept, ScoreCache, score_cache

ROOT = Path(__file__).resolve().parent.parent
N_UNITS = 40


def name(n: int) -> str:
    return f"{n:064x}"


def rows(n: int) -> tuple[np.ndarray, ...]:
    """A made-up unit: its rows differ in length, and no two units share a number."""
    return tuple(-(np.arange(length) + 1) / (n + 3) for length in (1, 3, 2 + n % 5))


def same(kept: Kept | None, n: int) -> bool:
    return (
        kept is not None
        and kept.ms == n + 0.25
        and [row.tolist() for row in kept.rows] == [row.tolist() for row in rows(n)]
    )


def filled(path: Path, n_units: int = N_UNITS) -> Path:
    cache = ScoreCache(path)
    for n in range(n_units):
        cache.put(name(n), rows(n), n + 0.25)
    cache.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("whole") / "scores.sqlite")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "scores.sqlite"))


# --- in and out --------------------------------------------------------------------------------------------------


def test_what_was_put_comes_back_to_the_last_bit_in_another_process_too(whole: Path) -> None:
    cache = ScoreCache(whole)
    assert all(same(cache.get(name(n)), n) for n in range(N_UNITS))
    assert cache.get(name(N_UNITS)) is None
    assert cache.n_damaged == 0


def test_what_is_not_written_yet_is_known_already(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    cache.put(name(1), rows(1), 1.25)
    assert same(cache.get(name(1)), 1)
    assert ScoreCache(cache.path).get(name(1)) is None
    cache.flush()
    assert same(ScoreCache(cache.path).get(name(1)), 1)


def test_an_interrupted_run_leaves_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        with score_cache() as cache:
            cache.put(name(1), rows(1), 1.25)
            raise KeyboardInterrupt

    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with score_cache() as cache:
        assert same(cache.get(name(1)), 1)


def test_nothing_is_touched_before_the_first_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "new"))
    with score_cache() as cache:
        assert cache.size() == (0, 0)
    assert not (tmp_path / "new").exists()


def test_it_lies_beside_the_assets_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWREC_CACHE")
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path))
    assert module.folder() == tmp_path / "scores"


# --- damage ------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The same bytes but for one bit."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def check(path: Path) -> bool:
    """Whether anything was noticed. Every answer is right or not there; what is put again comes back at last."""
    said: list[str] = []
    cache = ScoreCache(path, said.append)
    n_rounds = 1
    while _ask_and_put(cache):  # damage may show late, and a new file is empty
        n_rounds += 1
        assert n_rounds < 5, "what was put does not come back"
    cache.close()
    return bool(cache.n_damaged or said or n_rounds > 1)


def _ask_and_put(cache: ScoreCache) -> int:
    found = [cache.get(name(n)) for n in range(N_UNITS)]
    assert all(kept is None or same(kept, n) for n, kept in enumerate(found)), "a wrong answer"
    lacking = [n for n, kept in enumerate(found) if kept is None]
    for n in lacking:
        cache.put(name(n), rows(n), n + 0.25)
    cache.flush()
    return len(lacking)


@pytest.mark.parametrize("n_flips", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_flipped_bit_gives_a_wrong_answer(whole: Path, tmp_path: Path, n_flips: int) -> None:
    data, rng, n_noticed = whole.read_bytes(), random.Random(0), 0
    for _ in range(n_flips):
        path = tmp_path / "scores.sqlite"
        path.write_bytes(flipped(data, rng))
        n_noticed += check(path)
        _remove(path)
    assert n_noticed > n_flips / 5  # the rest hit free space


def test_three_hundred_flips_in_one_file_give_no_wrong_answer(copy: Path) -> None:
    rng = random.Random(1)
    for _ in range(300):
        copy.write_bytes(flipped(copy.read_bytes(), rng))
    assert check(copy)


def test_no_file_that_was_cut_gives_a_wrong_answer(whole: Path, tmp_path: Path) -> None:
    data, rng = whole.read_bytes(), random.Random(2)
    for _ in range(40):
        path = tmp_path / "scores.sqlite"
        path.write_bytes(data[: rng.randrange(len(data))])
        check(path)
        _remove(path)


def _remove(path: Path) -> None:
    for tail in ("", "-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)


def test_a_damaged_row_is_dropped_counted_and_made_again(copy: Path) -> None:
    with sqlite3.connect(copy) as database:
        database.execute("UPDATE units SET ms = ms + 1 WHERE key=?", (name(3).encode(),))
    cache = ScoreCache(copy)
    assert cache.get(name(3)) is None
    assert cache.n_damaged == 1
    assert cache.size()[0] == N_UNITS - 1
    cache.put(name(3), rows(3), 3.25)
    assert same(cache.get(name(3)), 3)


def test_the_row_of_another_name_is_no_answer(copy: Path) -> None:
    """As a damaged index would lead to it."""
    with sqlite3.connect(copy) as database:
        database.execute("DELETE FROM units WHERE key=?", (name(4).encode(),))
        database.execute("UPDATE units SET key=? WHERE key=?", (name(4).encode(), name(5).encode()))
    cache = ScoreCache(copy)
    assert cache.get(name(4)) is None
    assert cache.n_damaged == 1


@pytest.mark.parametrize("content", [b"", b"no database at all " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_replaced_and_said_once(tmp_path: Path, content: bytes) -> None:
    path, said = tmp_path / "scores.sqlite", []
    path.write_bytes(content)
    cache = ScoreCache(path, said.append)
    assert cache.get(name(1)) is None
    cache.put(name(1), rows(1), 1.25)
    cache.close()
    assert len(said) == cache.n_damaged == (1 if content else 0)  # an empty file is what SQLite begins with
    assert same(ScoreCache(path).get(name(1)), 1)


def test_a_damaged_file_that_cannot_be_taken_away_is_said_once_and_left(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    copy.write_bytes(b"no database at all " * 1000)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        cache = ScoreCache(copy, said.append)
        for n in range(3):
            assert cache.get(name(n)) is None
            cache.put(name(n), rows(n), 0.5)
        cache.close()
    assert len(said) == 1
    assert "cannot be used (file is not a database)" in said[0]


def test_another_process_that_began_a_new_file_is_followed(copy: Path) -> None:
    said: list[str] = []
    one = ScoreCache(copy, said.append)
    assert same(one.get(name(1)), 1)
    other = ScoreCache(copy)
    other._replace()
    other.put(name(50), rows(50), 50.25)
    other.flush()
    one.put(name(51), rows(51), 51.25)
    one.close()
    assert said == []
    assert same(ScoreCache(copy).get(name(50)), 50)
    assert same(ScoreCache(copy).get(name(51)), 51)


# --- a disk that refuses -----------------------------------------------------------------------------------------


def test_a_full_disk_is_said_once_and_reading_goes_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = module._connected

    def full(path: str, *, uri: bool = False) -> sqlite3.Connection:
        database = connected(path, uri=uri)
        database.execute("PRAGMA max_page_count=1")  # which means as many as there are
        return database

    monkeypatch.setattr(module, "_connected", full)
    said: list[str] = []
    cache = ScoreCache(copy, said.append)
    for n in range(N_UNITS, 3 * N_UNITS):
        assert cache.get(name(n)) is None
        cache.put(name(n), [np.ones(3000)], 0.5)
    cache.flush()
    assert len(said) == 1
    assert "cannot be used (database or disk is full); the run goes on" in said[0]
    assert str(copy) in said[0]
    assert same(cache.get(name(1)), 1)
    cache.close()
    assert same(ScoreCache(copy).get(name(1)), 1)


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said: list[str] = []
    cache = ScoreCache(tmp_path / "file" / "scores.sqlite", said.append)
    for n in range(3):
        assert cache.get(name(n)) is None
        cache.put(name(n), rows(n), 0.5)
    cache.close()
    assert len(said) == 1
    assert "cannot be used" in said[0]
    assert "--no-cache" in said[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="this machine runs as root, whom no permission stops")
def test_what_may_only_be_read_is_read(copy: Path) -> None:
    copy.chmod(0o444)
    copy.parent.chmod(0o555)
    try:
        _only_read(copy)
    finally:
        copy.parent.chmod(0o755)


def test_a_file_that_takes_no_writes_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = module._connected

    def read_only(path: str, *, uri: bool = False) -> sqlite3.Connection:
        database = connected(path, uri=uri)
        database.execute("PRAGMA query_only=ON")
        return database

    monkeypatch.setattr(module, "_connected", read_only)
    monkeypatch.setattr(module.os, "access", lambda path, mode: mode != os.W_OK)
    _only_read(copy)


def _only_read(path: Path) -> None:
    said: list[str] = []
    cache = ScoreCache(path, said.append)
    assert same(cache.get(name(1)), 1)
    cache.put(name(50), rows(50), 0.5)
    cache.flush()
    assert same(cache.get(name(2)), 2)
    cache.close()
    assert len(said) == 1
    assert "readonly" in said[0]


# --- size --------------------------------------------------------------------------------------------------------


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    path = filled(tmp_path / "scores.sqlite", 1000)
    later = ScoreCache(path)
    used = [name(n) for n in range(0, 1000, 10)]
    assert all(later.get(key) for key in used)
    n_before, bytes_before = later.size()

    freed = later.gc(bytes_before // 2)

    n_after, bytes_after = later.size()
    assert bytes_after <= bytes_before // 2 < bytes_after + freed
    assert 0.3 * n_before < n_after < 0.6 * n_before
    assert all(later.get(key) for key in used)
    later.close()
    assert path.stat().st_size <= bytes_before // 2


def test_it_never_grows_beyond_its_bound(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite", max_bytes=300_000)
    for n in range(500):
        cache.put(name(n), [np.full(200, -float(n))], 1.0)
    cache.flush()
    n_units, n_bytes = cache.size()
    assert n_bytes <= 300_000
    assert 50 < n_units < 200
    assert cache.get(name(499)) is not None
    assert cache.get(name(0)) is None


def test_everything_can_be_dropped(copy: Path) -> None:
    cache = ScoreCache(copy)
    assert cache.gc(0) > 0
    assert cache.size()[0] == 0
    cache.put(name(1), rows(1), 1.25)
    assert same(cache.get(name(1)), 1)


# --- several processes -------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from fewrec_prompt import score_cache
from test_score_cache import name, rows, same

score_cache.FLUSH_UNITS = 3
cache = score_cache.ScoreCache(Path(sys.argv[1]), lambda line: print(line, flush=True))
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    kept = cache.get(name(n))
    assert kept is None or same(kept, n)
    cache.put(name(n), rows(n), n + 0.25)
cache.close()
"""


def test_processes_that_begin_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.sqlite"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    spans = ((0, 300), (100, 400), (200, 500))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, *map(str, span)], env=environment, stdout=subprocess.PIPE)
        for span in spans
    ]
    assert [writer.communicate()[0] for writer in writers] == [b"", b"", b""]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    cache = ScoreCache(path)
    assert all(same(cache.get(name(n)), n) for n in range(500))
    assert cache.size()[0] == 500
