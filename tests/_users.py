"""Users of whom metrics are told: scores, and which candidates are relevant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fewrec_prompt.metrics import UserScores

USUAL = ["nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "HR@10", "MRR"]


def user(scores: list[float], relevant: list[int], n_relevant: int | None = None, user_id: str = "u1") -> UserScores:
    return UserScores.from_lists(user_id, scores, relevant, sum(relevant) if n_relevant is None else n_relevant)


def random_users(n: int, tied: bool) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    rng = np.random.default_rng(20)
    for _ in range(n):
        size = int(rng.integers(2, 60))
        # whole negative numbers: trec_eval keeps scores in 32 bits, in which close ones would tie
        scores = rng.integers(-4, 0, size) if tied else -1.0 - rng.permutation(size)
        relevant = rng.random(size) < rng.choice([0.05, 0.3, 0.7])
        relevant[rng.integers(size)] = True
        yield scores.astype(float), relevant, int(relevant.sum() + rng.integers(0, 3))
