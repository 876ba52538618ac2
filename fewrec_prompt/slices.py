"""Per-user values cut by what users are like: how good for whom, and how far groups lie apart, with intervals.

Items fall into groups in the same way (`item_groups`); what metrics make of those is theirs.

What a user is like is one word or range per user and attribute (`attributes`): how long the history is, how popular the
target, whether the target is new, what fields the data has on people and on targets. Nothing here knows a metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.significance import Floats, Interval, bootstrap_intervals, difference_intervals, number
from fewrec_prompt.types import Query

Attribute = Sequence[str | None]
"""A word for each user, in the order of the values; None for those of whom it is not known."""
Values = Mapping[tuple[str, str], Floats]
"""Per-user values (n_users,), NaN where a user has none, by row and metric."""
N_RESAMPLES = 2000  # there are many slices
THIRDS = ("low", "middle", "high")
MAX_GROUPS = 12  # a field with more different words than this names people, it does not group them
COLD = 5  # a target that fewer people took is new


@dataclass(frozen=True, slots=True)
class Slice:
    """One group of users: its own mean, and how far it lies above (or below) everybody else's."""

    attribute: str
    group: str
    row: str
    metric: str
    mean: Interval
    gap: Interval  # of different people: each side drawn by itself

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null where there is nothing to say."""
        numbers = {"value": self.mean.value, "low": self.mean.low, "high": self.mean.high}
        gap = {"gap": self.gap.value, "gap_low": self.gap.low, "gap_high": self.gap.high}
        known = {name: number(value) for name, value in (numbers | gap).items()}
        names = {"attribute": self.attribute, "group": self.group, "row": self.row, "metric": self.metric}
        return names | {"n_users": self.mean.n_users} | known


def slices(values: Values, attributes: Mapping[str, Attribute], seed: int) -> list[Slice]:
    """Every row's and metric's values in every group of every attribute, groups in the order of their names.

    Attributes with a single group are left out: they cut nothing.
    """
    return [
        one
        for attribute, words in attributes.items()
        for group in _groups(words)
        for one in _slice(values, attribute, group, np.array([word == group for word in words]), seed)
    ]


def _slice(values: Values, attribute: str, group: str, inside: Any, seed: int) -> list[Slice]:
    means = bootstrap_intervals({key: column[inside] for key, column in values.items()}, seed, n_resamples=N_RESAMPLES)
    gaps = difference_intervals(values, inside, seed, n_resamples=N_RESAMPLES)
    return [Slice(attribute, group, *key, means[key], gaps[key]) for key in values]


def _groups(words: Attribute) -> list[str]:
    """The groups of an attribute; none if there is but one."""
    found = sorted({word for word in words if word is not None}, key=_natural)
    return found if len(found) > 1 else []


def _natural(word: str) -> tuple[float, str]:
    """Ranges by their numbers, thirds as they rise, other words by the alphabet."""
    if word in THIRDS:
        return THIRDS.index(word), word
    digits = word.partition("–")[0].removesuffix("+")
    return (float(digits), word) if digits.replace(".", "", 1).isdigit() else (0.0, word)


def attributes(queries: QuerySet) -> dict[str, Attribute]:
    """What is known of each user who has an answer, in the order of the queries.

    history length, activity (training interactions) and target popularity are in thirds of these users; a target is
    cold if fewer than COLD interactions know it. Fields of people are named user.<field>, of targets target.<field>
    (such as a provider); numbers come in thirds, and a field with more than MAX_GROUPS words is left out.
    """
    judged = [query for query in queries.queries if queries.qrels.get(query.user_id)]
    learned = queries.training
    counts = [_target_count(query, queries) for query in judged]
    people = [dict(learned.people.get(query.user_id, ())) if learned else {} for query in judged]
    activity = [learned.activity.get(query.user_id, 0) if learned else np.nan for query in judged]
    return {
        "history length": thirds([float(len(query.history)) for query in judged]),
        "activity": thirds(activity),
        "target popularity": thirds(counts),
        "target": ["cold" if count < COLD else "warm" for count in counts],
        **_fields("user", people),
        **_fields("target", [_target_fields(query, queries) for query in judged]),
    }


def item_groups(queries: QuerySet) -> dict[str, frozenset[str]]:
    """Groups of the items that are candidates, each by a label such as "popularity high" or "publisher Ace".

    By how often they were taken, in thirds, and by their fields, as those of targets are (see `attributes`).
    """
    items = list({item.id: item for query in queries.queries for item in query.candidates}.values())
    fields = _fields("", [dict(item.fields) for item in items])
    counts = thirds([float(queries.popularity.get(item.id, 0)) for item in items])
    by_name = {"popularity": counts} | {name.removeprefix("."): words for name, words in fields.items()}
    return {
        f"{name} {group}": frozenset(item.id for item, word in zip(items, words, strict=True) if word == group)
        for name, words in by_name.items()
        for group in _groups(words)
    }


def thirds(numbers: Sequence[float]) -> list[str | None]:
    """low, middle or high for each number, by the thirds of all of them; equal numbers fall into the same third."""
    known = np.array(numbers, dtype=np.float64)
    if np.isnan(known).all():
        return [None] * len(known)
    edges = np.nanquantile(known, [1 / 3, 2 / 3])
    return [None if np.isnan(number) else THIRDS[int(np.searchsorted(edges, number))] for number in known]


def _target_count(query: Query, queries: QuerySet) -> float:
    return float(np.mean([queries.popularity.get(item_id, 0) for item_id in queries.qrels[query.user_id]]))


def _target_fields(query: Query, queries: QuerySet) -> dict[str, Any]:
    """The fields of the target, where it is a candidate."""
    wanted = queries.qrels[query.user_id]
    return next((dict(item.fields) for item in query.candidates if item.id in wanted), {})


def _fields(of: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Attribute]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {f"{of}.{name}": _words([row.get(name) for row in rows]) for name in names}
    return {name: words for name, words in columns.items() if len(set(words) - {None}) <= MAX_GROUPS}


def _words(values: Sequence[Any]) -> Attribute:
    """The values as words; thirds if all are numbers."""
    numbers = [_number(value) for value in values]
    if all(value is None or number is not None for value, number in zip(values, numbers, strict=True)):
        return thirds([np.nan if number is None else number for number in numbers])
    return [None if value is None else str(value) for value in values]


def _number(value: Any) -> float | None:
    """The number that the value is; 007 and postal codes are none."""
    if isinstance(value, str) and value[:1] == "0" and value[1:].isdigit():
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
