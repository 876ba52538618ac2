"""What a report draws of its rows and runs: the numbers behind each picture, its words, and the table beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter

import numpy as np
from markupsafe import Markup

from fewrec_prompt import charts
from fewrec_prompt.charts import Axis, Line, Mark, Point, Series
from fewrec_prompt.display import figure, metric_names, points, span
from fewrec_prompt.finished import FinishedRun, Placed
from fewrec_prompt.metrics import item_group, probabilities, unit_of
from fewrec_prompt.metrics.judging import N_BINS, bins
from fewrec_prompt.report import rows
from fewrec_prompt.report.rows import Differences, Entry
from fewrec_prompt.significance import Floats, Interval, Jackknifed, groups_of

MIN_GROUP = 5  # users: of fewer, a mean says nothing
MAX_PLACES = 20  # a longer list of candidates is cut into so many equal parts
SWEPT = {"history": "history items shown", "shots": "users to learn from", "candidates": "candidates"}
"""Numbers of a task's [data] that one may try several of, and what they are called below a curve."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, its title and caption, and the numbers in it; no lines where the picture has them in words."""

    title: str
    caption: str
    picture: Markup
    heads: tuple[str, ...] = ()
    lines: tuple[tuple[str, ...], ...] = ()


def overview(entries: Sequence[Entry]) -> Figure | None:
    """The main metric of every row."""
    metric = rows.main(entries)
    shown = [Line(one.label, (mark,)) for one in entries if metric and (mark := _mark(metric, one.metric(metric)))]
    if metric is None or not shown:
        return None
    caption = "The interval is over users: two that overlap may still differ, see the paired differences."
    picture = charts.dots(_of(metric), caption, shown, _axis(metric, low=0.0))
    return Figure(_of(metric), caption, Markup(picture))


def differences(found: Differences | None) -> Figure | None:
    """Paired differences as dots."""
    if found is None:
        return None
    name, caption = found.metric, f"Each row minus {found.reference}, over the same users."
    shown = [Line(label, (_gap(name, pair.difference),)) for label, pair in found.found]
    unit = " (points)" if unit_of(name) == "share" else ""
    axis = Axis(name, lambda value: _sign(_number(name, value)), 0.0, 0.0)
    title = f"Difference in {name}{unit}"
    return Figure(title, caption, Markup(charts.dots(title, caption, shown, axis)))


def _gap(metric: str, one: Interval) -> Mark:
    value, low, high = (points(metric, number, signed=True) for number in (one.value, one.low, one.high))
    return Mark(one.value, one.low, one.high, f"{value} ({low} to {high})")


def curves(entries: Sequence[Entry]) -> list[Figure]:
    """The main metric against each number that rows or runs differ in: alpha, and what SWEPT names."""
    metric = rows.main(entries)
    if metric is None:
        return []
    prompts = [one for one in entries if one.row["prompt"] is not None and one.metric(metric)["value"] is not None]
    found = [_curve(metric, "alpha", prompts, _reading, _alpha)]
    for name, words in SWEPT.items():
        found.append(_curve(metric, words, prompts, attrgetter("name"), partial(_setting, name)))
    return [one for one in found if one is not None]


def _reading(one: Entry) -> str:
    """What rows have in common that differ in alpha alone."""
    run = one.label.removeprefix(one.name)
    orders = one.row.get("orders")
    parts = (
        *(one.row["prompt"], one.row["verbalizer"], one.row["length"]),
        None if orders in (None, 1) else f"{orders} orders",
        None if one.row["calibration"] in ("none", "pmi") else one.row["calibration"],
    )
    return " ".join(str(part) for part in parts if part) + run


def _alpha(one: Entry) -> float | None:
    return 0.0 if one.row["calibration"] == "none" else one.row["alpha"]


def _setting(key: str, one: Entry) -> float | None:
    value = one.run.record["settings"].get("data", {}).get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _curve(
    metric: str,
    words: str,
    entries: Sequence[Entry],
    name: Callable[[Entry], str],
    number: Callable[[Entry], float | None],
) -> Figure | None:
    """None unless some line has three points, or two that are of different runs."""
    known = sorted(((name(one), at, one) for one in entries if (at := number(one)) is not None), key=lambda t: t[:2])
    series = []
    for label, group in groupby(known, key=lambda triple: triple[0]):
        members = list(group)
        xs, n_runs = {at for _, at, _ in members}, len({id(one.run) for _, _, one in members})
        if len(xs) == len(members) and len(xs) >= (3 if n_runs == 1 else 2):
            series.append((label, members))
    if not series:
        return None
    shown = [
        Series(label, tuple(_point(at, metric, one) for _, at, one in members))
        for label, members in series[: charts.N_SERIES]
    ]
    title = f"{_of(metric)} against {words}"
    picture = charts.lines(title, _of(metric), shown, Axis(words, _plain), _axis(metric))
    lines = tuple(
        (label, _plain(at), figure(metric, one.metric(metric)["value"]), _span(metric, one))
        for label, members in series
        for _, at, one in members
    )
    caption = "Intervals over users. A number chosen by this picture must not be reported for the same users."
    return Figure(title, caption, Markup(picture), ("row", words, metric, "95 %"), lines)


def _point(at: float, metric: str, one: Entry) -> Point:
    numbers = one.metric(metric)
    value, low, high = (_known(numbers[name]) for name in ("value", "low", "high"))
    return Point(at, value, low, high)


def _span(metric: str, one: Entry) -> str:
    return span(metric, one.metric(metric)["low"], one.metric(metric)["high"])


# --- one run


def slices(run: FinishedRun) -> list[Figure]:
    """The main metric by groups of users, not too small: the best prompt, and the best of the baselines."""
    names = rows.leaders(run)
    metric = rows.main([Entry(run, name, name) for name in names])
    if metric is None:
        return []
    cut = [one for one in run.slices if one["metric"] == metric and one["row"] in names and one["value"] is not None]
    cut = [one for one in cut if one["n_users"] >= MIN_GROUP]
    cut.sort(key=lambda one: names.index(one["row"]))
    found = []
    for attribute in dict.fromkeys(one["attribute"] for one in cut):
        groups: dict[str, list[Mark]] = {}
        for one in cut:
            if one["attribute"] == attribute:
                label = f"{one['group']} ({_users(one['n_users'])})"
                mark = _mark(metric, one, names.index(one["row"]))
                groups.setdefault(label, []).extend([mark] if mark else [])
        if len(groups) < 2:  # nothing to set it against
            continue
        lines = [Line(label, tuple(marks)) for label, marks in groups.items()]
        title = f"{metric} by {attribute}"
        picture = charts.dots(title, f"{_of(metric)}, for {' and '.join(names)}", lines, _axis(metric, low=0.0), names)
        found.append(Figure(title, "", Markup(picture)))
    return found


def exposures(run: FinishedRun) -> list[Figure]:
    """Which groups of items come up more, or less, than they are offered: the same two rows, where it was measured."""
    names = rows.leaders(run)
    labels = [label for label in metric_names([run.rows[name] for name in names]) if item_group(label)]
    found = []
    for metric, members in groupby(labels, key=lambda label: label.partition(".")[0]):
        lines = [Line(str(item_group(label)), tuple(_marks(run, names, label))) for label in members]
        title = f"{metric} by group of items"
        about = f"{_of(metric)}: share of what is looked at minus share of the candidates, for {' and '.join(names)}"
        picture = charts.dots(title, about, lines, _axis(metric, low=0.0), names)
        found.append(Figure(title, "", Markup(picture)))
    return found


def _marks(run: FinishedRun, names: Sequence[str], label: str) -> list[Mark]:
    found = (_mark(label, Entry(run, name, name).metric(label), at) for at, name in enumerate(names))
    return [mark for mark in found if mark is not None]


def reliability(run: FinishedRun) -> list[Figure]:
    """For each row that judges: what it said, against how often that was right."""
    if not any(asked.target for asked in run.asked.values()):
        return []
    found = (_reliability(run, name) for name in run.prompt_rows)
    return [one for one in found if one is not None]


def _reliability(run: FinishedRun, name: str) -> Figure | None:
    kind, placed = run.kind(name), run.placed(name)
    stars = kind == "rate" and run.rows[name]["calibration"] == "none"
    top = len(run.record["verbalizers"][run.rows[name]["verbalizer"]]["labels"]) if stars else 1
    said = (placed.score - 1) / (top - 1) if stars else _probabilities(kind, placed)
    if said is None:
        return None
    binned = _binned(np.clip(said, 0.0, 1.0), placed, list(run.asked))
    write = (lambda value: f"{1 + value * (top - 1):.1f}") if stars else _percent
    words = "expected stars" if stars else "probability given, %"
    series = Series(name, tuple(Point(said, one.value, one.low, one.high) for said, _, one in binned))
    ideal = () if stars else ((0.0, 0.0), (1.0, 1.0))
    about = f"How often candidates were the answer, by {words}, of row {name}"
    x = Axis(words, write, 0.0, 1.0)
    picture = charts.lines(name, about, [series], x, Axis("were the answer, %", _percent, 0.0, 1.0), ideal)
    lines = tuple(
        (write(said), str(n), _percent(one.value), f"{_percent(one.low)}–{_percent(one.high)}")
        for said, n, one in binned
    )
    return Figure(name, "", Markup(picture), (words, "candidates", "were the answer, %", "95 %"), lines)


def _probabilities(kind: str | None, placed: Placed) -> Floats | None:
    """The probability of every pair; None for a kind that gives none."""
    begins = np.flatnonzero(placed.place == 0)
    lists = np.split(placed.score, begins[1:])
    given = [probabilities(kind, scores) for scores in lists]
    known = [one for one in given if one is not None]
    return np.concatenate(known) if len(known) == len(given) else None


@dataclass(frozen=True, slots=True)
class Share:
    """A share and the ends of its interval."""

    value: float
    low: float
    high: float


def _binned(said: Floats, placed: Placed, users: Sequence[str]) -> list[tuple[float, int, Share]]:
    """For each of ten bins that holds anything: mean of what was said, candidates, share that were the answer.

    The interval is over users, within 0 and 1, for the candidates of a user are no independent draws: the jackknife's,
    or Wilson's where all or none of a bin were the answer.
    """
    inside = np.flatnonzero(placed.judged)
    ids, user = np.unique(placed.user[inside], return_inverse=True)
    begins = np.flatnonzero(np.diff(user, prepend=-1))
    lists = np.split(inside, begins[1:])
    per_user = np.stack([bins(said[own], placed.relevant[own]) for own in lists])
    groups = groups_of([users[at] for at in ids])
    sums = np.zeros((int(groups.max()) + 1, 3, N_BINS))
    np.add.at(sums, groups, per_user)
    whole, n_users = sums.sum(axis=0), (per_user[:, 0] > 0).sum(axis=0)
    full = [at for at in range(N_BINS) if whole[0, at]]
    shares = [_share(sums[:, :, at], len(ids), int(n_users[at])) for at in full]
    means = [(float(whole[1, at] / whole[0, at]), int(whole[0, at])) for at in full]
    return [(*mean, share) for mean, share in zip(means, shares, strict=True)]


def _share(sums: Floats, n_users: int, n_inside: int) -> Share:
    """The share of a bin from its sums by group (n_groups, 3); `n_inside` users have a candidate in it."""

    def value(weights: Floats) -> float:
        n, _, right = weights @ sums
        return float(right / n) if n else float("nan")

    one = Jackknifed.of(value, len(sums), n_users)
    interval = one.interval()
    if not interval.high > interval.low:  # all, none, or one group alone: the jackknife cannot say
        return Share(one.value, *_wilson(one.value, n_inside))
    return Share(one.value, max(0.0, interval.low), min(1.0, interval.high))


def positions(run: FinishedRun) -> list[Figure]:
    """For each prompt row: how often what stands at a place of the prompt comes out first."""
    return [_positions(run, name) for name in run.prompt_rows]


def _positions(run: FinishedRun, name: str) -> Figure:
    placed = run.placed(name)
    n_users = len(run.asked)
    longest = int(placed.n_candidates.max())
    n_parts = min(longest, MAX_PLACES)
    whole = bool((placed.n_candidates == longest).all()) and n_parts == longest
    part = placed.place if whole else placed.place * n_parts // placed.n_candidates
    first = _first(placed)
    shares, chance = (
        np.bincount(part, weights, n_parts) / n_users for weights in (first, 1 / placed.n_candidates.astype(np.float64))
    )
    words = "place in the prompt" if whole else f"part of the prompt's list, of {n_parts}"
    drawn = (Point(at, float(share), *_wilson(share, n_users)) for at, share in enumerate(shares, 1))
    series = Series(name, tuple(drawn))
    ideal = tuple((float(at), float(share)) for at, share in enumerate(chance, 1))
    about = f"How often what stands at a place of the prompt comes out first in row {name}"
    x, y = Axis(words, _plain), Axis("of users it comes first, %", _percent, 0.0)
    picture = charts.lines(name, about, [series], x, y, ideal, joined=False)
    lines = tuple(
        (str(at), _percent(share), _percent(expected))
        for at, (share, expected) in enumerate(zip(shares, chance, strict=True), 1)
    )
    return Figure(name, "", Markup(picture), (words, "comes first, %", "if places did not matter, %"), lines)


def _first(placed: Placed) -> Floats:
    """Each pair's part in the first place of its user; those who tie for it share it."""
    n_users = int(placed.user.max()) + 1
    best = np.full(n_users, -np.inf)
    np.maximum.at(best, placed.user, placed.score)
    wins = placed.score == best[placed.user]
    return np.asarray(wins / np.bincount(placed.user, wins, n_users)[placed.user])


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n users (Wilson 1927)."""
    z = 1.96
    middle, reach = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((middle - reach) / (1 + z * z / n)), float((middle + reach) / (1 + z * z / n))


# --- words


def _mark(metric: str, numbers: object, series: int = 0) -> Mark | None:
    value, low, high = (numbers[name] for name in ("value", "low", "high"))  # type: ignore[index]  # a mapping
    if value is None:
        return None
    text = f"{figure(metric, value)} ({span(metric, low, high)})"
    return Mark(value, _known(low, value), _known(high, value), text, series)


def _known(value: float | None, otherwise: float = float("nan")) -> float:
    return otherwise if value is None else value


def _of(metric: str) -> str:
    unit = unit_of(metric)
    return f"{metric} ({'%' if unit == 'share' else unit})" if unit != "number" else metric


def _axis(metric: str, low: float | None = None) -> Axis:
    return Axis(_of(metric), lambda value: _number(metric, value), low)


def _number(metric: str, value: float) -> str:
    """A tick: a share as whole per cent."""
    return f"{100 * value if unit_of(metric) == 'share' else value:.3g}"


def _sign(number: str) -> str:
    return number.replace("-", "−") if number.startswith("-") or number == "0" else f"+{number}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}"


def _plain(value: float) -> str:
    return f"{value:g}"


def _users(n: int) -> str:
    return f"{n} user" if n == 1 else f"{n} users"
