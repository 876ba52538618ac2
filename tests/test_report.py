"""The page of a run and its table: nothing from outside, nothing unescaped, nothing made up where none was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fewrec_prompt import report
from fewrec_prompt.cli.console import print_table


def metric(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value, "high": value}


def row(name: str, **values: float | None) -> dict[str, Any]:
    metrics = {key: metric(value) for key, value in values.items()}
    return {"name": name, "ms_per_user": None, "metrics": metrics, "notes": {"label_mass": 0.25}}


def record(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "task": "mine",
        "settings": {"description": "", "seed": 0},
        "split": "test",
        "model": {"name": "m", "sha256": None},
        "numerics": {"precision": "fp32", "device": "cpu", "reason": "asked for"},
        "data": {"items.csv": "0" * 64},
        "templates": {"complete": {"text": "-\n"}},
        "problems": {"missing_target": 0},
        "n_users": 2,
        "rows": list(rows),
    } | changes


def page_of(tmp_path: Path, *rows: dict[str, Any], **changes: Any) -> str:
    report.write(tmp_path / "report.html", record(*rows, **changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags and their attributes, and whether each that opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_whatever_comes_from_files_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    page = page_of(
        tmp_path,
        row(evil, **{evil: 0.5}),
        task=evil,
        settings={"description": evil, "seed": 0},
        data={evil: "0"},
        model={"name": evil, "sha256": evil},
        templates={evil: {"text": evil}},
        problems={evil: 1},
    )
    tags = Tags(page)
    assert tags.open == []
    assert {"script", "img"}.isdisjoint(tag for tag, _ in tags.seen)
    assert page.count("&lt;script&gt;") >= 9


def test_the_page_asks_nothing_of_anybody(tmp_path: Path) -> None:
    page = page_of(tmp_path, row("complete", MRR=0.5))
    attributes = {name for _, attrs in Tags(page).seen for name in attrs}
    assert {"src", "href", "onload", "onclick"}.isdisjoint(attributes)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_bold_is_the_highest_value_even_below_zero(tmp_path: Path) -> None:
    page = page_of(tmp_path, row("a", gain=-0.4), row("b", gain=-0.2), row("c", gain=None))
    assert re.findall(r'<td class="best">([^<]*)<', page) == ["-20.0"]


def test_nothing_measured_shows_a_dash_and_no_bold(tmp_path: Path) -> None:
    page = page_of(tmp_path, row("a", AUC=None))
    assert 'class="best"' not in page
    assert "<td>–<small></small></td>" in page


def test_without_answers_the_page_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, row("a"))
    assert "nothing to measure" in page
    assert "bootstrap" not in page


def test_problems_show_only_where_there_are_some(tmp_path: Path) -> None:
    assert "Problems" not in page_of(tmp_path, row("a", MRR=0.1))
    page = page_of(tmp_path, row("a", MRR=0.1), problems={"missing_target": 3, "unknown_ids": 0})
    assert "<li>missing_target: 3</li>" in page
    assert "unknown_ids" not in page


def test_the_printed_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(record(row("random", MRR=0.1234, AUC=None), row("a long name", MRR=1.0, AUC=0.5)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "MRR", "95", "%", "AUC", "ms/user"]
    assert lines[1].split() == ["random", "12.3", "12.3–12.3", "–", "–"]
    assert len({len(line) for line in lines}) == 1


def test_a_table_without_metrics_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(record(row("random")))
    assert capsys.readouterr().out.splitlines()[1].split() == ["random", "–"]
