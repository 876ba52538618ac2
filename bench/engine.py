"""Speed of the scoring engine as ratios against peers, in one process, on the same requests and the same weights.

    .venv/bin/python bench/engine.py --users 4 --runs 5

Every run scores the same users with every way in turn; a ratio is the median over runs. Answers are compared first.
Prints a Markdown table and writes it to bench/RESULTS.md with the machine, the versions and the date.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import peers
import torch

from fewrec_prompt import Numerics, Question, assets, templates, verbalizers
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.plan import plan
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.recommender import Render
from fewrec_prompt.types import Domain

FILMS = Domain("film", "films", "watch")


@dataclass(frozen=True, slots=True)
class Work:
    """What is scored in one row of the table."""

    name: str
    prompt: str
    n_history: int


WORKS = (
    Work("titles, history 10", "complete", 10),
    Work("titles, history 50", "complete", 50),
    Work("yes/no, history 50", "judge", 50),
)


def questions(work: Work, n_users: int) -> list[list[Question]]:
    """The questions of each of the first users."""
    data = leave_one_out(read_dataset(assets.get("ml-100k"), "recbole"), n_history=work.n_history)
    template = templates.load(work.prompt)
    verbalizer = verbalizers.load(template.front.verbalizer)
    return [verbalizer.ask(query, Render(template, FILMS)) for query in data.queries[:n_users]]


def seconds(peer: peers.Peer, users: Sequence[Sequence[Question]]) -> float:
    """Wall-clock time to score every user, one after the other."""
    start = time.perf_counter()
    for asked in users:
        peer.score(asked)
    return time.perf_counter() - start


def compare(ways: Sequence[peers.Peer], users: Sequence[Sequence[Question]], runs: int) -> list[list[float]]:
    """Seconds of each way in each run, interleaved."""
    return [[seconds(way, users) for way in ways] for _ in range(runs)]


def gemm_rate(dtype: torch.dtype) -> float:
    """Best multiply-add rate (FLOP/s) of square matrix products from 512 to 4096, same threads."""
    return max(_gemm(size, dtype) for size in (512, 1024, 2048, 4096))


def _gemm(size: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = min(_timed(lambda: a @ b) for _ in range(5))
    return 2 * size**3 / best


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def least_flop(backend: causal.CausalBackend, users: Sequence[Sequence[Question]]) -> float:
    """Arithmetic nobody can avoid: unique tokens through the body, scored positions through the head, attention."""
    config = backend.model.config
    body = sum(
        p.numel() for name, p in backend.model.named_parameters() if "embed" not in name and "lm_head" not in name
    )
    total = 0.0
    for asked in users:
        trees = plan([sequence for question in asked for sequence in backend.tokens.encode(question)]).trees
        for tree in trees:
            positions = len({node for reads in tree.reads.values() for node, _ in reads})
            seen = sum(depth + 1 for depth in tree.depths)
            total += 2 * body * len(tree.tokens) + 2 * positions * config.hidden_size * config.vocab_size
            total += 4 * seen * config.num_hidden_layers * config.hidden_size
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 20], help="lm-eval's batch sizes; its best counts")
    asked = parser.parse_args()
    lines = [
        "| work | precision | peer | ms/user | ours, ms/user | ratio | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for precision in asked.precisions:
        backend = causal.load("smollm2-135m", Numerics(precision))
        ways = [peers.ours(backend), peers.cached_prefix(backend)]
        ways += [peers.lm_eval(backend, size) for size in asked.batch]
        rate = gemm_rate(backend.model.dtype)
        for work in WORKS:
            lines += rows(work, precision, backend, ways, rate, asked.users, asked.runs)
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval"))
    head = (
        f"{date.today()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; {versions}"
    )
    Path("bench/RESULTS.md").write_text(f"# Engine benchmark\n\n{head}\n\n{table}\n", encoding="utf-8")


def rows(
    work: Work,
    precision: str,
    backend: causal.CausalBackend,
    ways: Sequence[peers.Peer],
    rate: float,
    n_users: int,
    runs: int,
) -> list[str]:
    """Table lines of one work: a peer each, then the arithmetic limit."""
    users = questions(work, n_users)
    mine = ways[0].score(users[0])
    apart = [max(abs(a - b) for a, b in zip(mine, way.score(users[0]), strict=True)) for way in ways]
    times = compare(ways, users, runs)
    own = statistics.median(run[0] for run in times)
    lines = []
    for at, way in enumerate(ways[1:], 1):
        ratio = statistics.median(run[at] / run[0] for run in times)
        other = statistics.median(run[at] for run in times)
        lines.append(
            f"| {work.name} | {precision} | {way.name} | {1000 * other / n_users:.0f} | {1000 * own / n_users:.0f} "
            f"| {ratio:.1f}× | {apart[at]:.1e} |"
        )
    limit = least_flop(backend, users) / rate
    lines.append(
        f"| {work.name} | {precision} | arithmetic limit at {rate / 1e9:.0f} GFLOP/s | {1000 * limit / n_users:.0f} "
        f"| {1000 * own / n_users:.0f} | {limit / own:.2f} of it | – |"
    )
    return lines


if __name__ == "__main__":
    main()
