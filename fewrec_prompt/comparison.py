"""Is one run better than another? Paired differences of the same users, and what changed beside them.

Reads what runs wrote down (finished.py); no model, no task. Runs that did not rank the same candidates for the
same users with the same answers are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import unified_diff
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewrec_prompt import runs
from fewrec_prompt.display import figure, main_metric, points
from fewrec_prompt.errors import RunError, did_you_mean
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.metrics import Better, better_of
from fewrec_prompt.significance import (
    Floats,
    Interval,
    Jackknifed,
    bootstrap_intervals,
    detectable,
    holm,
    number,
    permutation_p,
    smallest_shown,
    verdict,
)

if TYPE_CHECKING:
    import pandas as pd

N_SHOWN = 10  # users that gained, and that lost, most
COMPARED = (
    *("schema", "queries", "split", "templates.*", "verbalizers.*"),
    *("settings.rows", "settings.ensembles", "settings.metrics"),
)
"""Parts of a header that are compared by themselves, or say nothing about a difference."""
WORDS: dict[Better, dict[str, str]] = {
    "more": {},
    "less": {"better": "worse", "worse": "better"},
    "neither": {"better": "higher", "worse": "lower"},
}
ROW_KEYS = ("prompt", "verbalizer", "calibration", "alpha", "length", "orders")


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of a pair of rows: b - a over the same users."""

    metric: str
    a: float
    b: float
    difference: Interval  # paired bootstrap; of a metric of the whole run the jackknife
    p_value: float  # paired permutation test; of a metric of the whole run by the jackknife's error
    p_holm: float  # adjusted for every metric of every pair of the comparison
    smallest: float  # difference that this many users would show four times in five
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, fractions; null where there is no number."""
        interval = {"difference": self.difference.value, "low": self.difference.low, "high": self.difference.high}
        numbers = {"a": self.a, "b": self.b} | interval
        numbers |= {"p_value": self.p_value, "p_holm": self.p_holm, "smallest_shown": self.smallest}
        known = {name: number(value) for name, value in numbers.items()}
        return {"metric": self.metric} | known | {"n_users": self.difference.n_users, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Change:
    """A user for whom the rows differ: by how much, and the place of the best target in each (None: no candidate)."""

    user_id: str
    difference: float
    rank_a: int | None
    rank_b: int | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of one run beside a row of another: quality, users, templates, cost."""

    a: str
    row_a: str
    b: str
    row_b: str
    differences: tuple[Difference, ...]
    metric: str  # by which users gained or lost
    n_gained: int
    n_lost: int
    gained: tuple[Change, ...]  # most first
    lost: tuple[Change, ...]
    template_diff: str  # unified diff of the two texts; empty if they are the same, or a baseline has none
    changed: tuple[tuple[str, Any, Any], ...]  # (what, in a, in b) of everything else that decides a result
    ms_a: float | None  # per user
    ms_b: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = asdict(replace(self, differences=()))
        plain["differences"] = [one.to_dict() for one in self.differences]
        plain["changed"] = [{"what": what, "a": before, "b": now} for what, before, now in self.changed]
        return plain


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every compared pair of rows. The first run is what the others are compared with."""

    runs: tuple[str, ...]
    n_users: int
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what `fewrec compare --json` writes."""
        return {"runs": list(self.runs), "n_users": self.n_users, "pairs": [pair.to_dict() for pair in self.pairs]}

    def to_pandas(self) -> pd.DataFrame:
        """One line per pair and metric."""
        import pandas as pd

        lines = [
            {"run_a": pair.a, "row_a": pair.row_a, "run_b": pair.b, "row_b": pair.row_b} | one.to_dict()
            for pair in self.pairs
            for one in pair.differences
        ]
        return pd.DataFrame(lines)


def compare(
    a: Path | str,
    b: Path | str,
    *more: Path | str,
    rows: Sequence[str] = (),
    metrics: Sequence[str] = (),
    seed: int = 0,
) -> Comparison:
    """Compare run folders with the first of them, over the same users.

    Prompt rows of the same name are compared; if exactly as many are left over on both sides, those in their order.
    `rows` names them instead: "NAME", or "NAME IN A=NAME IN B"; so a baseline can be compared with a prompt, also
    within one run. `metrics` are all that both runs have. Raises RunError, which says how many users or candidates
    differ and which, where the runs are not of the same test set.
    """
    first, *others = [FinishedRun(Path(folder)) for folder in (a, b, *more)]
    for other in others:
        _check_same_test(first, other)
    sides = [Sides(first, row_a, other, row_b) for other in others for row_a, row_b in _row_pairs(first, other, rows)]
    pairs = [
        _pair(side, differences) for side, differences in zip(sides, _differences(sides, metrics, seed), strict=True)
    ]
    return Comparison(tuple(str(one.folder) for one in (first, *others)), len(first.users), tuple(pairs))


@dataclass(frozen=True, slots=True)
class Sides:
    """A row of one run and a row of another."""

    a: FinishedRun
    row_a: str
    b: FinishedRun
    row_b: str

    def metrics(self, asked: Sequence[str]) -> list[str]:
        """Those asked for, or all that both have. Raises RunError for one that they have not."""
        shared = [name for name in self.a.rows[self.row_a]["metrics"] if name in self.b.rows[self.row_b]["metrics"]]
        for name in asked:
            if name not in shared:
                raise RunError(f"metric {name!r} is not in both runs; {did_you_mean(name, shared)}")
        if not shared:
            raise RunError(
                f"{self.a.folder} and {self.b.folder} have no metric in common; run one again with the other's --metric"
            )
        return list(asked) or shared

    def values(self, metric: str) -> tuple[Floats, Floats] | None:
        """One value per user on each side; None for a metric of the whole run."""
        if not self.a.has_users(self.row_a, metric):
            return None
        return self.a.values(self.row_a, metric), self.b.values(self.row_b, metric)

    def of_run(self, metric: str) -> tuple[Jackknifed, Jackknifed]:
        """The metric of the whole run on each side."""
        return self.a.of_run(self.row_a, metric), self.b.of_run(self.row_b, metric)


def beside(
    reference: tuple[FinishedRun, str], others: Sequence[tuple[FinishedRun, str]], metric: str, seed: int = 0
) -> list[Difference | None]:
    """One metric of other rows, each minus that of a reference row; None where one of the two has no value.

    Runs must be of the same test (`same_test`). p is adjusted for all of them.
    """
    sides = [Sides(*reference, run, row) for run, row in others]
    return [found[0] if found else None for found in _differences(sides, [metric], seed)]


# --- the same test?


def same_test(a: FinishedRun, b: FinishedRun) -> bool:
    """Whether two runs ranked the same candidates for the same users, with the same answers."""
    return not _problems(a, b)


def _problems(a: FinishedRun, b: FinishedRun) -> list[str]:
    same = a.record["queries"] == b.record["queries"]
    return [] if same else [*_other_users(a, b), *_other_lists(a, b)]


def _check_same_test(a: FinishedRun, b: FinishedRun) -> None:
    if problems := _problems(a, b):
        raise RunError(
            f"{a.folder} and {b.folder} cannot be compared: {'; '.join(problems)}. Run one of them again with "
            f"--candidates {a.folder / 'candidates.parquet'}"
        )


def _other_users(a: FinishedRun, b: FinishedRun) -> Iterator[str]:
    for one, other in ((a, b), (b, a)):
        if only := sorted(one.questions.keys() - other.questions.keys()):
            yield f"{_count(only, 'user')} of {len(one.questions)} only in {one.folder} ({_some(only)})"


def _other_lists(a: FinishedRun, b: FinishedRun) -> Iterator[str]:
    shared = sorted(a.questions.keys() & b.questions.keys())
    for at, what in enumerate(("candidates", "targets")):
        other = [user for user in shared if a.questions[user][at] != b.questions[user][at]]
        if other:
            user = other[0]
            n_only = len(a.questions[user][at] ^ b.questions[user][at])
            yield f"{_count(other, 'user')} with other {what} ({_some(other)}; {n_only} ids differ for {user!r})"


def _count(ids: Sequence[str], what: str) -> str:
    return f"{len(ids)} {what}{'s' if len(ids) > 1 else ''}"


def _some(ids: Sequence[str], n: int = 5) -> str:
    return ", ".join(ids[:n]) + (", …" if len(ids) > n else "")


# --- which rows


def _row_pairs(a: FinishedRun, b: FinishedRun, asked: Sequence[str]) -> list[tuple[str, str]]:
    if asked:
        return [_asked_rows(a, b, one) for one in asked]
    own, others = a.prompt_rows, b.prompt_rows
    pairs = [(name, name) for name in own if name in others]
    left, right = [name for name in own if name not in others], [name for name in others if name not in own]
    if len(left) == len(right):
        pairs += zip(left, right, strict=True)
    if not pairs:
        raise RunError(
            f"{a.folder} has the prompt rows {', '.join(own) or 'none'}, {b.folder} has {', '.join(others) or 'none'}; "
            "say which to compare: --row 'NAME IN A=NAME IN B'"
        )
    return pairs


def _asked_rows(a: FinishedRun, b: FinishedRun, asked: str) -> tuple[str, str]:
    left, _, right = asked.partition("=")
    names = left.strip(), (right or left).strip()
    for run, name in zip((a, b), names, strict=True):
        if name not in run.rows:
            raise RunError(f"{run.folder} has no row {name!r}; {did_you_mean(name, run.rows)}")
    return names


# --- differences


def _differences(sides: Sequence[Sides], asked: Sequence[str], seed: int) -> list[list[Difference]]:
    """The metrics of each pair that both rows have a value of. Users are drawn and flipped once for all of them."""
    names = [side.metrics(asked) for side in sides]
    keys = [(at, name) for at, own in enumerate(names) for name in own]
    values = {key: pair for key in keys if (pair := sides[key[0]].values(key[1]))}
    gaps = {key: right - left for key, (left, right) in values.items()}
    intervals, p_values = bootstrap_intervals(gaps, seed), permutation_p(gaps, seed)
    found = {key: _of_users(key[1], *values[key], intervals[key], p_values[key]) for key in gaps}
    found |= {key: _of_runs(key[1], *sides[key[0]].of_run(key[1])) for key in keys if key not in gaps}
    known = {key: found[key] for key in keys if not math.isnan(found[key].difference.value)}
    adjusted = holm({key: one.p_value for key, one in known.items()})
    judged = {key: _judged(one, adjusted[key]) for key, one in known.items()}
    return [[judged[at, name] for name in own if (at, name) in judged] for at, own in enumerate(names)]


def paired(metric: str, a: Floats, b: Floats, seed: int = 0) -> Difference:
    """One metric of two rows by itself, b - a: a value per user on each side, the same users in the same order."""
    gap = {metric: b - a}
    one = _of_users(metric, a, b, bootstrap_intervals(gap, seed)[metric], permutation_p(gap, seed)[metric])
    return _judged(one, one.p_value)


def _of_users(name: str, a: Floats, b: Floats, interval: Interval, p_value: float) -> Difference:
    both = ~np.isnan(b - a)
    left, right = (float(side[both].mean()) if both.any() else math.nan for side in (a, b))
    return Difference(name, left, right, interval, p_value, math.nan, detectable(b - a), "")


def _of_runs(name: str, a: Jackknifed, b: Jackknifed) -> Difference:
    gap = b - a
    return Difference(name, a.value, b.value, gap.interval(), gap.p_value, math.nan, smallest_shown(gap.error), "")


def _judged(one: Difference, p_holm: float) -> Difference:
    said = verdict(one.difference, one.smallest, p_holm, shown=points(one.metric, one.smallest))
    return replace(one, p_holm=p_holm, verdict=WORDS[better_of(one.metric)].get(said, said))


# --- what stands beside them


def _pair(sides: Sides, differences: Sequence[Difference]) -> Pair:
    per_user = {one.metric: values for one in differences if (values := sides.values(one.metric))}
    main = main_metric(list(per_user)) or ""
    gap = per_user[main][1] - per_user[main][0] if main else np.zeros(len(sides.a.users))
    return Pair(
        str(sides.a.folder),
        sides.row_a,
        str(sides.b.folder),
        sides.row_b,
        tuple(differences),
        main,
        int((gap > 0).sum()),
        int((gap < 0).sum()),
        tuple(_change(sides, at, gap) for at in _movers(gap, 1)),
        tuple(_change(sides, at, gap) for at in _movers(gap, -1)),
        _template_diff(sides),
        tuple(_changed(sides)),
        sides.a.rows[sides.row_a]["ms_per_user"],
        sides.b.rows[sides.row_b]["ms_per_user"],
    )


def _movers(gap: Floats, sign: int) -> list[int]:
    """Positions of the users with the largest changes in this direction, largest first."""
    order = np.argsort(-sign * np.nan_to_num(gap), kind="stable")[:N_SHOWN]
    return [int(at) for at in order if sign * gap[at] > 0]


def _change(sides: Sides, at: int, gap: Floats) -> Change:
    user_id = sides.a.users[at]
    targets = sides.a.questions[user_id][1]
    ranks = (run.best_rank(row, user_id, targets) for run, row in ((sides.a, sides.row_a), (sides.b, sides.row_b)))
    return Change(user_id, float(gap[at]), *ranks)


def _template_diff(sides: Sides) -> str:
    (left, before), (right, now) = _template(sides.a, sides.row_a), _template(sides.b, sides.row_b)
    return "\n".join(unified_diff(before, now, left, right, lineterm=""))


def _template(run: FinishedRun, row: str) -> tuple[str, list[str]]:
    """Where the row's template was used, and its lines; none of a baseline."""
    found = run.rows[row]
    prompts = dict.fromkeys(one["prompt"] for one in found.get("members") or [found] if one["prompt"])
    text = "\n".join(run.record["templates"][prompt]["text"] for prompt in prompts)
    return f"{run.folder}: {found['prompt'] or row}", text.splitlines()


def _changed(sides: Sides) -> Iterator[tuple[str, Any, Any]]:
    """What else decides a result and is not the same: how the rows read, then data, model, numerics, versions."""
    own, other = sides.a.rows[sides.row_a], sides.b.rows[sides.row_b]
    yield from ((key, own.get(key), other.get(key)) for key in ROW_KEYS if own.get(key) != other.get(key))
    members = own.get("members", []), other.get("members", [])  # a run of an older version has none
    if members[0] != members[1]:
        yield "members", *members
    before, now = (dict(runs.leaves(run.header)) for run in (sides.a, sides.b))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not any(fnmatchcase(key, pattern) for pattern in COMPARED):
            yield key, before.get(key), now.get(key)


def lines(difference: Difference) -> tuple[str, ...]:
    """A line of the printed table: metric, a, b, difference, interval, p, p after Holm, verdict."""
    name = difference.metric
    values = (
        figure(name, difference.a),
        figure(name, difference.b),
        points(name, difference.difference.value, signed=True),
    )
    return (
        name,
        *values,
        interval(difference),
        *(f"{p:.2g}" for p in (difference.p_value, difference.p_holm)),
        difference.verdict,
    )


def interval(difference: Difference) -> str:
    """The ends of a difference's interval, as people read them."""
    ends = difference.difference.low, difference.difference.high
    return " to ".join(points(difference.metric, end, signed=True) for end in ends)
