"""Pictures as inline SVG: dots with intervals, and lines. They know numbers and words, nothing of runs.

A picture is 340 units wide and is shown at about that many pixels, on a telephone as on a desk, so its words stay as
large as those around it. Colours, fonts and dark mode come from the page's style sheet (`STYLE`); no two series
share a mark, and the first six not even its shape. Widths of words are estimates on the safe side: what could not fit
is cut, with an ellipsis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from unicodedata import east_asian_width

WIDTH = 340.0
FONT = 12.0
N_SERIES = 6
_WIDE, _NARROW = set("mwMW%@—–−…"), set("iljtfrI.,:;|!()[]' ")
_LINE, _MARK = 18.0, 17.0  # heights: of a line of words, of a mark
_APART, _CROWD = 6.0, 0.4  # between series at the same x; the share of the way to the next x that they take at most

STYLE = """
svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: hidden; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .ideal { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 4; fill: none; }
svg .level { stroke-width: 1.5; stroke-dasharray: 2 4; }
svg .stem { stroke-width: 2; fill: none; }
svg polyline.path { stroke-width: 1.5; fill: none; }
.s0 { stroke: var(--s0); fill: var(--s0); } .s1 { stroke: var(--s1); fill: var(--s1); }
.s2 { stroke: var(--s2); fill: var(--s2); } .s3 { stroke: var(--s3); fill: var(--s3); }
.s4 { stroke: var(--s4); fill: var(--s4); } .s5 { stroke: var(--s5); fill: var(--s5); }
svg .hollow { fill: var(--paper); stroke-width: 1.5; }
"""
"""The rules of the pictures. The page defines --ink, --soft, --line, --paper and --s0 … --s5, for light and dark."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with the ends of its interval, and how they are written."""

    value: float
    low: float
    high: float
    text: str
    series: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A named line of a dot chart; one mark for each series that has a value."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line chart; without an interval, low and high are the value."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of a line chart, points by rising x."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """What is the same at every x: a dotted line from side to side, with its interval once, before all x."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says, how its numbers are written, and what it must show at least."""

    name: str
    write: Callable[[float], str]
    low: float | None = None
    high: float | None = None
    at: tuple[float, ...] = ()  # where its numbers stand, and it ends with them; else at round ones
    before: str = ""  # what is written below the intervals of levels


def dots(title: str, about: str, lines: Sequence[Line], axis: Axis, names: Sequence[str] = ()) -> str:
    """A line a name: a mark and its interval for each series, and the values in words. 0 is marked where it is shown.

    `names` are those of the series, for a legend; none is drawn for one series.
    """
    scale = _scale([end for line in lines for mark in line.marks for end in (mark.low, mark.high)], axis)
    words = max((_wide(mark.text) for line in lines for mark in line.marks), default=0.0)
    place = _placed(scale, 8.0, max(WIDTH / 3, WIDTH - words - 8))
    legend, top = _legend(names)
    body, y = [*legend], top
    for line in lines:
        body.append(_text(0, y + 13, _cut(line.name, WIDTH), "name"))
        y += _LINE
        for mark in line.marks:
            body += _interval(mark, place, y + _MARK / 2 - 1)
            y += _MARK
        y += 5
    return _svg(title, about, y + 22, [*_grid(scale, axis, place, top, y), *body])


def lines(
    title: str,
    about: str,
    series: Sequence[Series | Level],
    x: Axis,
    y: Axis,
    ideal: Sequence[tuple[float, float]] = (),
    *,
    joined: bool = True,
    height: float = 190.0,
) -> str:
    """Points with their intervals, joined by lines or not; `ideal` is a dashed line of what would be expected.

    At the same x, series stand a little apart, in their order, so that no interval hides another.
    """
    of_y = _scale([*(end for one in series for end in _ends(one)), *(value for _, value in ideal)], y)
    legend, top = _legend([one.name for one in series])
    top += _LINE  # the name of the upright axis
    left, bottom = 8 + max(_wide(y.write(tick)) for tick in of_y), top + height
    across, up = _across(series, x, ideal, left), _placed(of_y, bottom, top + 8)
    body = [*legend, _text(0, top - 5, _cut(y.name, WIDTH), "soft")]
    body += _rules([at for at, _ in across.numbers], top + 8, bottom) if x.at else ()
    body += _upright(of_y, y, up, left)
    body += _numbers(across.numbers, bottom + 21)
    body.append(_text(WIDTH, bottom + 40, _cut(x.name, WIDTH), "soft", "end"))
    if ideal:
        body.append(f'<polyline class="ideal" points="{_path((across.of(at), up(value)) for at, value in ideal)}"/>')
    drawn: list[str] = []
    for number, (one, aside) in enumerate(zip(series, across.asides, strict=True)):
        if isinstance(one, Level):
            drawn += _level(one, number, (left, across.before + aside), up)
        else:
            drawn += _curve(one, number, across.moved(aside), up, joined)
    return _svg(title, about, bottom + 48, [*body, *sorted(drawn, key=_is_shape)])


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About n round numbers (1, 2 or 5 times a power of ten apart) whose first and last enclose low and high."""
    least = 1e-9 * max(1.0, abs(low), abs(high))  # a narrower span is rounding, not a difference
    span = high - low if high - low > least else abs(high) if abs(high) > least else 1.0
    rough = span / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 12) for at in range(first, max(last, first + 1) + 1)]


def _scale(values: Sequence[float], axis: Axis) -> list[float]:
    if axis.at:
        return sorted(axis.at)
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    return ticks(low if axis.low is None else min(low, axis.low), high if axis.high is None else max(high, axis.high))


def _placed(scale: Sequence[float], begin: float, end: float) -> Callable[[float], float]:
    """Where a value stands; one that is alone on its scale, in the middle."""
    low, high = scale[0], scale[-1]
    if low == high:
        return lambda _: (begin + end) / 2
    return lambda value: begin + (end - begin) * (value - low) / (high - low)


@dataclass(frozen=True, slots=True)
class _Across:
    """Where the things of a line chart stand from left to right."""

    of: Callable[[float], float]
    before: float  # the middle of the levels' intervals
    asides: tuple[float, ...]  # how far from there each series stands
    numbers: tuple[tuple[float, str], ...]  # what is written below, and where

    def moved(self, aside: float) -> Callable[[float], float]:
        return lambda at: self.of(at) + aside


def _across(series: Sequence[Series | Level], x: Axis, ideal: Sequence[tuple[float, float]], left: float) -> _Across:
    """The levels' intervals first, if there are any, and then the scale, with room for a crowd at both ends."""
    points = [point for one in series if isinstance(one, Series) for point in one.points]
    xs = sorted({point.x for point in points} | {at for at, _ in ideal})
    scale, begin, end = _scale(xs, x), left + 6, WIDTH - 12
    n_levels = sum(isinstance(one, Level) for one in series)
    n_others = len(series) - n_levels
    before = begin + max(_APART * (n_levels - 1) + 8, _wide(x.before)) / 2
    begin = 2 * before - begin + 20 if n_levels else begin
    nearest = min(((after - at) / (scale[-1] - scale[0]) for at, after in pairwise(xs)), default=1.0)
    crowd = min(_APART * max(n_others - 1, 0), _CROWD * nearest * (end - begin))
    of = _placed(scale, begin + crowd / 2, end - crowd / 2)
    levels, others = _spread(n_levels, _APART * (n_levels - 1)), _spread(n_others, crowd)
    asides = tuple(next(levels if isinstance(one, Level) else others) for one in series)
    numbers = [(before, x.before)] if n_levels else []
    return _Across(of, before, asides, (*numbers, *((of(tick), x.write(tick)) for tick in scale)))


def _spread(n: int, width: float) -> Iterator[float]:
    """n places, each as far from the next, over a width around 0."""
    return iter([width * (at / (n - 1) - 0.5) if n > 1 else 0.0 for at in range(n)])


def _grid(scale: Sequence[float], axis: Axis, place: Callable[[float], float], top: float, bottom: float) -> list[str]:
    """Upright lines and the numbers below them."""
    numbers = [(place(tick), axis.write(tick)) for tick in scale]
    zero = [place(tick) for tick in scale if tick == 0]
    others = [place(tick) for tick in scale if tick != 0]
    rules = [*_rules(others, top, bottom), *_rules(zero, top, bottom, "axis")]
    return [*rules, *_numbers(numbers, bottom + 15)]


def _rules(places: Sequence[float], top: float, bottom: float, kind: str = "grid") -> Iterator[str]:
    for at in places:
        yield f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _numbers(numbers: Sequence[tuple[float, str]], y: float) -> Iterator[str]:
    """Numbers in a row; one that would touch the one before it is left out."""
    free = -1.0
    for at, text in numbers:
        half = _wide(text) / 2
        middle = min(max(at, half), WIDTH - half)
        if middle - half > free:
            free = middle + half + 4
            yield _text(middle, y, text, "soft", "middle")


def _upright(scale: Sequence[float], axis: Axis, up: Callable[[float], float], left: float) -> Iterator[str]:
    for tick in scale:
        kind = "axis" if tick == scale[0] else "grid"
        yield f'<line class="{kind}" x1="{left:.1f}" x2="{WIDTH:.1f}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        yield _text(left - 5, up(tick) + 4, axis.write(tick), "soft", "end")


def _interval(mark: Mark, place: Callable[[float], float], y: float) -> Iterator[str]:
    if mark.high > mark.low:
        low, high, kind = place(mark.low), place(mark.high), f"stem {_colour(mark.series)}"
        yield f'<line class="{kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield _shape(place(mark.value), y, mark.series)
    yield _text(WIDTH, y + 4, mark.text, "value", "end")


def _ends(one: Series | Level) -> list[float]:
    known = one.points if isinstance(one, Series) else [one]
    return [end for point in known for end in (point.low, point.high)]


def _curve(
    series: Series, number: int, across: Callable[[float], float], up: Callable[[float], float], joined: bool
) -> Iterator[str]:
    known = [point for point in series.points if math.isfinite(point.value)]
    if joined:
        path = _path((across(at.x), up(at.value)) for at in known)
        yield f'<polyline class="path {_colour(number)}" points="{path}"/>'
    for point in known:
        yield from _standing(point, across(point.x), number, up)


def _level(level: Level, number: int, at: tuple[float, float], up: Callable[[float], float]) -> Iterator[str]:
    """`at` is where its line begins and where its interval stands."""
    if math.isfinite(level.value):
        (left, x), y, kind = at, up(level.value), f"level {_colour(number)}"
        yield f'<line class="{kind}" x1="{left:.1f}" x2="{WIDTH:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield from _standing(level, x, number, up)


def _standing(point: Point | Level, x: float, number: int, up: Callable[[float], float]) -> Iterator[str]:
    """A mark and its upright interval."""
    if point.high > point.low:
        low, high, kind = up(point.low), up(point.high), f"stem {_colour(number)}"
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    yield _shape(x, up(point.value), number)


def _legend(names: Sequence[str]) -> tuple[list[str], float]:
    """The names of several series, each with its shape; and where they end. Many short ones stand in two columns."""
    if len(names) < 2:
        return [], 2.0
    half = WIDTH / 2
    short = len(names) > N_SERIES and max(map(_wide, names)) <= half - 16
    n_lines = math.ceil(len(names) / 2) if short else len(names)
    entries: list[str] = []
    for number, name in enumerate(names):
        x, y = half * (number // n_lines), 9 + number % n_lines * _LINE
        entries += [_shape(x + 6, y, number), _text(x + 16, y + 4, _cut(name, WIDTH - 16), "name")]
    return entries, n_lines * _LINE + 6


def _colour(series: int) -> str:
    """The class of a colour. With each round of shapes colours move on by one."""
    return f"s{(series + series // N_SERIES) % N_SERIES}"


def _shape(x: float, y: float, series: int) -> str:
    """The mark of a series: circle, square, triangle, diamond, upside-down triangle, bar; every other round hollow."""
    kind = _colour(series) + " hollow" * (series // N_SERIES % 2)
    if series % N_SERIES == 0:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = (
        (),
        ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        ((0, -5), (5, 4), (-5, 4)),
        ((0, -5), (5, 0), (0, 5), (-5, 0)),
        ((0, 5), (5, -4), (-5, -4)),
        ((-2, -6), (2, -6), (2, 6), (-2, 6)),
    )[series % N_SERIES]
    return f'<polygon class="{kind}" points="{_path((x + dx, y + dy) for dx, dy in corners)}"/>'


def _is_shape(element: str) -> bool:
    """Shapes are drawn last: no line of another series shall cross them."""
    return element.startswith(("<circle", "<polygon"))


def _path(points: Iterator[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, about: str, height: float, body: Sequence[str]) -> str:
    head = f'<svg role="img" viewBox="0 0 {WIDTH:g} {height:g}">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<desc>{escape(about)}</desc>", *body, "</svg>"])


def _cut(text: str, width: float) -> str:
    """The text, or as much of its beginning as surely fits, and an ellipsis."""
    if _wide(text) <= width:
        return text
    kept, used = "", _wide("…")
    for letter in text:
        used += _wide(letter)
        if used > width:
            break
        kept += letter
    return kept.rstrip() + "…"


def _wide(text: str) -> float:
    """Units that the text takes at most, about: system fonts differ by a tenth, and this errs on the wide side."""
    return sum(FONT * _share(letter) for letter in text)


def _share(letter: str) -> float:
    """The width of a letter as a share of the font's size."""
    if letter in _WIDE:
        return 1.0
    if letter in _NARROW:
        return 0.42
    if east_asian_width(letter) in "WF":
        return 1.4 if letter > "\U0001f000" else 1.05  # emoji are wider than they are high
    return 0.78 if letter.isupper() else 0.65
