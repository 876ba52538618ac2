"""One value per user and metric, through the interface of Hugging Face's `evaluate`.

Our own names (nDCG@10, MRR, …) are computed by one module of ours, every other name by the `evaluate` metric that it
names (foreign.py finds it and fits the data to it). Means and intervals are left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.metrics.ranking import Floats, is_own_name, parse_metric
from fewrec_prompt.metrics.users import UserScores

if TYPE_CHECKING:
    from fewrec_prompt.metrics.foreign import ForeignMetric


def check_metrics(names: Iterable[str]) -> None:
    """Refuse, before anything is scored, a name that `measure` could not measure.

    Our own names are only parsed; for others the `evaluate` metric is loaded and its inputs are looked at.
    """
    names = list(dict.fromkeys(names))
    others = [name for name in names if not _is_ours(name)]
    with TemporaryDirectory() as scratch:
        _load_foreign(others, [name for name in names if name not in others], scratch)


def measure(names: Sequence[str], users: Sequence[UserScores]) -> dict[str, Floats]:
    """For each metric one value per user, in the order of `users`; NaN where a user has no value.

    Our metrics are keyed by their name. A foreign one is keyed by its own name (of a path: the last part) if it returns
    one number, and as name.key for each number if it returns several. Raises FewrecError for unknown names.
    """
    names = list(dict.fromkeys(names))
    if not users:
        raise DataError("there is no user to measure")
    own = _own_values([name for name in names if _is_ours(name)], users)
    with TemporaryDirectory() as scratch:
        foreign = _load_foreign([name for name in names if name not in own], list(own), scratch)
        others = {name: metric.measure(users) for name, metric in foreign.items()}
    result: dict[str, Floats] = {}
    for name in names:
        result |= {name: own[name]} if name in own else others[name]
    return result


def _is_ours(name: str) -> bool:
    """Whether we compute it ourselves. Raises FewrecError for a misspelt name of ours."""
    return is_own_name(name) and bool(parse_metric(name))


def _own_values(names: list[str], users: Sequence[UserScores]) -> dict[str, Floats]:
    if not names:
        return {}
    # seconds of import, torch among it: only when something is measured
    from fewrec_prompt.metrics.ranking_metrics.ranking_metrics import RankingMetrics

    with TemporaryDirectory() as scratch:  # evaluate makes its folder even when it keeps all in memory
        values = RankingMetrics(keep_in_memory=True, cache_dir=scratch, seed=0).compute(
            predictions=[user.scores for user in users],
            references=[user.relevant.astype(np.int64) for user in users],
            n_relevant=[user.n_relevant for user in users],
            metrics=names,
        )
    return {name: np.array(values["per_user"][name], dtype=np.float64) for name in names}


def _load_foreign(names: list[str], taken: list[str], scratch: str) -> dict[str, ForeignMetric]:
    if not names:
        return {}
    from fewrec_prompt.metrics.foreign import ForeignMetric

    metrics = {name: ForeignMetric.load(name, scratch) for name in names}
    labels = taken + [metric.label for metric in metrics.values()]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise FewrecError(f"two metrics are called {twice[0]!r}; rename the folder of one of them")
    return metrics
