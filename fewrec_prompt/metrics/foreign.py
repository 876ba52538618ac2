"""Feed the metrics that are not ours: fit our data to what a Hugging Face `evaluate` metric declares.

What fits is two columns of numbers: `references` and one column of predictions, flat or as lists, called once per user.

* predictions declared as floats get the scores of the candidates (rounded, where 32 bits are declared);
* predictions declared as integers or truth values get a decision per candidate: 1 for the best-scored one, 0 for all
  others. If g candidates, r of them relevant, share the best score, the value is the mean over which of them is decided
  for: r/g times the value for a relevant one, (g-r)/g times that for another. It takes for granted that the metric does
  not mind the order of the candidates;
* `references` get 1 for relevant candidates and 0 for others.

Such a metric sees candidates only. A user none of whose relevant items is a candidate has no value (NaN).
Where a metric comes from is left to finding.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from fewrec_prompt.errors import FewrecError
from fewrec_prompt.metrics.finding import find_metric, say
from fewrec_prompt.metrics.naming import Floats
from fewrec_prompt.metrics.users import UserScores

_WANTED = (
    "It can be given 'references' (0 or 1 per candidate) and one column of predictions: floats (the scores) or "
    "integers (1 for the best-scored candidate, else 0), both flat or both as lists"
)


@dataclass(frozen=True, slots=True)
class ForeignMetric:
    """An `evaluate` metric and how it is fed."""

    label: str  # what its values are called
    module: Any  # evaluate.EvaluationModule
    column: str  # the column that takes the predictions
    nested: bool  # one list per user instead of one number per candidate
    decides: bool  # takes a decision per candidate instead of its score

    @classmethod
    def load(cls, name: str, scratch: str) -> ForeignMetric:
        """The metric of that path or name; `scratch` is a folder for its passing files.

        Raises FewrecError if it cannot be found, loaded or fed.
        """
        label, module = find_metric(name, scratch)
        return cls(label, module, *_fit(label, module.features))

    def measure(self, users: Sequence[UserScores]) -> dict[str, Floats]:
        """One value per user for each number that the metric returns."""
        rows = [self._values(user) if user.relevant.any() else {} for user in users]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        columns = {key: np.array([row.get(key, np.nan) for row in rows], dtype=np.float64) for key in keys}
        if len(columns) > 1:
            return {f"{self.label}.{key}": column for key, column in columns.items()}
        return {self.label: next(iter(columns.values()), np.full(len(users), np.nan))}

    def _values(self, user: UserScores) -> dict[str, float]:
        answers = [(weight, self._ask(user, row)) for weight, row in self._predictions(user)]
        return {
            key: sum(weight * answer[key] for weight, answer in answers)
            for key in answers[0][1]
            if all(key in answer for _, answer in answers)
        }

    def _predictions(self, user: UserScores) -> list[tuple[float, list[float] | list[int]]]:
        """What the metric is asked with, and with which weight each answer counts."""
        if not self.decides:
            return [(1.0, user.scores.tolist())]
        best = user.scores == user.scores.max()
        share = float(user.relevant[best].mean())
        chosen = ((share, best & user.relevant), (1 - share, best & ~user.relevant))
        return [(weight, _one_hot(len(best), int(mask.argmax()))) for weight, mask in chosen if weight]

    def _ask(self, user: UserScores, predictions: list[float] | list[int]) -> dict[str, float]:
        columns: dict[str, Any] = {self.column: predictions, "references": user.relevant.astype(int).tolist()}
        if self.nested:
            columns = {key: [column] for key, column in columns.items()}
        try:
            answer = self.module.compute(**columns)
        except Exception as error:  # its code is not ours: anything may come
            raise FewrecError(f"metric {self.label!r} failed for user {user.user_id}: {say(error)}") from error
        numbers = _numbers(answer)
        if not numbers:
            raise FewrecError(f"metric {self.label!r} returned no number for user {user.user_id}, but {answer!r:.200}")
        return numbers


def _one_hot(n: int, index: int) -> list[int]:
    return [int(place == index) for place in range(n)]


def _numbers(answer: Any) -> dict[str, float]:
    """The entries of the answer that are single numbers. Curves, lists and texts have no mean over users."""
    if not isinstance(answer, Mapping):
        return {}
    plain = {key: value.item() if getattr(value, "ndim", None) == 0 else value for key, value in answer.items()}
    return {str(key): float(value) for key, value in plain.items() if isinstance(value, Real)}


def _fit(label: str, features: Any) -> tuple[str, bool, bool]:
    """Of the first inputs that fit: column of the predictions, whether they are lists, whether they are decisions."""
    options = features if isinstance(features, list) else [features]
    for option in options:
        kinds = {name: _kind(feature) for name, feature in option.items()}
        column = next((name for name in kinds if name != "references"), "")
        if len(kinds) != 2 or "references" not in kinds or not all(kind for kind, _ in kinds.values()):
            continue
        (kind, nested), (_, references_nested) = kinds[column], kinds["references"]
        if nested == references_nested:
            return column, nested, kind == "whole"
    declared = " or ".join(
        "{" + ", ".join(f"{key}: {kind}" for key, kind in option.items()) + "}" for option in options
    )
    raise FewrecError(f"metric {label!r} does not fit: it declares {declared}. {_WANTED}.")


def _kind(feature: Any) -> tuple[str, bool]:
    """("real" | "whole" | "" for neither, whether it is a list) of a feature of `datasets`."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        kind, nested = _kind(inner)
        return ("", True) if nested else (kind, True)
    dtype = str(getattr(feature, "dtype", ""))
    if dtype.startswith("float"):
        return "real", False
    return ("whole", False) if dtype.startswith(("int", "uint", "bool")) else ("", False)
