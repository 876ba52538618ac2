"""Log-probabilities as bytes, exact to the last bit, and the checksum that says whether they still are.

What a run saves and what outlives runs are kept in this form; where, and under which name, is left to them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

import numpy as np

from fewrec_prompt.types import TokenLogprobs


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
