"""One value per user and metric, and one value a run where a metric is no mean over users.

Our own names stand in naming.py's table; every other name is the `evaluate` metric that it names (foreign.py finds it
and fits the data to it). Means and intervals are left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.metrics.naming import Floats, Kind, Statistic, is_own_name, parse_metric
from fewrec_prompt.metrics.users import Mean, Shelf, UserScores, people_of
from fewrec_prompt.significance import Jackknifed, groups_of

if TYPE_CHECKING:
    from fewrec_prompt.metrics.foreign import ForeignMetric

NOTHING_KNOWN = Shelf()


def check_metrics(names: Iterable[str]) -> None:
    """Refuse, before anything is scored, a name that `measure` could not measure.

    Our own names are only parsed; for others the `evaluate` metric is loaded and its inputs are looked at.
    """
    names = list(dict.fromkeys(names))
    others = [name for name in names if not _is_ours(name)]
    with TemporaryDirectory() as scratch:
        _load_foreign(others, [name for name in names if name not in others], scratch)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one row came to: metrics with a value per user, metrics of the whole run, and all their names in order."""

    names: tuple[str, ...]
    per_user: Mapping[str, Floats]
    of_run: Mapping[str, Jackknifed]


def measure_all(names: Sequence[str], users: Sequence[UserScores], shelf: Shelf) -> Measured:
    """Everything that is named, of users who have an answer; nothing at all if there are none."""
    if not users:
        return Measured((), {}, {})
    per_user, of_run = measure(names, users, shelf), measure_run(names, users, shelf)
    order = [name for name in dict.fromkeys(names) if name in of_run or name in per_user]
    return Measured((*order, *(name for name in per_user if name not in order)), per_user, of_run)


def measure(names: Sequence[str], users: Sequence[UserScores], shelf: Shelf = NOTHING_KNOWN) -> dict[str, Floats]:
    """For each metric one value per user, in the order of `users`; NaN where a user has no value.

    Our metrics are keyed by their name, one of groups of items as name.label for each group. A foreign one is keyed by
    its own name (of a path: the last part) if it returns one number, and as name.key for each number if it returns
    several. Metrics of a whole run have no value per user and are left to `measure_run`. Raises FewrecError for unknown
    names.
    """
    names = list(dict.fromkeys(names))
    if not users:
        raise DataError("there is no user to measure")
    own = _ranking_values(_of_kind("ranking", names), users) | _user_values(_of_kind("user", names), users, shelf)
    others = {name: _item_values(name, users, shelf) for name in _of_kind("items", names)}
    with TemporaryDirectory() as scratch:
        foreign = _load_foreign([name for name in names if not _is_ours(name)], list(own), scratch)
        others |= {name: metric.measure(users) for name, metric in foreign.items()}
    result: dict[str, Floats] = {}
    for name in names:
        result |= {name: own[name]} if name in own else others.get(name, {})
    return result


def measure_run(names: Sequence[str], users: Sequence[UserScores], shelf: Shelf) -> dict[str, Jackknifed]:
    """For each metric of a whole run among the names: its value, and the value without each group of people."""
    if not users:
        raise DataError("there is no user to measure")
    who, people = people_of([user.user_id for user in users])
    groups = groups_of(people)[who]
    statistics = {name: parse_metric(name)(users, shelf, groups) for name in _of_kind("run", dict.fromkeys(names))}
    return {name: _jackknifed(one, int(groups.max()) + 1, len(users)) for name, one in statistics.items()}


def _jackknifed(statistic: Statistic, n_groups: int, n_users: int) -> Jackknifed:
    if isinstance(statistic, Mean):
        return Jackknifed.of(statistic, n_groups, statistic.n_known, statistic.n_excluded)
    return Jackknifed.of(statistic, n_groups, n_users)


def _of_kind(kind: Kind, names: Iterable[str]) -> list[str]:
    return [name for name in names if _is_ours(name) and parse_metric(name).entry.kind == kind]


def _user_values(names: list[str], users: Sequence[UserScores], shelf: Shelf) -> dict[str, Floats]:
    return {name: np.array([parse_metric(name)(user, shelf) for user in users], dtype=np.float64) for name in names}


def _item_values(name: str, users: Sequence[UserScores], shelf: Shelf) -> dict[str, Floats]:
    values = [parse_metric(name)(user, shelf) for user in users]
    return {f"{name}.{label}": np.array([one[label] for one in values], dtype=np.float64) for label in values[0]}


def _is_ours(name: str) -> bool:
    """Whether we compute it ourselves. Raises FewrecError for a misspelt name of ours."""
    return is_own_name(name) and bool(parse_metric(name))


def _ranking_values(names: list[str], users: Sequence[UserScores]) -> dict[str, Floats]:
    """By the formulae themselves: `evaluate` takes seconds to import. Its module in ranking_metrics/ gives the same."""
    wanted = [parse_metric(name) for name in names]
    values = [[one(user.scores, user.relevant, user.n_relevant) for one in wanted] for user in users]
    columns = np.ascontiguousarray(np.array(values, dtype=np.float64).T)
    return dict(zip(names, columns, strict=True)) if names else {}


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
