"""Numbers of a run as people read them, wherever they are shown: a terminal, a page, a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fewrec_prompt.metrics import unit_of

MAIN = "nDCG@10"
LEFT_OUT = "people without "  # begins a note of a row: how many have no value of the metric that it names


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of a table, in the order of its first row that has any."""
    return next((list(row["metrics"]) for row in rows if row["metrics"]), [])


def main_metric(names: Sequence[str]) -> str | None:
    """The metric that is shown where there is room for one: nDCG@10, else the first; None if there is none."""
    return MAIN if MAIN in names else next(iter(names), None)


def percent(value: float | None) -> str:
    """A fraction as per cent with one digit; a dash where nothing was measured."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def figure(metric: str, value: float | None) -> str:
    """A metric's value: a share as per cent, bits, nats and other numbers with three digits."""
    if value is None or math.isnan(value) or unit_of(metric) == "share":
        return percent(value)
    return f"{value:.3g}"


def span(metric: str, low: float | None, high: float | None) -> str:
    """The ends of an interval."""
    return f"{figure(metric, low)}–{figure(metric, high)}"


def points(metric: str, value: float, *, signed: bool = False) -> str:
    """A difference of a metric: of shares in percentage points; a dash where nothing was measured."""
    if math.isnan(value):
        return "–"
    scale, form = (100, ".1f") if unit_of(metric) == "share" else (1, ".3g")
    return format(scale * value, f"+{form}" if signed else form).replace("-", "−")


def milliseconds(value: float | None) -> str:
    """Whole milliseconds; a dash for rows that ask no model."""
    return "–" if value is None else f"{value:.0f}"


def size(n_bytes: int) -> str:
    """Bytes as kB or MB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"
