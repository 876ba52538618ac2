"""A data set in numbers: how much there is, how titles look, what stands twice, from when to when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fewrec_prompt.data.dataset import Dataset

Count = Callable[[str], int]
"""How many tokens a text has."""


def describe(dataset: Dataset, n_tokens: Count | None = None) -> dict[str, Any]:
    """Plain data, ready for JSON: shares are fractions, lengths characters or tokens, times ISO 8601 in UTC."""
    n_users, n_items, n = dataset.sizes
    return {
        "name": dataset.name,
        "users": n_users,
        "items": n_items,
        "items_taken": len(np.unique(dataset.codes)),
        "interactions": n,
        "density": n / (n_users * n_items),
        "per_user": summary(np.diff(dataset.starts)),
        "titles": _titles(dataset, n_tokens),
        "repeated_interactions": _repeated(dataset),
        "repeated_item_ids": dataset.repeated_ids,
        "dropped_for_unknown_items": dataset.unknown_items,
        "ratings": None if dataset.ratings is None else summary(dataset.ratings[~np.isnan(dataset.ratings)]),
        "times": _times(dataset),
        "files": dict(dataset.sources),
    }


def summary(values: Sequence[float] | Any) -> dict[str, float] | None:
    """min, median, mean and max; None of nothing."""
    if not len(values):
        return None
    found = (np.min(values), np.median(values), np.mean(values), np.max(values))
    return dict(zip(("min", "median", "mean", "max"), map(float, found), strict=True))


def _titles(dataset: Dataset, n_tokens: Count | None) -> dict[str, Any]:
    titles = [item.title for item in dataset.items.values()]
    return {
        "characters": summary([len(title) for title in titles]),
        "tokens": None if n_tokens is None else summary([n_tokens(title) for title in titles]),
        "empty": dataset.empty_titles,
        "duplicates": len(titles) - len(set(titles)),
    }


def _repeated(dataset: Dataset) -> int:
    """Interactions beyond the first one of a user with an item."""
    pairs = dataset.user_of.astype(np.int64) * len(dataset.item_ids) + dataset.codes
    return len(pairs) - len(np.unique(pairs))


def _times(dataset: Dataset) -> dict[str, Any]:
    """What the times are: none, constant, positions in a list, or from when to when."""
    if dataset.times is None or np.isnan(dataset.times).all():
        return {"kind": "none", "first": None, "last": None}
    ends = float(np.nanmin(dataset.times)), float(np.nanmax(dataset.times))
    if not dataset.has_order:
        return {"kind": "constant", "first": ends[0], "last": ends[1]}
    if not dataset.has_calendar:
        return {"kind": "positions", "first": ends[0], "last": ends[1]}
    first, last = (datetime.fromtimestamp(end, UTC).isoformat() for end in ends)
    return {"kind": "clock", "first": first, "last": last}
