"""Our ranking metrics as a module of Hugging Face's `evaluate`: instantiate the class, or `evaluate.load` this folder.

It only carries numbers in and out; the formulae are in fewrec_prompt.metrics.ranking. `evaluate.load` copies this file
elsewhere and reads its imports line by line: hence absolute imports, one a line, and no other evaluate class by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from fewrec_prompt.metrics.naming import parse_metric
from fewrec_prompt.metrics.users import UserScores

_DESCRIPTION = "nDCG, HR, MRR, recall, precision, MAP and AUC per user; tied scores count at their expectation."
_INPUTS = """
Args:
    predictions: a list of scores for each user, one per candidate, higher is better.
    references: a list of 0 and 1 for each user, one per candidate: 1 if it is relevant.
    metrics: names such as ["nDCG@10", "HR@10", "MRR"].
    n_relevant: how many items are relevant for each user, candidates or not; left out, all of them are candidates.
Returns:
    The mean of each metric over the users for whom something is relevant, and under "per_user" one value per user
    (NaN if nothing is relevant).
"""


class RankingMetrics(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """Means over users and, under "per_user", the values they were made of."""

    def _info(self) -> Any:
        features = datasets.Features(
            {
                "predictions": datasets.List(datasets.Value("float64")),
                "references": datasets.List(datasets.Value("int64")),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features, format=None
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[int]],
        metrics: Sequence[str],
        n_relevant: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        wanted = [parse_metric(name) for name in metrics]
        totals = [sum(row) for row in references] if n_relevant is None else n_relevant
        rows = zip(predictions, references, totals, strict=True)
        users = [UserScores.from_lists(f"#{number}", *row) for number, row in enumerate(rows)]
        per_user = {one.name: [one(user.scores, user.relevant, user.n_relevant) for user in users] for one in wanted}
        return {name: _mean(values) for name, values in per_user.items()} | {"per_user": per_user}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
