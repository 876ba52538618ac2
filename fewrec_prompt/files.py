"""Write files whole or not at all, and say so plainly when the disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewrec_prompt.errors import StorageError

_DISK = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it takes its place in one step, on any failure it is removed.

    Raises StorageError, naming the path, if the disk is full or not writable.
    """
    with _part_of(path) as part:
        yield part
        _flush(part)
        part.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it becomes `path` in one step, on any failure it is removed.

    Raises StorageError, naming the path, if the disk is full or not writable.
    """
    with _part_of(path) as part:
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        part.rename(path)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`; whatever has it at the end is removed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the disk hold what was written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def made_folder(path: Path) -> Path:
    """The folder, made with those above it where they are missing. Raises StorageError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def check_writable(path: Path) -> None:
    """Raises StorageError unless a file can be made at `path`: asked before the work whose result goes there."""
    if path.is_dir():
        raise StorageError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise StorageError(f"{path}: its folder is not there or not writable; make it first, or name another place")


def disk_error(error: OSError, path: Path) -> Exception:
    """A StorageError that names the path if the disk is at fault, else the error itself."""
    if error.errno not in _DISK:
        return error
    return StorageError(
        f"{path}: cannot be written ({os.strerror(error.errno or 0)}); what was saved before is intact. "
        "Free some space or choose another folder, then run the same command again"
    )
