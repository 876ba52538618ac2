"""What a run needed and what came out, on disk: one folder a run, resumable until it is finished.

`header.json` says what the run is and never changes; `results.sqlite` holds what each user's questions returned and is
the truth while the run goes on; `run.json` is written last, so a folder without it is an unfinished run.
"""

from __future__ import annotations

import fcntl
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from fewrec_prompt.errors import LockedError, RunError, StorageError
from fewrec_prompt.files import disk_error, write_text
from fewrec_prompt.logged import blames_disk, checksum, pack, unpack
from fewrec_prompt.types import TokenLogprobs

COMMIT_SECONDS, COMMIT_UNITS = 1.0, 32  # at most this much is asked again after a crash
DESCRIBES = (
    "call.*",  # what it comes to stands in numerics and queries
    "settings.description",
    "settings.model",  # the same files under another name are the same model: model.sha256
    "model.name",
    "numerics.reason",
    "templates.*.origin",
    "verbalizers.*.description",
)
"""Parts of a header that say something and decide nothing: a run resumes whatever they are. Metrics are not among them:
they score nothing, but a table is what its command says."""
TABLES = ("candidates", "rankings", "measurements", "slices", "groups")
FILES = frozenset(
    (
        *("header.json", "run.json", "examples.json", "report.html", "export.json", "lock"),
        *(f"{name}.parquet" for name in TABLES),
        *(f"results.sqlite{tail}" for tail in ("", "-wal", "-shm", "-journal")),
    )
)
"""Everything that a run or an export writes: a folder that holds anything else holds somebody's own files."""
_LEFTOVER = re.compile(r"\.(\w+\.(?:json|html|parquet))\.\d+\.(part|tmp)")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
  questions TEXT NOT NULL, user_id TEXT NOT NULL, n_history INTEGER NOT NULL, ms REAL NOT NULL,
  shapes TEXT NOT NULL, logprobs BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY (questions, user_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (source TEXT PRIMARY KEY, n_units INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
Source = Literal["scored", "cached"]
"""Where the answers of a unit of computation came from: the model, or what it had answered to another run."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What the model answered to one set of questions of one user, and what it cost (wall-clock milliseconds)."""

    logprobs: tuple[TokenLogprobs, ...]
    n_history: int
    ms: float


@contextmanager
def run_store(folder: Path, header: Mapping[str, Any]) -> Iterator[RunStore]:
    """The store of a run in this folder, locked for this process: a new one, or an unfinished one of this header.

    Whatever ends it, finished users are saved; if there are none yet, the folder is left as it was found. Raises
    RunError, LockedError if another process has it, StorageError if the disk refuses.
    """
    check_folder(folder, header)
    existed = folder.exists()
    with locked(folder):
        check_folder(folder, header)  # again: another process may have finished it in between
        fresh = not (folder / "header.json").exists()
        store: RunStore | None = None
        try:
            _sweep(folder)
            if fresh:
                write_text(folder / "header.json", dump(header))
            store = RunStore(folder)
            yield store
        finally:
            try:
                if store is not None:
                    store.close()
            finally:
                if fresh and not (store and store.n_saved):
                    _remove(folder, whole=not existed)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """An exclusive lock on the folder, which the kernel gives back however the process ends.

    Raises LockedError where another process has it. The folder is made where there is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+b")
    except OSError as error:
        raise disk_error(error, folder) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(
                f"{folder}: another process is writing this run; wait for it or use another --out"
            ) from error
        yield


class RunStore:
    """What is saved of a run. Made by `run_store`, which holds the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header: Mapping[str, Any] = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        self.n_saved = 0  # units put since it was opened
        self._pending = 0
        self._saved_at = time.monotonic()
        with self._disk():
            self._database = sqlite3.connect(folder / "results.sqlite")
            self._database.text_factory = bytes  # text in a damaged cell need not be UTF-8
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        path = self.folder / "results.sqlite"
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter where SQLite's message quotes damage
            if isinstance(error, sqlite3.Error) and blames_disk(error, path):
                raise StorageError(
                    f"{path}: {error}; finished users are saved. Free some space, then run the same command again to "
                    "go on"
                ) from error
            raise RunError(f"{path}: {error}; the file is damaged. Run again with a new --out") from error

    def get(self, questions: str, user_id: str) -> Unit | None:
        """What is saved for these questions of this user; a damaged row is dropped and counts as not there."""
        with self._disk():
            row = self._database.execute(
                "SELECT n_history, ms, shapes, logprobs, crc FROM units WHERE questions=? AND user_id=?",
                (questions, user_id),
            ).fetchone()
            if row is None:
                return None
            n_history, ms, shapes, blob, crc = row
            if not isinstance(blob, bytes) or _checksum(questions, user_id, n_history, ms, shapes, blob) != crc:
                self._database.execute("DELETE FROM units WHERE questions=? AND user_id=?", (questions, user_id))
                return None
        return Unit(unpack(shapes, blob), n_history, ms)

    def put(self, questions: str, user_id: str, unit: Unit) -> None:
        """Save what one user was answered; `settle` says when all who were asked together are saved."""
        shapes, blob = pack(unit.logprobs)
        cells = (questions, user_id, unit.n_history, unit.ms, shapes, blob)
        row = (*cells, _checksum(questions, user_id, unit.n_history, unit.ms, shapes.encode(), blob))
        with self._disk():
            self._database.execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.n_saved += 1
        self._pending += 1

    def settle(self, source: Source) -> None:
        """Count a unit of computation whose users are all saved. It is on disk a second or 32 users later at most."""
        with self._disk():
            self._database.execute(
                "INSERT INTO counts VALUES (?, 1) ON CONFLICT (source) DO UPDATE SET n_units = n_units + 1", (source,)
            )
        if self._pending >= COMMIT_UNITS or time.monotonic() - self._saved_at > COMMIT_SECONDS:
            self.commit()

    def n_units(self) -> dict[str, int]:
        """How many units of computation came from where, since the run began."""
        with self._disk():
            found = dict(self._database.execute("SELECT source, n_units FROM counts"))
        return {source: found.get(source.encode(), 0) for source in get_args(Source)}

    def commit(self) -> None:
        """Put everything saved so far on disk."""
        with self._disk():
            self._database.commit()
        self._pending, self._saved_at = 0, time.monotonic()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write run.json, the mark of a finished run."""
        self.commit()
        write_text(self.folder / "run.json", dump(record))

    def close(self) -> None:
        """Save what is pending and let go of the file."""
        try:
            self.commit()
        finally:
            self._database.close()


def check_folder(folder: Path, header: Mapping[str, Any] | None = None) -> None:
    """Raises RunError unless the folder is absent, empty, or an unfinished run (of this header, if given)."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise RunError(f"{folder}: not a folder; give --out a new or empty folder")
    if (folder / "run.json").exists():
        raise RunError(f"{folder}: holds a finished run; give --out a new folder")
    names = {path.name for path in folder.iterdir() if not _LEFTOVER.fullmatch(path.name)}
    if "header.json" not in names and not names <= {"lock"}:
        raise RunError(f"{folder}: not empty and not an unfinished run; give --out a new or empty folder")
    if header is not None and "header.json" in names:
        _check_same(folder, header)


def _check_same(folder: Path, header: Mapping[str, Any]) -> None:
    changed = _differences(folder, header)
    if changed:
        what = "; ".join(f"{key} was {_shown(before)}, now {_shown(now)}" for key, before, now in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise RunError(
            f"{folder}: holds an unfinished run with another header: {what}{more}. Repeat its command to resume it, or "
            "give --out a new folder"
        )


def _differences(folder: Path, header: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in the folder, value now) of all that decides a result and is not the same."""
    path = folder / "header.json"
    try:
        before = dict(leaves(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON; give --out a new folder") from error
    now = dict(leaves(json.loads(dump(header))))
    keys = sorted(before.keys() | now.keys())
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a record that decides its result; lists count as one value."""
    if any(fnmatchcase(key, pattern) for pattern in DESCRIBES):
        return
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from leaves(inner, f"{key}.{name}" if key else name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _remove(folder: Path, *, whole: bool) -> None:
    """Take away what an unsuccessful beginning made."""
    for name in ("header.json", *(f"results.sqlite{tail}" for tail in ("", "-wal", "-shm", "-journal")), "lock"):
        (folder / name).unlink(missing_ok=True)
    if whole and not any(folder.iterdir()):
        folder.rmdir()


def delete(folder: Path, *, even_finished: bool = False) -> None:
    """Remove a run. run.json goes first and header.json last, so what a kill leaves is an unfinished run.

    Raises LockedError where a process writes it, RunError where it is no run, has finished (unless `even_finished`),
    or holds files that no run writes.
    """
    if not is_run(folder):
        raise RunError(f"{folder}: holds no run; name a folder that fewrec eval wrote")
    with locked(folder):
        names = {path.name for path in folder.iterdir()}
        if strange := sorted(name for name in names - FILES if not _LEFTOVER.fullmatch(name)):
            raise RunError(f"{folder}: not deleted, for no run writes {strange[0]!r}; move it elsewhere, then repeat")
        if "run.json" in names and not even_finished:
            raise RunError(f"{folder}: not deleted, for it holds a finished run; name it to delete it")
        first, last = ["run.json"], ["header.json", "lock"]
        for name in (*first, *sorted(names - {*first, *last}), *last):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def is_run(folder: Path) -> bool:
    """Whether this folder, and no link to one, holds a run, finished or not."""
    return not folder.is_symlink() and any((folder / name).is_file() for name in ("header.json", "run.json"))


def is_locked(folder: Path) -> bool:
    """Whether a process is writing this run. Asking takes the lock for a moment."""
    if not (folder / "lock").is_file():
        return False
    try:
        with locked(folder):
            return False
    except LockedError:
        return True


def header_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.json that was there before the results."""
    return {key: value for key, value in record.items() if key not in ("rows", "n_users", "units", "problems")}


def same_result(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two headers decide the same result."""
    return dict(leaves(a)) == dict(leaves(b))


def own_folder(stem: str, header: Mapping[str, Any], parent: Path = Path("runs"), inside: str = "") -> Path:
    """The folder runs/<stem>-<n> that holds a run of this header, finished or not; else the next free one.

    `inside`: where in that folder the run lies, if it is one of several there.
    """
    for n in count(1):
        folder = parent / f"{stem}-{n}"
        run = folder / inside
        if not folder.exists() or ((run / "header.json").is_file() and not _differences(run, header)):
            return folder
    raise AssertionError("count has no end")


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of the run in this folder, or None if it is not finished."""
    path = folder / "run.json"
    record: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return record


def dump(record: Mapping[str, Any]) -> str:
    """JSON that a person can read; NaN is not JSON and is refused."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(questions: str, user_id: str, n_history: int, ms: float, shapes: bytes, blob: bytes) -> int:
    """Of a whole row, its name too: a flipped bit must not make it the row of another user."""
    return checksum(blob, questions, user_id, n_history, ms, shapes)
