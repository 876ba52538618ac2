"""How long large files take, and how much memory: loading interactions, comparing runs. A process each.

    .venv/bin/python bench/data.py                        # all of it, a minute or two
    .venv/bin/python bench/data.py load 2_000_000         # a generated data set of this many interactions
    .venv/bin/python bench/data.py compare 10_000         # two runs of this many users

Interactions are a CSV (user_id, item_id, rating, timestamp) of 100,000 users and 40,000 items, popularity as 1/rank.
Runs are made with the toy backend: 20 candidates, the six usual metrics, two baselines and one prompt row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from fewrec_prompt import Options, RowSettings, compare, evaluate
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.data import parquet_files, read_dataset
from fewrec_prompt.seeds import rng_for

BARS = {
    ("load", 2_000_000): "≤ 15 s, ≤ 500 MB",
    ("load", 10_000_000): "≤ 60 s, ≤ 1500 MB",
    ("compare", 10_000): "≤ 5 s",
}
N_USERS, N_ITEMS, N_CANDIDATES = 100_000, 40_000, 20
TASK = '[data]\nitems = "items.parquet"\nqueries = "queries.parquet"\n'
WORDS = ("red", "blue", "green", "old", "new", "small", "tall", "last", "first", "lost")


def write_interactions(folder: Path, n: int) -> None:
    """interactions.csv and items.csv, in blocks: making them takes less memory than reading them."""
    rng = rng_for(0, "bench", "interactions")
    with pa_csv.CSVWriter(folder / "interactions.csv", _SCHEMA, write_options=_plain()) as writer:
        for begin in range(0, n, 1_000_000):
            writer.write_table(_block(rng, min(1_000_000, n - begin)))
    titles = [f"{WORDS[item % 10]} {WORDS[item // 10 % 10]} number {item}" for item in range(N_ITEMS)]
    items = pa.table({"item_id": [f"i{item}" for item in range(N_ITEMS)], "title": titles})
    pa_csv.write_csv(items, folder / "items.csv", _plain())


_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.int64()), ("timestamp", pa.int64())]
)


def _plain() -> pa_csv.WriteOptions:
    return pa_csv.WriteOptions(quoting_style="none")


def _block(rng: np.random.Generator, n: int) -> pa.Table:
    items = np.exp(rng.random(n) * np.log(N_ITEMS)).astype(np.int64)
    users, ratings = rng.integers(0, N_USERS, n), rng.integers(1, 6, n)
    times = 1_000_000_000 + rng.integers(0, 500_000_000, n)
    names = [pa.array([f"{mark}{code}" for code in codes]) for mark, codes in (("u", users), ("i", items))]
    return pa.table([*names, pa.array(ratings), pa.array(times)], schema=_SCHEMA)


def write_runs(folder: Path, n_users: int) -> tuple[Path, Path]:
    """Two finished runs over the same queries: the same prompt, of a toy that likes other words."""
    rng = rng_for(0, "bench", "queries")
    ids = [f"i{item}" for item in range(1000)]
    titles = [f"{WORDS[item % 10]} {WORDS[item // 10 % 10]} {WORDS[item // 100]}" for item in range(1000)]
    drawn = [[ids[item] for item in rng.permutation(1000)[: N_CANDIDATES + 5]] for _ in range(n_users)]
    queries = {
        "user_id": [f"u{user}" for user in range(n_users)],
        "history": [row[N_CANDIDATES:] for row in drawn],
        "candidates": [row[:N_CANDIDATES] for row in drawn],
        "target": [[row[place]] for row, place in zip(drawn, rng.integers(0, N_CANDIDATES, n_users), strict=True)],
    }
    parquet_files.write(folder / "items.parquet", {"item_id": ids, "title": titles})
    parquet_files.write(folder / "queries.parquet", queries)
    (folder / "bench.toml").write_text(TASK, encoding="utf-8")
    rows = (RowSettings(prompt="complete"),)
    for name, liked in (("a", WORDS), ("b", WORDS[::-1])):
        toy = ToyBackend({word: 0.01 * (place + 1) for place, word in enumerate(liked)})
        evaluate(folder / "bench.toml", Options(rows=rows), out=folder / name, backend=toy)
    return folder / "a", folder / "b"


def timed(work: Callable[[], object]) -> str:
    """Seconds of the work, seconds of processor time, and the peak of this process in MB."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    return f"{seconds:.1f} s, {processor:.1f} s of processor time, {peak():.0f} MB at most"


def peak() -> float:
    """Most resident memory of this program so far (MB); unlike ru_maxrss nothing of the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """One figure, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="?", choices=["all", "load", "compare", "load-here", "compare-here"], default="all"
    )
    parser.add_argument("n", nargs="?", type=int, default=10_000)
    parser.add_argument("folder", nargs="?", type=Path)
    asked = parser.parse_args()
    if asked.what.endswith("-here"):
        work = {
            "load-here": lambda: read_dataset(asked.folder, "tables"),
            "compare-here": lambda: compare(asked.folder / "a", asked.folder / "b"),
        }[asked.what]
        print(timed(work))
        return
    for what, n in BARS if asked.what == "all" else [(asked.what, asked.n)]:
        with TemporaryDirectory(prefix="fewrec-bench-") as folder:
            (write_interactions if what == "load" else write_runs)(Path(folder), n)
            command = [sys.executable, __file__, f"{what}-here", str(n), folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        bar = f" (bar: {BARS[what, n]})" if (what, n) in BARS else ""
        print(f"{what} {n:,}: {done.stdout.strip()}{bar}", flush=True)


if __name__ == "__main__":
    main()
