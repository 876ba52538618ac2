"""The benchmark: a row after the other, each kept as soon as it is measured, then one page.

    .venv/bin/python bench/run.py                         # what is not measured yet
    .venv/bin/python bench/run.py --only 'titles-10-*'    # rows by name; --list shows them
    .venv/bin/python bench/run.py --only 'memory-*' --again   # measure anew

Prints the table and writes bench/RESULTS.md. Ends with 1 if a peer failed or gave other answers than ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from peers import NotInstalledError, PeerError
from results import HERE, Kept, Result, Store, line, page
from rows import Asked, Row, rows

from fewrec_prompt.errors import did_you_mean

HOW = """SmolLM2-135M on the CPU, MovieLens-100K test users with 20 candidates each: {users} users a run, medians of
{runs} interleaved runs. Both sides get the same texts, weights, precision and number of threads. Before anything is
timed all answers are compared, which warms both up and counts for nobody. Nothing is kept from one run to the next but
the loaded models: prefix caches and the cache of encoded questions are emptied, tokenizing is timed (vLLM is handed
token ids). Ours is asked user by user; lm-evaluation-harness and vLLM get the requests of all users at once, and
lm-evaluation-harness the batch size that was fastest. In fp32 a peer whose sums differ from ours by more than 1e-3 nat
is an error; "difference" is the largest one, in nats. The ratio is the peer's time over ours; against the arithmetic
limit the limit's time over ours (1 cannot be passed); for memory our peak over that with fewer users,
one run of each. vLLM (echo) gives
log-probabilities of prompts as its server's echo does and computes every token; vLLM (cached) is made to read its
prefix cache all the same (vllm_worker.py)."""


def main() -> int:
    """Measure what is asked for, print, write."""
    asked = _parser().parse_args()
    chosen = [row for row in rows() if any(fnmatchcase(row.name, pattern) for pattern in asked.only)]
    if asked.list or not chosen:
        known = [row.name for row in rows()]
        print("\n".join(known) if chosen else f"no row {' '.join(asked.only)!r}; {did_you_mean(asked.only[0], known)}")
        return 0 if chosen else 2
    store = Store(asked.out / "results", {"users": asked.users, "runs": asked.runs})
    request = Asked(asked.users, asked.runs, asked.vllm_python)
    for row in chosen:
        kept = measured(row, store, request, again=asked.again)
        print(line(row, kept) if row.bar else kept.result.text, flush=True)
    return finish(list(rows()), store, asked.out / "RESULTS.md", HOW.format(users=asked.users, runs=asked.runs))


def measured(row: Row, store: Store, asked: Asked, *, again: bool) -> Kept:
    """What is kept of the row, or else what it comes to now; a row that had a problem is tried again."""
    kept = None if again else store.get(row.name)
    return store.put(row.name, attempt(row, asked)) if kept is None or kept.result.problem else kept


def attempt(row: Row, asked: Asked) -> Result:
    """The row's result, or why it has none."""
    try:
        return row.measure(asked)
    except NotInstalledError as error:
        return Result(problem=f"not installed ({error})")
    except PeerError as error:
        return Result(problem=f"ERROR: {error}")


def finish(every: Sequence[Row], store: Store, results: Path, how: str) -> int:
    """Write the page of all that is kept."""
    kept: dict[str, Kept] = {row.name: found for row in every if (found := store.get(row.name))}
    results.write_text(page(every, kept, how), encoding="utf-8")
    print(f"\n{results}: {len(kept)} of {len(every)} rows")
    return int(any(one.result.problem.startswith("ERROR") for one in kept.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="rows, by name or pattern")
    parser.add_argument("--again", action="store_true", help="measure rows that are kept, too")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vllm-python", type=Path, default=HERE.parent / ".bench" / "vllm" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md and results/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
