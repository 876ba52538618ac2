"""The rows of one or several runs of the same test as one table, and their paired differences from the first prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewrec_prompt import comparison
from fewrec_prompt.comparison import Difference
from fewrec_prompt.display import figure, main_metric, metric_names, milliseconds, span
from fewrec_prompt.finished import FinishedRun


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table: whose it is, what it is called in its run, and here."""

    run: FinishedRun
    name: str
    label: str

    @property
    def row(self) -> Mapping[str, Any]:
        """Its part of run.json."""
        return self.run.rows[self.name]

    def metric(self, name: str) -> Mapping[str, float | None]:
        """value, low and high; None each where the row has no such metric."""
        found: Mapping[str, float | None] | None = self.row["metrics"].get(name)
        return found or {"value": None, "low": None, "high": None}


@dataclass(frozen=True, slots=True)
class Differences:
    """One metric of every other row minus that of the reference row."""

    metric: str
    reference: str
    found: tuple[tuple[str, Difference], ...]  # (label, difference)
    lines: tuple[tuple[str, ...], ...]  # as they are read: label, value, difference, interval, p, p Holm, verdict


def entries(group: Sequence[FinishedRun], labels: Sequence[str]) -> list[Entry]:
    """All rows of these runs. A baseline that an earlier run has with the same numbers is not repeated."""
    found: list[Entry] = []
    for run, label in zip(group, labels, strict=True):
        for name, row in run.rows.items():
            known = [entry for entry in found if entry.name == name and row["prompt"] is None]
            if any(entry.row["metrics"] == row["metrics"] for entry in known):
                continue
            plain = not label or (row["prompt"] is None and not known)
            found.append(Entry(run, name, name if plain else f"{name} · {label}"))
    return found


def main(rows: Iterable[Entry]) -> str | None:
    """The metric that pictures show."""
    return main_metric(metric_names([entry.row for entry in rows]))


def table(rows: Sequence[Entry]) -> dict[str, Any]:
    """Heads and lines of the table, values as people read them."""
    names = list(dict.fromkeys(name for entry in rows for name in entry.row["metrics"]))
    best = {name: _highest(entry.metric(name)["value"] for entry in rows) for name in names}
    lines = [
        {
            "label": entry.label,
            "cells": [_cell(name, entry.metric(name), best[name]) for name in names],
            "ms": milliseconds(entry.row["ms_per_user"]),
        }
        for entry in rows
    ]
    return {"metrics": names, "rows": lines}


def _cell(name: str, metric: Mapping[str, float | None], best: float | None) -> dict[str, Any]:
    known = metric["value"] is not None
    interval = span(name, metric["low"], metric["high"]) if known else ""
    return {"value": figure(name, metric["value"]), "interval": interval, "best": known and metric["value"] == best}


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def differences(rows: Sequence[Entry]) -> Differences | None:
    """Every row beside the first prompt (or the first row, if none is a prompt); None where nothing can be paired.

    The reference is the first and not the best: to pick by the score and then compare would favour the pick.
    """
    metric = main(rows)
    able = [entry for entry in rows if metric in entry.row["metrics"] and entry.run.has("measurements.parquet")]
    if metric is None or len(able) < 2:
        return None
    reference = next((entry for entry in able if entry.row["prompt"] is not None), able[0])
    others = [entry for entry in able if entry is not reference]
    pairs = comparison.beside((reference.run, reference.name), [(one.run, one.name) for one in others], metric)
    found = tuple((one.label, pair) for one, pair in zip(others, pairs, strict=True) if pair is not None)
    lines = tuple((label, *_line(pair)) for label, pair in found)
    return Differences(metric, reference.label, found, lines) if found else None


def _line(pair: Difference) -> tuple[str, ...]:
    _metric, _a, value, *rest = comparison.lines(pair)
    return (value, *rest)


def leaders(run: FinishedRun) -> list[str]:
    """The prompt with the highest main metric, then the baseline with the highest; those that there are."""
    metric = main([Entry(run, name, name) for name in run.rows])
    if metric is None:
        return []
    prompts = [name for name in run.rows if run.rows[name]["prompt"] is not None]
    sides = (prompts, [name for name in run.rows if name not in prompts])
    best = (max(side, key=lambda name: _height(run, name, metric), default=None) for side in sides)
    return [name for name in best if name is not None and _height(run, name, metric) > -np.inf]


def _height(run: FinishedRun, name: str, metric: str) -> float:
    value = Entry(run, name, name).metric(metric)["value"]
    return -np.inf if value is None else value
