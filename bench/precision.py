"""What a precision costs and moves: run on MovieLens-100K users that no reported number uses.

    .venv/bin/python bench/precision.py --users 100 fp32 bf16 int8

The first precision named is the reference. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewrec_prompt import Query, Recommender, assets
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.metrics import parse_metric
from fewrec_prompt.significance import paired_interval
from fewrec_prompt.types import Domain

NDCG = parse_metric("nDCG@10")


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores and title-token log-probabilities of every user under one precision."""

    name: str
    scores: list[np.ndarray]
    logprobs: list[np.ndarray]
    ndcg: np.ndarray
    ms_per_user: float


def measure(name: str, queries: Sequence[Query], data: QuerySet) -> Measured:
    """Score all users; the first one also warms up, so its time is left out."""
    recommender = Recommender.load(precision=name, calibrate="pmi", domain=Domain("film", "films", "watch"))
    scores, logprobs, seconds = [], [], []
    for query in queries:
        start = time.perf_counter()
        answers = recommender.answers(query)
        seconds.append(time.perf_counter() - start)
        scores.append(recommender.scores(answers))
        logprobs.append(np.concatenate(answers.asked[0]))
    found = zip(queries, scores, strict=True)
    ndcg = np.array([NDCG(score, relevance(query, data), 1) for query, score in found])
    return Measured(name, scores, logprobs, ndcg, 1000 * float(np.median(seconds[1:])))


def relevance(query: Query, data: QuerySet) -> np.ndarray:
    """Which candidates are what the user took."""
    return np.array([item.id in data.qrels[query.user_id] for item in query.candidates])


def row(one: Measured, reference: Measured) -> str:
    """A line of the table: `one` against the reference."""
    moved = max(float(np.abs(a - b).max()) for a, b in zip(one.logprobs, reference.logprobs, strict=True))
    pairs = list(zip(one.scores, reference.scores, strict=True))
    top1 = np.mean([a.argmax() != b.argmax() for a, b in pairs])
    top10 = np.mean([set(np.argsort(-a)[:10]) != set(np.argsort(-b)[:10]) for a, b in pairs])
    delta = paired_interval(one.ndcg, reference.ndcg, seed=0)
    return (
        f"| {one.name} | {one.ms_per_user:.0f} | {moved:.2f} | {100 * top1:.0f} % | {100 * top10:.0f} % "
        f"| {100 * one.ndcg.mean():.1f} "
        f"| {100 * delta.value:+.1f} ({100 * delta.low:+.1f} to {100 * delta.high:+.1f}) |"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("precisions", nargs="+")
    parser.add_argument("--users", type=int, default=100)
    asked = parser.parse_args()
    data = leave_one_out(read_dataset(assets.get("ml-100k"), "recbole"), split="selection")
    queries = data.queries[: asked.users]
    measured = [measure(name, queries, data) for name in asked.precisions]
    print("| precision | ms/user | max abs Δ log p | other top 1 | other top-10 set | nDCG@10 | Δ nDCG@10 (95 %) |")
    print("|---|---|---|---|---|---|---|")
    for one in measured:
        print(row(one, measured[0]))


if __name__ == "__main__":
    main()
