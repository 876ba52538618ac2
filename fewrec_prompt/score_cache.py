"""What models answered, kept for other runs: one SQLite file, a row a unit of computation, named by all it depends on.

A unit (what was asked together) is read and written whole. What a name is made of is a backend's business (its
`identity`), what rows mean is scoring.py's. The file is a convenience: whatever is wrong with it, answers are right
and runs go on. A damaged row is dropped and counted, a damaged file replaced, and a disk that refuses ends its use,
which is said once.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fewrec_prompt.assets import Say, cache_home, quiet
from fewrec_prompt.logged import blames_disk, checksum, pack, unpack

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 2_000_000_000
FLUSH_SECONDS, FLUSH_UNITS = 1.0, 32
BUSY_SECONDS = 10.0  # other processes write for milliseconds at a time
_FILE = "scores-1.sqlite"  # a number up where the table changes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, ms REAL NOT NULL, shapes BLOB NOT NULL, logprobs BLOB NOT NULL,
  crc INTEGER NOT NULL, used INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS units_by_use ON units (used);
"""
_TROUBLE = (sqlite3.Error, OSError, UnicodeDecodeError)
"""What using the file may raise; the last where SQLite's own message holds text of a damaged file."""

T = TypeVar("T")


class _Damage(sqlite3.DatabaseError):
    """What SQLite did not notice."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@dataclass(frozen=True, slots=True)
class Kept:
    """A unit's rows (float64, nats), and the milliseconds that the model took for them."""

    rows: tuple[np.ndarray, ...]
    ms: float


def folder() -> Path:
    """Where the file lies: $FEWREC_CACHE, else `scores` beside the assets. It has to be a local disk."""
    own = os.environ.get("FEWREC_CACHE")
    return Path(own).expanduser().absolute() if own else cache_home() / "scores"


@contextmanager
def score_cache(say: Say = quiet, *, max_bytes: int = MAX_BYTES) -> Iterator[ScoreCache]:
    """The cache of this user; what was put in is in the file when it is left, whatever ends it."""
    cache = ScoreCache(folder() / _FILE, say, max_bytes=max_bytes)
    try:
        yield cache
    finally:
        cache.close()


class ScoreCache:
    """Units by name, bounded in size; the least recently used go first. Made by `score_cache`; for one thread.

    Nothing is touched before the first question. Several processes may use the file at once.
    """

    def __init__(self, path: Path, say: Say = quiet, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.n_damaged = 0  # rows, and whole files, that were not what had been written
        self._say, self._max_bytes = say, max_bytes
        self._database: sqlite3.Connection | None = None
        self._inode = 0  # of the file that was opened
        self._reads = self._writes = True
        self._pending: dict[str, Kept] = {}
        self._touched: set[str] = set()
        self._flushed_at = time.monotonic()
        self._turn = 0  # one more than any use so far: recency without a clock

    def get(self, key: str) -> Kept | None:
        """The unit of that name, if it is here and whole."""
        if key in self._pending:
            return self._pending[key]
        if not self._reads:
            return None
        kept = self._attempt(lambda database: self._read(database, key))
        if kept is not None:
            self._touched.add(key)
        return kept

    def put(self, key: str, rows: Sequence[np.ndarray], ms: float) -> None:
        """Keep a unit; others see it a second or 32 units later at most."""
        if self._writes:
            self._pending[key] = Kept(tuple(rows), ms)
            if len(self._pending) >= FLUSH_UNITS or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Write what is pending, in one short transaction; then drop what is too much."""
        if self._writes and (self._pending or self._touched):
            self._attempt(self._write, self._stop_writing)
        self._pending, self._touched, self._flushed_at = {}, set(), time.monotonic()

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        self.flush()
        self._disconnect()

    def gc(self, max_bytes: int) -> int:
        """Drop what was not used for longest until no more than this many bytes are in use; how many were freed."""
        self.flush()
        return self._attempt(lambda database: _shrink(database, max_bytes)) or 0

    def size(self) -> tuple[int, int]:
        """How many units are kept, and in how many bytes."""
        if not self.path.exists():
            return 0, 0
        found = self._attempt(lambda database: (_n_rows(database), _n_bytes(database)))
        return found or (0, 0)

    # --- the file

    def _read(self, database: sqlite3.Connection, key: str) -> Kept | None:
        question = "SELECT ms, shapes, logprobs, crc FROM units WHERE key=?"
        row = database.execute(question, (key.encode(),)).fetchone()
        if row is None:
            return None
        ms, shapes, blob, crc = row
        # the name is in the checksum: a damaged index may lead to the row of another name
        if isinstance(shapes, bytes) and isinstance(blob, bytes) and _checksum(key, ms, shapes, blob) == crc:
            return Kept(unpack(shapes, blob)[0], ms)
        self.n_damaged += 1
        if self._writes:
            database.execute("DELETE FROM units WHERE key=?", (key.encode(),))
        return None

    def _write(self, database: sqlite3.Connection) -> None:
        with _transaction(database):
            for key, kept in self._pending.items():
                shapes, blob = pack([kept.rows])
                cells = (kept.ms, shapes.encode(), blob)
                row = (key.encode(), *cells, _checksum(key, *cells), self._turn)
                database.execute(
                    "INSERT OR REPLACE INTO units (key, ms, shapes, logprobs, crc, used) VALUES (?, ?, ?, ?, ?, ?)", row
                )
                if database.execute("SELECT count(*) FROM units WHERE key=?", (row[0],)).fetchone() != (1,):
                    raise _Damage("a row that was written is not found")  # its index leads nowhere
            touched = [(self._turn, key.encode()) for key in self._touched]
            database.executemany("UPDATE units SET used=? WHERE key=?", touched)
        if _n_bytes(database) > self._max_bytes:
            _shrink(database, self._max_bytes * 9 // 10)

    def _attempt(
        self, work: Callable[[sqlite3.Connection], T], refused: Callable[[Exception], None] | None = None
    ) -> T | None:
        """What the work gives; None where the file cannot be used, which is then `refused`, by default for good.

        A damaged file is replaced, and the work done with the new one.
        """
        refused = refused or self._give_up
        for _ in range(3):
            try:
                if self._database is not None and self._is_gone():
                    self._disconnect()  # another process found the file damaged and began a new one
                if self._database is None:
                    self._open()
                return work(self._connection)
            except _TROUBLE as error:
                if not self._is_damage(error) or not self._replace():
                    refused(error)
                    return None
        refused(sqlite3.DatabaseError("damaged again right after it was replaced"))
        return None

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._database is not None, "opened before it is used"
        return self._database

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._database = _connected(str(self.path))
                self._inode = self.path.stat().st_ino
                _prepare(self._database)
        except _TROUBLE as error:
            self._disconnect()
            if self._is_damage(error) or not self.path.exists():
                raise
            self._database = _connected(f"{self.path.as_uri()}?mode=ro", uri=True)
            self._stop_writing(error)
        self._turn = 1 + self._connection.execute("SELECT coalesce(max(used), 0) FROM units").fetchone()[0]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While a file is made or taken away, no other process does so."""
        with self.path.with_name("lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_damage(self, error: Exception) -> bool:
        """Whether an error says that the content of the file is not what was written."""
        if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode"):
            return not blames_disk(error, self.path)
        return isinstance(error, UnicodeDecodeError)

    def _replace(self) -> bool:
        """Take away a damaged file, if nobody else has: all it can cost is computing again. False if it cannot go."""
        self.n_damaged += 1
        self._disconnect()
        try:
            with self._alone():
                if not self._is_gone():
                    for tail in ("-wal", "-shm", ""):
                        self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
        except OSError:
            return False
        self._say(f"{self.path}: the file of kept answers is damaged; a new one is begun")
        return True

    def _is_gone(self) -> bool:
        """Whether there is another file now in the place of the one that was opened, or none."""
        return not self.path.exists() or self.path.stat().st_ino != self._inode

    def _give_up(self, error: Exception) -> None:
        self._stop_writing(error)
        self._reads = False
        self._disconnect()

    def _stop_writing(self, error: Exception) -> None:
        if self._writes:
            self._say(
                f"{self.path}: cannot be used ({error}); the run goes on, but keeps no answers for other runs. Make "
                "room there, set FEWREC_CACHE to a folder on another disk, or give --no-cache"
            )
        self._writes = False

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _connected(name: str, *, uri: bool = False) -> sqlite3.Connection:
    database = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, uri=uri)
    database.text_factory = bytes  # text in a damaged cell need not be UTF-8
    return database


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect where the file is new
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")  # loses the last units with the power, never the file
    database.execute("PRAGMA cell_size_check=ON")
    database.executescript(_SCHEMA)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _shrink(database: sqlite3.Connection, max_bytes: int) -> int:
    before = _n_bytes(database)
    while (now := _n_bytes(database)) > max_bytes and (n_rows := _n_rows(database)):
        share = ceil(n_rows * (now - max_bytes) / now)
        with _transaction(database):
            database.execute("DELETE FROM units WHERE id IN (SELECT id FROM units ORDER BY used, id LIMIT ?)", (share,))
    database.executescript("PRAGMA incremental_vacuum")  # a page a step, and `execute` takes one step
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return max(0, before - _n_bytes(database))


def _n_rows(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM units").fetchone()[0])


def _n_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages in use; what was freed is used again before the file grows."""
    numbers = ("page_count", "freelist_count", "page_size")
    pages, free, size = (int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in numbers)
    return (pages - free) * size


def _checksum(key: str, ms: object, shapes: bytes, blob: bytes) -> int:
    return checksum(blob, key, ms, shapes)
