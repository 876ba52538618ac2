"""Log-probabilities as bytes, exact to the last bit, and the checksum that says whether they still are.

What a run saves and what outlives runs are kept in this form, in SQLite; where, and under which name, is left to them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewrec_prompt.types import TokenLogprobs

_OF_THE_DISK = {
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS),
}
"""Primary result codes that say something of the disk or of other processes. All others, since our statements do not
change, say that the file is not what we wrote."""


def pack(logprobs: Sequence[TokenLogprobs]) -> tuple[str, bytes]:
    """The lengths of all rows, as JSON, and the rows one after the other, float64."""
    shapes = [[len(row) for row in rows] for rows in logprobs]
    flat = [row for rows in logprobs for row in rows]
    return json.dumps(shapes), np.concatenate([np.empty(0), *flat]).astype("<f8").tobytes()


def unpack(shapes: str | bytes, blob: bytes) -> tuple[TokenLogprobs, ...]:
    """What was packed; the rows cannot be written to."""
    flat, at, questions = np.frombuffer(blob, dtype="<f8"), 0, []
    for lengths in json.loads(shapes):
        rows = []
        for length in lengths:
            rows.append(flat[at : at + length])
            at += length
        questions.append(tuple(rows))
    return tuple(questions)


def checksum(blob: bytes, *about: object) -> int:
    """CRC-32 of the bytes and of everything that belongs to them."""
    return zlib.crc32(blob, zlib.crc32(" ".join(map(str, about)).encode()))


def blames_disk(error: sqlite3.Error, path: Path) -> bool:
    """Whether an error says something of the disk or of other processes, and not of what is in the file.

    "Read-only" of a file that can be written does not: it stands in the file's own header.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_READONLY:
        return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
    return code in _OF_THE_DISK
