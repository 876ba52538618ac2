"""Pictures: where a number stands, what is written, and that nothing runs out of the frame."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewrec_prompt import charts
from fewrec_prompt.charts import WIDTH, Axis, Level, Line, Mark, Point, Series

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
    many = [Series("s", tuple(shape)), *(Level("l", middle, low, high) for low, middle, high in values)] * 2
    crowd = charts.lines("t", "a", many, Axis("x", str, at=(0.0, len(values) - 0.9), before="none of them"), axis)
    for picture in (charts.dots("t", "a", lines, axis), curve, crowd):
        root = drawn(picture)
        height = float(root.get("viewBox", "").split()[3])
        for element in root.iter():
            for name, value in element.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert -1e-6 <= float(value) <= WIDTH + 1e-6
                if name in ("y", "y1", "y2", "cy"):
                    assert -1e-6 <= float(value) <= height + 1e-6


def marks_of(root: ET.Element) -> list[tuple[str, str]]:
    """Class and shape of each mark, wherever it stands."""
    found = []
    for mark in root.iter():
        shape = ""
        if mark.tag.endswith("polygon"):
            points = [tuple(map(float, pair.split(","))) for pair in mark.get("points", "").split()]
            middle = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
            shape = str([[round(a - b) for a, b in zip(point, middle, strict=True)] for point in points])
        if mark.tag.endswith(("circle", "polygon")):
            found.append((mark.get("class", ""), shape))
    return found


def test_the_first_series_differ_in_shape_and_not_in_colour_alone() -> None:
    marks = tuple(Mark(0.5, 0.5, 0.5, "50", series) for series in range(charts.N_SERIES))
    found = marks_of(drawn(charts.dots("t", "a", [Line("x", marks)], SHARE)))
    assert [kind for kind, _ in found] == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert len({shape for _, shape in found}) == charts.N_SERIES


def test_no_two_of_many_series_share_a_mark() -> None:
    series = [Series(str(number), (Point(0, 0.5, 0.4, 0.6),)) for number in range(36)]
    root = drawn(charts.lines("t", "a", series, Axis("x", str), SHARE))
    found = marks_of(root)
    assert [text.text for text in root.iter("text") if text.get("class") == "name"] == [one.name for one in series]
    assert found[:36] == found[36:], "the legend shows the marks that are drawn"
    assert len(set(found[:36])) == 36
    assert ["hollow" in kind for kind, _ in found[:18]] == [False] * 6 + [True] * 6 + [False] * 6
    assert all(f"svg .{name} {{" in charts.STYLE or f".{name} {{" in charts.STYLE for name in ("s5", "hollow"))


def written(root: ET.Element) -> dict[str, float]:
    """What is written below a picture, and where."""
    texts = [text for text in root.iter() if text.tag.endswith("text") and text.get("text-anchor") == "middle"]
    return {text.text or "": float(text.get("x", "nan")) for text in texts}


def stems(root: ET.Element, kind: str) -> list[float]:
    """Where the upright intervals of a colour stand."""
    lines = [line for line in root.iter() if line.get("class") == f"stem {kind}"]
    return [float(line.get("x1", "nan")) for line in lines]


def at_places(*series: Series | Level, at: tuple[float, ...]) -> ET.Element:
    x = Axis("x", lambda place: f"{place:g}", at=at, before="none")
    return drawn(charts.lines("t", "a", series, x, SHARE))


def flat(name: str, *xs: float) -> Series:
    return Series(name, tuple(Point(x, 0.5, 0.4, 0.6) for x in xs))


def test_an_axis_of_places_writes_them_and_nothing_else() -> None:
    root = at_places(flat("s", 0.3, 1.0, 2.5), at=(0.3, 1.0, 2.5))
    assert list(written(root)) == ["0.3", "1", "2.5"]
    assert stems(root, "s0") == pytest.approx(list(written(root).values()), abs=0.1)
    assert "2.51" not in written(at_places(flat("s", 0.3, 2.5, 2.51), at=(0.3, 2.5, 2.51))), "it would touch 2.5"


def test_a_place_that_is_alone_is_in_the_middle() -> None:
    root = at_places(flat("s", 6.0), at=(6.0,))
    upright = next(line for line in root.iter() if line.get("class") == "axis")
    middle = (float(upright.get("x1", "nan")) + float(upright.get("x2", "nan"))) / 2
    assert written(root)["6"] == pytest.approx(middle, abs=5)
    assert stems(root, "s0") == pytest.approx([written(root)["6"]], abs=0.1)


def test_series_stand_apart_in_their_order_around_their_place() -> None:
    root = at_places(*(flat(name, 0.0, 1.0, 2.0) for name in "abc"), at=(0.0, 1.0, 2.0))
    a, b, c = (stems(root, kind) for kind in ("s0", "s1", "s2"))
    assert b == pytest.approx(list(written(root).values()), abs=0.1)
    for before, middle, after in zip(a, b, c, strict=True):
        assert 3 < middle - before < 10
        assert after - middle == pytest.approx(middle - before, abs=0.11)


def test_many_series_stay_nearer_to_their_place_than_to_the_next() -> None:
    at = tuple(math.log2(n) for n in range(1, 9))
    root = at_places(*(flat(str(number), *at) for number in range(12)), at=at)
    places = sorted(x for kind in ("s0", "s1", "s2", "s3", "s4", "s5") for x in stems(root, kind))
    groups = [places[begin : begin + 12] for begin in range(0, len(places), 12)]
    assert len(groups) == 8
    for here, there in pairwise(groups):
        assert here[-1] - here[0] < there[0] - here[-1]


def test_a_level_goes_from_side_to_side_and_shows_its_interval_once_before_all_places() -> None:
    levels = (Level("l", 0.5, 0.4, 0.6), Level("m", 0.3, 0.2, 0.4))
    root = at_places(levels[0], flat("s", 1.0, 2.0), levels[1], at=(1.0, 2.0))
    own, others = stems(root, "s0") + stems(root, "s2"), stems(root, "s1")
    assert len(own) == 2
    assert own[0] < written(root)["none"] < own[1] < min(others)
    drawn_levels = [line for line in root.iter() if line.get("class", "").startswith("level")]
    assert [line.get("class") for line in drawn_levels] == ["level s0", "level s2"]
    for line in drawn_levels:
        assert float(line.get("x1", "nan")) < own[0]
        assert float(line.get("x2", "nan")) > max(others)
        assert line.get("y1") == line.get("y2")
    assert "none" not in written(at_places(flat("s", 1.0, 2.0), at=(1.0, 2.0)))


def test_a_level_that_is_no_number_is_left_out() -> None:
    root = at_places(Level("l", math.nan, math.nan, math.nan), flat("s", 1.0), at=(1.0,))
    assert "nan" not in ET.tostring(root, encoding="unicode")
    assert not [line for line in root.iter() if line.get("class", "").startswith("level")]


def test_no_line_crosses_a_mark() -> None:
    root = at_places(*(flat(name, 0.0, 1.0) for name in "abc"), Level("l", 0.5, 0.4, 0.6), at=(0.0, 1.0))
    order = [element.tag.rpartition("}")[2] for element in root]
    last_line = max(at for at, tag in enumerate(order) if tag in ("line", "polyline"))
    assert set(order[last_line + 1 :]) == {"circle", "polygon"}
    assert len(order[last_line + 1 :]) == 7


def test_many_short_names_stand_in_two_columns() -> None:
    def places(names: list[str]) -> list[tuple[str, str]]:
        root = drawn(charts.lines("t", "a", [flat(name, 0.0) for name in names], Axis("x", str), SHARE))
        texts = [text for text in root.iter() if text.get("class") == "name"]
        return [(text.get("x", ""), text.get("y", "")) for text in texts]

    few, many = places(list("abcdef")), places(list("abcdefg"))
    assert len({x for x, _ in few}) == 1
    assert many[4] == ("186.0", many[0][1])
    assert len(set(many)) == 7
    assert len({x for x, _ in places([*"abcdef", "a name that is longer than half"])}) == 1


def test_a_curve_leaves_out_what_is_no_number() -> None:
    points = (Point(0, 0.1, 0.1, 0.1), Point(1, math.nan, math.nan, math.nan), Point(2, 0.3, 0.2, 0.4))
    root = drawn(charts.lines("t", "a", [Series("s", points)], Axis("x", str), SHARE))
    assert len(list(root.iter("circle"))) == 2
    assert "nan" not in ET.tostring(root, encoding="unicode")


def test_nothing_to_draw_is_still_a_picture() -> None:
    assert drawn(charts.dots("t", "a", [], SHARE)).tag == "svg"
