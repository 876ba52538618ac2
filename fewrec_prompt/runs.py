"""What a run needed and what came out, on disk: one folder a run, resumable until it is finished.

`header.json` says what the run is and never changes; `results.sqlite` holds what each user's questions returned and is
the truth while the run goes on; `run.json` is written last, so a folder without it is an unfinished run.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fewrec_prompt.errors import LockedError, RunError, StorageError
from fewrec_prompt.files import disk_error, write_text
from fewrec_prompt.types import TokenLogprobs

COMMIT_SECONDS, COMMIT_UNITS = 1.0, 32  # at most this much is asked again after a crash
_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
  questions TEXT NOT NULL, user_id TEXT NOT NULL, n_history INTEGER NOT NULL, ms REAL NOT NULL,
  shapes TEXT NOT NULL, logprobs BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY (questions, user_id)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """What the model answered to one set of questions of one user, and what it cost (wall-clock milliseconds)."""

    logprobs: tuple[TokenLogprobs, ...]
    n_history: int
    ms: float


class RunStore:
    """The folder of one run, locked for this process. Use as a context manager."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        check_folder(folder, header)
        self.folder = folder
        self._pending = 0
        self._saved_at = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a+b")
        except OSError as error:
            raise disk_error(error, folder) from error
        self._take_lock()
        if not (folder / "header.json").exists():
            write_text(folder / "header.json", dump(header))
        self._database = self._open()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(
                f"{self.folder}: another process is writing this run; wait for it or use another --out"
            ) from error

    def _open(self) -> sqlite3.Connection:
        with self._disk():
            database = sqlite3.connect(self.folder / "results.sqlite")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(_SCHEMA)
        return database

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self.folder / 'results.sqlite'}: {error}; finished users are saved. Free some space, then run the "
                "same command again to go on"
            ) from error

    def get(self, questions: str, user_id: str) -> Unit | None:
        """What is saved for these questions of this user; a damaged row is dropped and counts as not there."""
        row = self._database.execute(
            "SELECT n_history, ms, shapes, logprobs, crc FROM units WHERE questions=? AND user_id=?",
            (questions, user_id),
        ).fetchone()
        if row is None:
            return None
        n_history, ms, shapes, blob, crc = row
        if zlib.crc32(blob) != crc:
            self._database.execute("DELETE FROM units WHERE questions=? AND user_id=?", (questions, user_id))
            return None
        return Unit(_unpack(shapes, blob), n_history, ms)

    def put(self, questions: str, user_id: str, unit: Unit) -> None:
        """Save a unit; it is on disk after the next commit, at most a second or 32 units later."""
        shapes, blob = _pack(unit.logprobs)
        row = (questions, user_id, unit.n_history, unit.ms, shapes, blob, zlib.crc32(blob))
        with self._disk():
            self._database.execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._pending += 1
        if self._pending >= COMMIT_UNITS or time.monotonic() - self._saved_at > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put everything saved so far on disk."""
        with self._disk():
            self._database.commit()
        self._pending, self._saved_at = 0, time.monotonic()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write run.json, the mark of a finished run."""
        self.commit()
        header = json.loads((self.folder / "header.json").read_text(encoding="utf-8"))
        write_text(self.folder / "run.json", dump({**header, **results}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            self._database.close()
            self._lock.close()


def check_folder(folder: Path, header: Mapping[str, Any] | None = None) -> None:
    """Raises RunError unless the folder is absent, empty, or an unfinished run (of this header, if given)."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise RunError(f"{folder}: not a folder; give --out a new or empty folder")
    if (folder / "run.json").exists():
        raise RunError(f"{folder}: holds a finished run; give --out a new folder")
    names = {path.name for path in folder.iterdir()}
    if "header.json" not in names and not names <= {"lock"}:
        raise RunError(f"{folder}: not empty and not an unfinished run; give --out a new or empty folder")
    if header is not None and "header.json" in names:
        _check_same(folder, header)


def _check_same(folder: Path, header: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{folder / 'header.json'}: not valid JSON; give --out a new folder") from error
    now = json.loads(dump(header))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise RunError(
            f"{folder}: holds an unfinished run with another {', '.join(changed)}; repeat its command to resume it, "
            "or give --out a new folder"
        )


def new_folder(stem: str, parent: Path = Path("runs")) -> Path:
    """The next free folder runs/<stem>-<n>."""
    n = 1
    while (parent / f"{stem}-{n}").exists():
        n += 1
    return parent / f"{stem}-{n}"


def dump(record: Mapping[str, Any]) -> str:
    """JSON that a person can read; NaN is not JSON and is refused."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _pack(logprobs: tuple[TokenLogprobs, ...]) -> tuple[str, bytes]:
    shapes = [[len(row) for row in rows] for rows in logprobs]
    flat = [row for rows in logprobs for row in rows]
    return json.dumps(shapes), np.concatenate(flat).astype("<f8").tobytes()


def _unpack(shapes: str, blob: bytes) -> tuple[TokenLogprobs, ...]:
    flat, at, questions = np.frombuffer(blob, dtype="<f8"), 0, []
    for lengths in json.loads(shapes):
        rows = []
        for length in lengths:
            rows.append(flat[at : at + length])
            at += length
        questions.append(tuple(rows))
    return tuple(questions)
