"""A report as a browser shows it: nothing is fetched or complained of, nothing runs over, every word can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _browser import Browser, browser, chromium
from test_report import ASKED, EVIL, HOME, many, run_in

from fewrec_prompt import report
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.task_settings import RowSettings

MEASURE = """
(() => {
  const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const charts = [...document.querySelectorAll('svg')].map(svg => ({
    title: svg.querySelector('title').textContent,
    box: box(svg),
    texts: [...svg.querySelectorAll('text')].map(t => ({ text: t.textContent, box: box(t), px: parseFloat(
      getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width })),
    marks: [...svg.querySelectorAll('circle, polygon')].map(box),
  }));
  return { charts, scripts: document.scripts.length, wide: document.documentElement.scrollWidth,
    over: [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, svg')
      && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
      .map(e => e.outerHTML.slice(0, 80)) };
})()
"""
INK = """
(() => {
  const parts = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const bright = colour => { const [r, g, b] = parts(colour).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = bright(getComputedStyle(document.body).backgroundColor);
  const contrast = colour => { const ink = bright(colour);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); };
  return {
    words: [...document.querySelectorAll('svg text, p, small')]
      .map(e => contrast(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'])),
    marks: [...document.querySelectorAll('svg circle, svg polygon')].map(e => contrast(getComputedStyle(e).fill)),
  };
})()
"""
Box = list[float]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("this machine has no Chromium; on Debian: apt-get install chromium")
    with browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tab: Browser) -> Path:  # the browser first: without one, no run
    """Two runs of one test and one of another, with long names and a title that tries to break out."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HOME)
        long = folder / "a-template-whose-name-is-longer-than-any-telephone-is-wide-and-then-some-more.jinja"
        long.write_text(Path("prompts/complete.jinja").read_text(encoding="utf-8"), encoding="utf-8")
        runs = [
            run_in(folder / "a", *ASKED),
            run_in(folder / "b", RowSettings(prompt=str(long), calibrate="pmi"), RowSettings(prompt="judge")),
            run_in(folder / "c", RowSettings(prompt="judge"), queries=many(30), metrics=("AUC", "novelty@2")),
        ]
        report.write(folder / "report.html", [FinishedRun(run.folder) for run in runs])
    return folder / "report.html"


def measured(tab: Browser, page: Path, width: int) -> dict[str, Any]:
    tab.show(page, width)
    found = tab.run(MEASURE)
    assert isinstance(found, dict)
    return found


def covers(a: Box, b: Box) -> bool:
    """Whether two boxes share more than a hair."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 3  # lines of words touch


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fetches_nothing_complains_of_nothing_and_does_not_scroll_sideways(
    tab: Browser, page: Path, width: int
) -> None:
    found = measured(tab, page, width)
    assert tab.requests() == []
    assert tab.complaints() == []
    assert found["scripts"] == 0
    assert found["wide"] <= width, found["over"]
    assert found["over"] == []
    assert EVIL in tab.run("document.body.textContent")


@pytest.mark.parametrize("width", [1280, 390])
def test_every_picture_has_a_size_and_its_words_are_whole_apart_and_large_enough(
    tab: Browser, page: Path, width: int
) -> None:
    charts = measured(tab, page, width)["charts"]
    assert len(charts) > 15
    for chart in charts:
        left, top, right, bottom = chart["box"]
        assert right - left > 250, chart["title"]
        assert bottom - top > 50, chart["title"]
        assert chart["marks"], chart["title"]
        for at, one in enumerate(chart["texts"]):
            where = f"{chart['title']}: {one['text']!r} {one['box']} in {chart['box']}"
            assert one["px"] >= 11, where
            assert one["box"][0] >= left - 1, where
            assert one["box"][2] <= right + 1, where
            assert one["box"][1] >= top - 1, where
            assert one["box"][3] <= bottom + 1, where
            for other in chart["texts"][at + 1 :]:
                assert not covers(one["box"], other["box"]), f"{where} over {other['text']!r} {other['box']}"
            for mark in chart["marks"]:
                assert not covers(one["box"], mark), f"{where} over a mark at {mark}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_marks_stand_out_from_the_paper(tab: Browser, page: Path, scheme: str) -> None:
    """Contrast of WCAG 2.2: 4.5 for words (1.4.3), 3 for what else is needed to understand (1.4.11)."""
    tab.show(page, 1280, scheme)
    found = tab.run(INK)
    assert min(found["words"]) >= 4.5
    assert min(found["marks"]) >= 3


def test_on_paper_the_tables_are_whole_and_the_paper_is_white(tab: Browser, page: Path) -> None:
    """700 pixels are a sheet of A4 between its margins."""
    tab.show(page, 700, "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.call("Emulation.setEmulatedMedia", media="print", features=features)
    tables = "[...document.querySelectorAll('.scroll table')].slice(0, 2).map(t => t.getBoundingClientRect().right)"
    assert max(tab.run(tables)) <= 700
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_the_measure_would_find_is_found(tab: Browser, tmp_path: Path) -> None:
    """The checks above can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><meta charset="utf-8"><body><img src="nothing.png"><script>console.error("oh")</script>'
        '<div style="width:2000px">x</div><svg viewBox="0 0 340 40" width="340"><title>t</title>'
        '<text x="330" y="20">cut off</text><text x="0" y="20">one</text><text x="5" y="20">two</text></svg>',
        encoding="utf-8",
    )
    found = measured(tab, bad, 390)
    (chart,) = found["charts"]
    assert found["wide"] > 390
    assert found["over"]
    assert [request.endswith("nothing.png") for request in tab.requests()] == [True]
    assert any("oh" in complaint for complaint in tab.complaints())
    assert chart["texts"][0]["box"][2] > chart["box"][2] + 1
    assert covers(chart["texts"][1]["box"], chart["texts"][2]["box"])
