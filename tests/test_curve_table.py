"""Table and picture of a study: where things stand in the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fewrec_prompt.cells import ZERO, Cell
from fewrec_prompt.curve_table import Line, picture, table

BOTH = ("nDCG@10", "MRR")


def cell(method: str, shots: int = 0, seed: int = 0, note: str = "") -> Cell:
    values = (0.1, 0.6, 0.4, 0.9)
    n_weights = 8 if shots else 0
    return Cell(method, shots, seed, tuple("abcd"), dict.fromkeys(BOTH, values), n_weights, 0.0, 1.0, note)


def study(methods: list[str], shots: list[int]) -> list[Line]:
    cells = [cell(ZERO), cell("random"), *(cell(method, n) for n in shots for method in methods)]
    return table(cells, BOTH[:1], 0)


def svg(lines: list[Line]) -> ET.Element:
    page = picture(lines, "tiny")
    return ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def below(root: ET.Element) -> list[str]:
    texts = [text for text in root.iter("text") if text.get("text-anchor") == "middle"]
    return [text.text or "" for text in texts]


# --- the picture


@pytest.mark.parametrize("shots", [[3, 5], [1, 2], [2, 4], [16, 64], [4, 16, 64, 256], [64], [1]])
def test_below_the_picture_stand_the_numbers_of_people_and_no_others(shots: list[int]) -> None:
    root = svg(study(["lora", "mix"], shots))
    assert below(root) == ["none", *map(str, shots)]
    paths = [line for line in root.iter("polyline") if "path" in line.get("class", "")]
    assert [len(path.get("points", "").split()) for path in paths] == [len(shots)] * 2


def test_what_learns_nothing_is_a_level_with_one_interval() -> None:
    root = svg(study(["lora"], [4, 16, 64]))
    stems = [line.get("class", "") for line in root.iter("line") if "stem" in line.get("class", "")]
    assert sorted(stems) == ["stem s0", "stem s1", *["stem s2"] * 3]
    levels = [line.get("class") for line in root.iter("line") if "level" in line.get("class", "")]
    assert levels == ["level s0", "level s1"]


def test_no_interval_of_twelve_methods_hides_another() -> None:
    root = svg(study([f"method-{n}" for n in range(10)], [4, 16, 64, 256]))
    stems = [line.get("x1") for line in root.iter("line") if "stem" in line.get("class", "")]
    assert len(stems) == len(set(stems)) == 2 + 10 * 4


def test_a_study_that_learns_nothing_has_no_picture() -> None:
    page = picture(study([], []), "tiny")
    assert "<svg" not in page
    assert "95 % intervals" not in page
    assert "<td>random</td>" in page
