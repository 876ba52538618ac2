"""Table and picture of a study: where things stand in the picture, and what is said below the table."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fewrec_prompt.curve as of_cells
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cells import ZERO, Cell
from fewrec_prompt.cli import app
from fewrec_prompt.curve import curve
from fewrec_prompt.curve_table import Line, picture, remarks, table
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import adapters

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


# --- what did not learn

NOTE = "did not learn"


def test_seeds_that_did_not_learn_are_named_below_the_table_once_for_all_metrics() -> None:
    of_lora = [cell("lora", 4, 2, NOTE), cell("lora", 4, 0), cell("lora", 4, 1), cell("lora", 16, 0)]
    weighed = [cell("lora-mix", 8, seed, NOTE) for seed in (1, 0)]
    others = [cell("mix", 4, 0, "prior counts 0.53"), cell("ia3", 1, 0, NOTE)]
    lines = table([cell(ZERO), *of_lora, *weighed, *others], BOTH, 0)
    expected = [
        "lora, 4 people: did not learn with 1 of 3 seeds (2)",
        "lora-mix, 8 people: did not learn with 2 of 2 seeds (0, 1)",
        "ia3, 1 person: did not learn",
    ]
    assert remarks(lines) == expected
    page = picture(lines, "tiny")
    assert [page.index("</table>") < page.index(f"<p>{remark}</p>") for remark in expected] == [True] * 3


def test_who_is_left_out_of_a_metric_is_told_on_the_page_too() -> None:
    unknown = replace(cell(ZERO), values=dict.fromkeys(BOTH, (float("nan"), 0.6, 0.4, 0.9)))
    lines = table([unknown], BOTH[:1], 0)
    assert "<p>nDCG@10: 1 of 4 people have no value and are left out</p>" in picture(lines, "tiny")


def test_a_training_that_did_not_learn_is_told_by_table_page_and_command(
    task: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = adapters.described

    def described(folder: Path) -> dict[str, Any]:
        return dict(real(folder)) | {"learned": not folder.name.endswith("-1")}

    monkeypatch.setattr(adapters, "described", described)
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "scores"))
    how: dict[str, Any] = {"row": RowSettings(prompt="complete"), "settings": {"epochs": 1, "held_out": 0.0}}
    backend = causal.load(str(model), Numerics("fp32", "cpu"))
    lines = curve(task, ["lora"], [2], 2, tmp_path / "out", backend=backend, **how)
    told = json.loads((tmp_path / "out" / "curve.json").read_text())["lines"]
    assert [line["not_learned"] for line in told] == [[], [1]]
    sentence = "lora, 2 people: did not learn with 1 of 2 seeds (1)"
    assert f"<p>{sentence}</p>" in (tmp_path / "out" / "curve.html").read_text()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(of_cells, "curve", lambda *_, **__: lines)
    done = CliRunner().invoke(app, ["curve", "tiny", "--methods", "lora", "--shots", "2"])
    assert done.exit_code == 0, done.output
    assert sentence in done.output.splitlines()
