"""One table of all our metrics and one grammar for their names: a name, or a name and a depth, e.g. AUC or nDCG@10.

A metric is entered by `@metric` and is of one of four kinds:

| kind | function of | gives |
|---|---|---|
| ranking | scores, which are relevant, how many are relevant in all, k | one user's value |
| user | a UserScores, the Shelf, k | one user's value |
| items | a UserScores, the Shelf, k | one user's value for each group of items, by its label |
| run | all UserScores, the Shelf, a group number for each user, k | a Statistic: the value under a weight per group |

What a metric of kind `items` gives is called name.label, such as `exposure-gap@10.popularity high`.

The formulae stand in ranking.py (ranking), judging.py (yes or no), questions.py (AUC over several questions) and
beyond.py (which items come up).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import FewrecError, did_you_mean

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Codes: TypeAlias = npt.NDArray[np.intp]
Statistic: TypeAlias = Callable[[Floats], float]
"""The value of a metric of a whole run if each group of users, (n_groups,), counted this much."""
Function: TypeAlias = Callable[..., Any]
Depth: TypeAlias = Literal["optional", "required", "none"]
Kind: TypeAlias = Literal["ranking", "user", "items", "run"]
Better: TypeAlias = Literal["more", "less", "neither"]
Unit: TypeAlias = Literal["share", "bits", "nats", "number"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table."""

    function: Function
    depth: Depth
    kind: Kind
    unit: Unit
    better: Better  # neither: it says what comes up, not how good it is


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it was named, e.g. nDCG@10. Call it with what its kind takes, but for the depth."""

    name: str
    k: int | None
    entry: Entry

    def __call__(self, *inputs: Any) -> Any:
        return self.entry.function(*inputs, self.k)


_TABLE: dict[str, Entry] = {}
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9-]*)(?:@([1-9][0-9]*))?")


def metric(
    name: str,
    depth: Depth = "optional",
    *,
    kind: Kind = "ranking",
    unit: Unit = "share",
    better: Better = "more",
) -> Callable[[Function], Function]:
    """Enter a function into the table of metrics. `depth` says whether its name takes an @k."""

    def enter(function: Function) -> Function:
        _TABLE[name] = Entry(function, depth, kind, unit, better)
        return function

    return enter


def metric_names() -> list[str]:
    """Our own metrics as they are written, e.g. nDCG@k (k stands for a number, brackets for what may be left out)."""
    tail = {"optional": "[@k]", "required": "@k", "none": ""}
    return [name + tail[entry.depth] for name, entry in _TABLE.items()]


def is_own_name(name: str) -> bool:
    """Whether the name belongs to this grammar, rightly spelt or not: it carries an @, or differs in case only."""
    if "/" in name or name.endswith(".py"):
        return False
    return "@" in name or name.lower() in {own.lower() for own in _TABLE}


def parse_metric(name: str) -> Metric:
    """The metric behind a name such as nDCG@10, HR@5 or MRR. Raises FewrecError with the nearest name."""
    match = _NAME.fullmatch(name)
    if not match and "@" in name:
        raise FewrecError(f"metric {name!r}: write a name, or a name and a depth from 1 up, e.g. nDCG@10")
    family, k = match.groups() if match else (name, None)
    if family not in _TABLE:
        raise FewrecError(f"unknown metric {name!r}; {nearest(family)}")
    entry = _TABLE[family]
    if k and entry.depth == "none":
        raise FewrecError(f"metric {name!r}: {family} looks at the whole list and takes no depth; write {family!r}")
    if not k and entry.depth == "required":
        raise FewrecError(f"metric {name!r}: {family} needs a depth; write e.g. '{family}@10'")
    return Metric(name, int(k) if k else None, entry)


def item_group(name: str) -> str | None:
    """The label of the group of items that these values are of; None of all other values."""
    own, _, label = name.partition(".")
    return label if label and is_own_name(own) and parse_metric(own).entry.kind == "items" else None


def unit_of(name: str) -> Unit:
    """What a metric's values, or those of a group of items, are counted in; a foreign one's are taken for shares."""
    own = name.partition(".")[0]
    return parse_metric(own).entry.unit if is_own_name(own) else "share"


def better_of(name: str) -> Better:
    """Whether more of a metric is better; more of a foreign one is taken to be."""
    own = name.partition(".")[0]
    return parse_metric(own).entry.better if is_own_name(own) else "more"


def nearest(family: str) -> str:
    """The tail of an error about an unknown name: all known ones and the nearest."""
    # difflib minds the case: to it, ndcg and nDCG are strangers
    same = next((own for own in _TABLE if own.lower() == family.lower()), family)
    return did_you_mean(same, _TABLE)
