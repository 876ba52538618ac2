"""What a method knows beside popularity: its scores and counts of all training data, summed, against each alone.

    .venv/bin/python bench/beside_popularity.py

Both are put into standard scores over the candidates of a person and added; nothing is fitted, so nothing is learnt
from the test. It reads the cells in bench/few_shot/movielens-100k that hold scores, and asks no model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewrec_prompt import load_task
from fewrec_prompt.cells import read_cell
from fewrec_prompt.metrics.ranking import ndcg
from fewrec_prompt.significance import paired_interval
from fewrec_prompt.tasks import load_queries
from fewrec_prompt.tuning.features import POPULARITY, popularity_of

TASK = "movielens-100k"
CELLS = Path(__file__).resolve().parent / "few_shot" / TASK / "cells"


def standard(values: np.ndarray) -> np.ndarray:
    """Deviations from the mean, in standard deviations; zeros where all are alike."""
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)


def compare(path: Path, popularity: dict[str, np.ndarray]) -> str | None:
    """A line about a cell; None for one from before cells held scores."""
    cell = read_cell(path)
    if not cell.scores:
        return None
    rows = []
    for user_id, scores, relevant in zip(cell.user_ids, cell.scores, cell.relevant, strict=True):
        own, counts = standard(np.array(scores)), standard(popularity[user_id])
        marks = np.isin(np.arange(len(own)), relevant)
        rows.append([ndcg(ranked, marks, len(relevant), 10) for ranked in (own, counts, own + counts)])
    alone, counted, both = np.array(rows).T
    gains = [paired_interval(both, one, seed=0) for one in (alone, counted)]
    told = "; ".join(f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" for gain in gains)
    means = " / ".join(f"{100 * one.mean():.1f}" for one in (alone, counted, both))
    return f"{cell.name}: alone / popularity / both {means}; both against each {told}"


def main() -> None:
    queries = load_queries(load_task(TASK))
    popularity = {one.user_id: popularity_of(one, queries.popularity)[POPULARITY] for one in queries.queries}
    for line in (compare(path, popularity) for path in sorted(CELLS.glob("*.json"))):
        if line is not None:
            print(line)


if __name__ == "__main__":
    main()
