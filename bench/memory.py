"""Peak memory of one run over many users against one over few: `evaluate` on a task file, a process each.

    .venv/bin/python bench/memory.py            # 1,000 users against 100
    .venv/bin/python bench/memory.py one 300    # a single run: its peak in MB

MovieLens-100K with the embedded model. The data has 943 users; those beyond are the first ones again under
other ids, so that the few and the many meet the same histories. History 5, 20 candidates, one row (`complete`).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from results import Result
from works import FILMS

from fewrec_prompt import Numerics, assets, evaluate
from fewrec_prompt.data import parquet_files, read_dataset
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.query_files import write_queries
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.evaluation import Options
from fewrec_prompt.types import Query

FEW, MANY = 100, 1000
N_HISTORY = 5
TASK = f"""
[data]
items = "items.parquet"
queries = "queries.parquet"
domain = {{ singular = "{FILMS.singular}", plural = "{FILMS.plural}", verb = "{FILMS.verb}" }}

[[rows]]
prompt = "complete"
"""


def measure(runs: int, precision: str) -> Result:
    """Peak of many over peak of few, a ratio a run."""
    peaks = [(peak(MANY, precision), peak(FEW, precision)) for _ in range(runs)]
    many, few = (statistics.median(column) for column in zip(*peaks, strict=True))
    note = f"history {N_HISTORY}, 20 candidates; users beyond the 943 of the data are the first ones again"
    return Result(tuple(a / b for a, b in peaks), f"{FEW} users", many, few, unit="MB", note=note)


def peak(n_users: int, precision: str) -> float:
    """Peak resident memory (MB) of a process that evaluates this many users."""
    command = [sys.executable, __file__, "one", str(n_users), "--precision", precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def write_task(folder: Path, n_users: int) -> Path:
    """A task file whose queries are this many users, and beside it what it names."""
    dataset = read_dataset(assets.get("ml-100k"), "recbole")
    found = leave_one_out(dataset, n_users=None, n_history=N_HISTORY)
    pairs = list(islice(_again(found.queries), n_users))
    queries = tuple(replace(query, user_id=user_id) for user_id, query in pairs)
    qrels = {user_id: found.qrels[query.user_id] for user_id, query in pairs}
    write_queries(folder / "queries.parquet", QuerySet(queries, qrels, found.problems, {}, {}))
    items = [(item.id, item.title) for item in dataset.items.values()]
    ids, titles = zip(*items, strict=True)
    parquet_files.write(folder / "items.parquet", {"item_id": list(ids), "title": list(titles)})
    task = folder / "memory.toml"
    task.write_text(TASK, encoding="utf-8")
    return task


def _again(queries: tuple[Query, ...]) -> Iterator[tuple[str, Query]]:
    """The queries over and over, under ids of their own."""
    for turn in count():
        for query in queries:
            yield f"{query.user_id}-{turn}" if turn else query.user_id, query


def one(n_users: int, precision: str) -> None:
    """Evaluate, then print the peak of this process in MB."""
    with TemporaryDirectory(prefix="fewrec-memory-") as folder:
        task = write_task(Path(folder), n_users)
        evaluate(task, Options(numerics=Numerics(precision)), out=Path(folder) / "run", cache=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """One size, or the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["ratio", "one"], default="ratio")
    parser.add_argument("n_users", nargs="?", type=int, default=FEW)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    if asked.what == "one":
        one(asked.n_users, asked.precision)
    else:
        print(measure(asked.runs, asked.precision))


if __name__ == "__main__":
    main()
