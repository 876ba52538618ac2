"""What a method knows beside popularity: its scores and counts of who took what, summed, against each alone.

    .venv/bin/python bench/beside_popularity.py

Counts are of all training data, or of those alone whom the cell was learnt from (the item effect of a mix), which is
what as few people can say. Both are put into standard scores over the candidates of a person and added; nothing is
fitted, so nothing is learnt from the test. It reads the cells in bench/few_shot/movielens-100k* that hold scores, and
asks no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewrec_prompt import load_task
from fewrec_prompt.cells import Cell, read_cell
from fewrec_prompt.metrics.ranking import ndcg
from fewrec_prompt.shots import shots_of
from fewrec_prompt.significance import paired_interval
from fewrec_prompt.tasks import load_queries
from fewrec_prompt.tuning.effects import takers
from fewrec_prompt.tuning.features import EFFECT, POPULARITY, effect_of, popularity_of

TASK = load_task("movielens-100k")
TEST = load_queries(TASK)
FOLDER = Path(__file__).resolve().parent / "few_shot"


def standard(values: np.ndarray) -> np.ndarray:
    """Deviations from the mean, in standard deviations; zeros where all are alike."""
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)


def compare(cell: Cell, counts: Mapping[str, np.ndarray]) -> str:
    """Means alone, by counts, and by both, and what both gain on each."""
    rows = []
    for user_id, scores, relevant in zip(cell.user_ids, cell.scores, cell.relevant, strict=True):
        own, counted = standard(np.array(scores)), standard(counts[user_id])
        marks = np.isin(np.arange(len(own)), relevant)
        rows.append([ndcg(ranked, marks, len(relevant), 10) for ranked in (own, counted, own + counted)])
    alone, by_counts, both = np.array(rows).T
    gains = [paired_interval(both, one, seed=0) for one in (alone, by_counts)]
    told = "; ".join(f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" for gain in gains)
    means = " / ".join(f"{100 * one.mean():.1f}" for one in (alone, by_counts, both))
    return f"{means}; both against each {told}"


def learnt_from(cell: Cell) -> dict[str, np.ndarray]:
    """How many of those whom a cell was learnt from took each candidate, by test user."""
    shots = shots_of(TASK, cell.shots, cell.seed)
    effects = takers(shots.learnt, shots.queries.training).effects
    return {one.user_id: effect_of(one, effects)[EFFECT] for one in TEST.queries}


def main() -> None:
    popularity = {one.user_id: popularity_of(one, TEST.popularity)[POPULARITY] for one in TEST.queries}
    print("alone / by counts / by both")
    for path in sorted(FOLDER.glob(f"{TASK.name}*/cells/*.json")):
        cell = read_cell(path)
        if not cell.scores or cell.method == "mix":  # from before cells held them, or it counts by itself
            continue
        print(f"{path.parent.parent.name} {cell.name}, popularity: {compare(cell, popularity)}")
        if cell.shots:
            print(f"{path.parent.parent.name} {cell.name}, those learnt from: {compare(cell, learnt_from(cell))}")


if __name__ == "__main__":
    main()
