"""Pictures: where a number stands, what is written, and that nothing runs out of the frame."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewrec_prompt import charts
from fewrec_prompt.charts import WIDTH, Axis, Line, Mark, Point, Series

SHARE = Axis("share", lambda value: f"{100 * value:g}", 0.0)
finite = st.floats(-1e6, 1e6, allow_nan=False)


def drawn(picture: str) -> ET.Element:
    return ET.fromstring(picture)


def one_line(value: float, low: float, high: float, name: str = "a") -> str:
    return charts.dots("title", "about", [Line(name, (Mark(value, low, high, f"{value:g}"),))], SHARE)


@given(finite, finite)
def test_ticks_are_round_few_and_enclose(a: float, b: float) -> None:
    low, high = sorted((a, b))
    found = charts.ticks(low, high)
    hair = 2e-9 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + hair
    assert found[-1] >= high - hair
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5, 10)


def test_a_value_stands_where_its_axis_says() -> None:
    root = drawn(one_line(0.5, 0.25, 0.75))
    at = {text.text: float(text.get("x", "nan")) for text in root.iter("text") if text.get("text-anchor") == "middle"}
    circle = next(root.iter("circle"))
    stem = next(line for line in root.iter("line") if "stem" in line.get("class", ""))
    low, high = (at["0"], at["80"]) if "80" in at else (at["0"], at["100"])
    top = 0.8 if "80" in at else 1.0
    assert float(circle.get("cx", "nan")) == pytest.approx(low + (high - low) * 0.5 / top, abs=2)
    assert float(stem.get("x1", "nan")) < float(circle.get("cx", "nan")) < float(stem.get("x2", "nan"))


def test_a_value_without_width_has_no_stem() -> None:
    assert "stem" not in one_line(0.5, 0.5, 0.5)


def test_title_and_description_come_first_and_everything_is_escaped() -> None:
    evil = '</title></svg><script>"&'
    picture = charts.dots(evil, evil, [Line(evil, (Mark(0.5, 0.1, 0.9, evil),))], SHARE, (evil, evil))
    root = drawn(picture)  # still well-formed
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert root[0].text == evil
    assert root.get("role") == "img"
    assert "<script" not in picture


def test_what_does_not_fit_is_cut_and_ends_in_an_ellipsis() -> None:
    long = "a row with quite a long name, made of many words that nobody could read on a telephone"
    name = next(text.text for text in drawn(one_line(0.5, 0.1, 0.9, long)).iter("text") if text.get("class") == "name")
    assert name is not None
    assert name.endswith("…")
    assert long.startswith(name[:-1].rstrip())


@given(st.lists(st.tuples(finite, finite, finite).map(sorted), min_size=1, max_size=6))
def test_no_mark_leaves_the_frame(values: list[list[float]]) -> None:
    lines = [Line("name", (Mark(middle, low, high, f"{middle:.3g}"),)) for low, middle, high in values]
    axis = Axis("x", lambda value: f"{value:.3g}")
    shape = [Point(float(at), middle, low, high) for at, (low, middle, high) in enumerate(values)]
    curve = charts.lines("t", "a", [Series("s", tuple(shape))], axis, axis)
    for picture in (charts.dots("t", "a", lines, axis), curve):
        root = drawn(picture)
        height = float(root.get("viewBox", "").split()[3])
        for element in root.iter():
            for name, value in element.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert -1e-6 <= float(value) <= WIDTH + 1e-6
                if name in ("y", "y1", "y2", "cy"):
                    assert -1e-6 <= float(value) <= height + 1e-6


def test_series_differ_in_shape_and_not_in_colour_alone() -> None:
    marks = tuple(Mark(0.5, 0.5, 0.5, "50", series) for series in range(charts.N_SERIES))
    root = drawn(charts.dots("t", "a", [Line("x", marks)], SHARE))
    shapes = [re.sub(r"[\d.]+", "", "circle") for _ in root.iter("circle")]
    corners = []
    for polygon in root.iter("polygon"):
        points = [tuple(map(float, pair.split(","))) for pair in polygon.get("points", "").split()]
        middle = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        corners.append(tuple(tuple(round(a - b, 1) for a, b in zip(point, middle, strict=True)) for point in points))
    assert len(shapes) == 1
    assert len(set(corners)) == charts.N_SERIES - 1


def test_a_curve_leaves_out_what_is_no_number() -> None:
    points = (Point(0, 0.1, 0.1, 0.1), Point(1, math.nan, math.nan, math.nan), Point(2, 0.3, 0.2, 0.4))
    root = drawn(charts.lines("t", "a", [Series("s", points)], Axis("x", str), SHARE))
    assert len(list(root.iter("circle"))) == 2
    assert "nan" not in ET.tostring(root, encoding="unicode")


def test_nothing_to_draw_is_still_a_picture() -> None:
    assert drawn(charts.dots("t", "a", [], SHARE)).tag == "svg"
