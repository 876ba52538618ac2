"""The table and the picture of a study, made of its cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewrec_prompt import charts
from fewrec_prompt.cells import NOT_LEARNED, ZERO, Cell, statistic
from fewrec_prompt.display import figure, points
from fewrec_prompt.errors import RunError
from fewrec_prompt.significance import Bootstrapped, number


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: a metric of a method with so many people, over its seeds. Fractions.

    The difference is to the row that is compared with.
    """

    method: str
    shots: int
    n_seeds: int
    metric: str
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    n_people: int  # who are tested and have a value
    n_excluded: int
    n_weights: int
    train_seconds: float
    ms_per_user: float
    not_learned: tuple[int, ...] = ()  # the seeds of adapters whose training loss never beat that before training

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null where nobody has a value."""
        return {name: number(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


def table(cells: Sequence[Cell], metrics: Sequence[str], seed: int, against: str = ZERO) -> list[Line]:
    """A line for each method, number of people and metric: the mean over seeds, with intervals over test people.

    Intervals say what other people would have given, each with all own questions, not what other seeds would have;
    differences to the row `against` are paired by person.
    """
    (base,) = (cell for cell in cells if cell.method == against)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if cell.user_ids != base.user_ids:
            raise RunError(f"cell {cell.name}: is over other users than the rest; remove it to run it again")
        groups.setdefault((cell.method, cell.shots), []).append(cell)
    bases = {metric: _over_people(base, metric, seed) for metric in metrics}
    return [_line(group, metric, bases[metric], seed) for group in groups.values() for metric in metrics]


def _over_people(cell: Cell, metric: str, seed: int) -> Bootstrapped:
    told = statistic(cell, metric)
    return Bootstrapped.of(told.of, told.n_people, seed, told.n_excluded)


def _line(cells: Sequence[Cell], metric: str, base: Bootstrapped, seed: int) -> Line:
    number = Bootstrapped.mean([_over_people(cell, metric, seed) for cell in cells])
    own, gap = number.interval(), (number - base).interval()
    return Line(
        cells[0].method,
        cells[0].shots,
        len(cells),
        metric,
        own.value,
        own.low,
        own.high,
        gap.value,
        gap.low,
        gap.high,
        own.n_users,
        own.n_excluded,
        cells[0].n_weights,
        float(np.mean([cell.train_seconds for cell in cells])),
        float(np.mean([cell.ms_per_user for cell in cells])),
        tuple(sorted(cell.seed for cell in cells if cell.note == NOT_LEARNED)),
    )


def picture(lines: Sequence[Line], task: str, against: str = ZERO) -> str:
    """A page with the curves of each metric as pictures: no script, no network."""
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in shown(line, against))}</tr>" for line in lines)
    drawn = "".join(_curves([line for line in lines if line.metric == metric], metric) for metric in _metrics(lines))
    return _PAGE.format(
        title=f"fewrec-prompt: {task}, zero against few shots",
        style=charts.STYLE,
        drawn=drawn and drawn + _KEY,
        table=f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads(against))}</tr>{rows}</table>",
        remarks="".join(f"<p>{remark}</p>" for remark in remarks(lines)),
    )


def _curves(lines: Sequence[Line], metric: str) -> str:
    """What learns nothing is level over all numbers of people. Alone it needs no picture, as what has no values."""
    lines = [line for line in lines if line.n_people]
    every = tuple(sorted({_place(line.shots) for line in lines if line.shots}))
    if not every:
        return ""
    series = [_series(method, lines) for method in dict.fromkeys(line.method for line in lines)]
    x = charts.Axis("people learnt from, on a logarithmic scale", lambda at: f"{2**at:.0f}", at=every, before="none")
    y = charts.Axis(metric, lambda value: figure(metric, value))
    about = "means and 95 % intervals over test users"
    return charts.lines(f"{metric} by people learnt from", about, series, x, y, height=240.0)


def _series(method: str, lines: Sequence[Line]) -> charts.Series | charts.Level:
    own = sorted((line for line in lines if line.method == method), key=lambda line: line.shots)
    if not own[0].shots:
        return charts.Level(method, own[0].value, own[0].low, own[0].high)
    points = (charts.Point(_place(line.shots), line.value, line.low, line.high) for line in own)
    return charts.Series(method, tuple(points))


def _place(shots: int) -> float:
    return float(np.log2(shots))


def heads(against: str = ZERO) -> tuple[str, ...]:
    """What stands above the columns of `shown`."""
    compared = (f"− {against}", "95 % paired")
    return ("method", "people", "seeds", "metric", "value", "95 %", *compared, "weights", "training s", "ms/user")


def remarks(lines: Sequence[Line]) -> list[str]:
    """What stands below the table: how many people a metric leaves out, and which adapters did not learn."""
    groups = {(line.method, line.shots): line for line in lines if line.not_learned}  # of every metric the same
    return [*left_out(lines), *map(_not_learned, groups.values())]


def _not_learned(line: Line) -> str:
    group = f"{line.method}, {line.shots} {'person' if line.shots == 1 else 'people'}: {NOT_LEARNED}"
    if line.n_seeds == 1:
        return group
    return f"{group} with {len(line.not_learned)} of {line.n_seeds} seeds ({', '.join(map(str, line.not_learned))})"


def left_out(lines: Sequence[Line]) -> list[str]:
    """For each metric that some people have no value of, how many; the most over all methods."""
    found = {metric: max(line.n_excluded for line in lines if line.metric == metric) for metric in _metrics(lines)}
    n_all = lines[0].n_people + lines[0].n_excluded
    return [f"{metric}: {n} of {n_all} people have no value and are left out" for metric, n in found.items() if n]


def _metrics(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.metric for line in lines))


def shown(line: Line, against: str = ZERO) -> tuple[str, ...]:
    """A line of the table as text; see `heads`."""
    metric, gap, learns = line.metric, line.method != against, line.shots > 0
    return (
        line.method,
        str(line.shots) if learns else "–",
        str(line.n_seeds),
        metric,
        figure(metric, line.value),
        f"{figure(metric, line.low)} to {figure(metric, line.high)}",
        points(metric, line.difference, signed=True) if gap else "–",
        f"{points(metric, line.difference_low, signed=True)} to {points(metric, line.difference_high, signed=True)}"
        if gap
        else "–",
        f"{line.n_weights:,}" if learns else "–",
        f"{line.train_seconds:.1f}" if learns else "–",
        f"{line.ms_per_user:.0f}",
    )


_KEY = """<p>Upright lines are 95 % intervals over test users. What stands side by side learnt from as many people; what
learns from none stands on the left, and a dotted line goes on from it.</p>"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: light-dark(#1b1b1f, #e6e6ea); --soft: light-dark(#5d5d66, #a4a4ad);
  --line: light-dark(#e3e3e8, #36363c); --paper: light-dark(#ffffff, #18181b);
  --s0: #8a8a93; --s1: #2f6fd0; --s2: #d0602f; --s3: #2f9e63; --s4: #9a4fc4; --s5: #b8912a; }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
{style}</style></head><body><h1>{title}</h1>{drawn}<div class="wide">{table}</div>{remarks}</body></html>
"""
