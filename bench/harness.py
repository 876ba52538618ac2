"""What the harness itself costs: a run whose model answers at once, timed without the answers.

    .venv/bin/python bench/harness.py                  # 1,000 users, 20 candidates
    .venv/bin/python bench/harness.py --profile 40     # and where the time goes

Made-up titles in files of their own, so that no data set is read; rows and metrics are a task's default ones
(`complete`, and with `pmi`, so every user is asked twice). A fresh process, nothing warmed up. Printed are milliseconds
a user, of the whole call of `evaluate` without the time in the stub, by the clock and of processor time (which a busy
machine stretches less), and the process's highest memory: before (imports that any run needs), and after.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fewrec_prompt import evaluate
from fewrec_prompt.backends.memory import peak_memory
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Question, TokenLogprobs

N_ITEMS, N_HISTORY = 2000, 10
TASK = '[data]\nitems = "items.jsonl"\nqueries = "queries.jsonl"\n'


class Stub(ToyBackend):
    """Log-probabilities that depend on the text alone, at once; `seconds` counts the time spent here."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        begin = time.perf_counter()
        rows = [tuple(np.array([_told(text)]) for text in question.continuations) for question in questions]
        self.seconds += time.perf_counter() - begin
        return rows


def _told(text: str) -> float:
    return -sha256(text.encode()).digest()[0] / 25


def write_task(folder: Path, n_users: int, n_candidates: int) -> Path:
    """A task file and its items and queries: the first candidate is the answer, for nobody looks at where it stands."""
    items = [{"item_id": f"i{n}", "title": f"The Title of Number {n} ({1950 + n % 70})"} for n in range(N_ITEMS)]
    _write_lines(folder / "items.jsonl", items)
    queries = []
    for n in range(n_users):
        drawn = rng_for(0, "harness", str(n)).choice(N_ITEMS, N_HISTORY + n_candidates, replace=False)
        ids = [f"i{place}" for place in drawn.tolist()]
        history, candidates = ids[:N_HISTORY], ids[N_HISTORY:]
        queries.append({"user_id": f"u{n}", "history": history, "candidates": candidates, "target": candidates[0]})
    _write_lines(folder / "queries.jsonl", queries)
    task = folder / "harness.toml"
    task.write_text(TASK, encoding="utf-8")
    return task


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """One run, two numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--profile", type=int, metavar="LINES", help="print where the time goes (and take longer)")
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="fewrec-harness-") as folder:
        task = write_task(Path(folder), asked.users, asked.candidates)
        stub, before, profile = Stub(), peak_memory("cpu"), cProfile.Profile()
        begin, worked = time.perf_counter(), time.process_time()
        if asked.profile:
            profile.enable()
        evaluate(task, out=Path(folder) / "run", backend=stub)
        profile.disable()
        seconds = time.perf_counter() - begin - stub.seconds
        worked = time.process_time() - worked - stub.seconds
    if asked.profile:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("cumtime").print_stats(asked.profile)
    print(f"{asked.users} users x {asked.candidates} candidates, two rows")
    clock, processor = (1000 * spent / asked.users for spent in (seconds, worked))
    print(f"harness  {clock:.2f} ms a user, {processor:.2f} ms of processor time; stub {stub.seconds:.2f} s")
    print(f"memory   {peak_memory('cpu') / 1e6:.0f} MB at most, {before / 1e6:.0f} MB before the run")


if __name__ == "__main__":
    main()
