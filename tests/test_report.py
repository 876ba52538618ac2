"""The page of runs and its table: nothing from outside, nothing unescaped, nothing made up where none was measured."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation import WordyBackend
from test_tasks import task_in
from typer.testing import CliRunner

from fewrec_prompt import report
from fewrec_prompt.cli import app
from fewrec_prompt.cli.console import print_table
from fewrec_prompt.errors import RunError
from fewrec_prompt.evaluation import Options, Run, evaluate
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.report import figures, people, rows
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task
from fewrec_prompt.types import Question

HOME = Path(__file__).parent.parent
EVIL = "</script><script>alert(1)</script>"
ITEMS = ("a", "b", "c", "d", "e", "f")  # those of test_tasks
ASKED = (
    RowSettings(prompt="complete"),
    RowSettings(prompt="complete", calibrate="pmi", alpha=0.5),
    RowSettings(prompt="complete", calibrate="pmi", alpha=1.0),
    RowSettings(prompt="judge"),
    RowSettings(prompt="choose"),
    RowSettings(prompt="rate"),
)


def many(n_users: int) -> list[dict[str, Any]]:
    """Queries of so many users: a history of one or two items, three candidates, each of them the answer in turn."""
    found = []
    for number in range(n_users):
        turned = ITEMS[number % 6 :] + ITEMS[: number % 6]
        history, candidates = list(turned[: 1 + number % 2]), list(turned[2:5])
        answer = candidates[number // 6 % 3]
        found.append({"user_id": f"u{number}", "history": history, "candidates": candidates, "target": answer})
    return found


def run_in(folder: Path, *asked: RowSettings, n_users: int = 24, out: str = "run", **changes: Any) -> Run:
    """A run of many users over a few films, one with a title that tries to break out."""
    folder.mkdir(exist_ok=True)
    queries = changes.pop("queries", many(n_users))
    task = task_in(folder, rows=queries, more=changes.pop("more", ""))
    items = (folder / "items.csv").read_text(encoding="utf-8-sig").replace("Up", EVIL)
    (folder / "items.csv").write_text(items, encoding="utf-8")
    return evaluate(Options(rows=asked or None, **changes).applied(task), out=folder / out, backend=WordyBackend())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run with rows of every kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HOME)
        return FinishedRun(run_in(tmp_path_factory.mktemp("whole"), *ASKED).folder)


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOME)


def metric(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value, "high": value}


def row(name: str, **values: float | None) -> dict[str, Any]:
    metrics = {key: metric(value) for key, value in values.items()}
    about = {"prompt": None, "verbalizer": None, "calibration": None, "alpha": None, "length": None}
    return {"name": name, "ms_per_user": None, "metrics": metrics, "notes": {"label_mass": 0.25}} | about


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
    (tmp_path / "run.json").write_text(json.dumps(record(*rows, **changes)), encoding="utf-8")
    report.write(tmp_path / "report.html", [FinishedRun(tmp_path)])
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


def test_a_title_that_tries_to_break_out_stays_text_wherever_it_is_shown(whole: FinishedRun) -> None:
    page = report.page([whole])
    tags = Tags(page)
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.seen}
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


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


# --- what stands in it


def test_gaps_of_exposure_are_drawn_by_group_where_they_were_measured(tmp_path: Path, whole: FinishedRun) -> None:
    assert figures.exposures(whole) == []
    task = Options(metrics=("nDCG@3", "exposure-gap@3")).applied(load_task("eval/tiny.toml"))
    run = FinishedRun(evaluate(task, out=tmp_path / "run", backend=WordyBackend()).folder)
    (drawn,) = figures.exposures(run)
    assert drawn.title == "exposure-gap@3 by group of items"
    for name in rows.leaders(run):
        gaps = {
            key: one for key, one in run.rows[name]["metrics"].items() if key.startswith("exposure-gap@3.popularity ")
        }
        assert len(gaps) == 2  # so few films are taken 0 to 2 times
        assert sum(one["value"] for one in gaps.values()) == pytest.approx(0, abs=1e-9)  # what one gains another loses
        for key, one in gaps.items():
            assert key.partition(".")[2] in drawn.picture
            assert f"({100 * one['low']:.1f}–{100 * one['high']:.1f})" in drawn.picture
    assert drawn.title in (run.folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_is_the_report_over_that_run(whole: FinishedRun) -> None:
    assert report.page([whole]) == (whole.folder / "report.html").read_text(encoding="utf-8")


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(whole: FinishedRun, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in whole.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert report.page([FinishedRun(copy)]) == report.page([FinishedRun(whole.folder)])


def test_every_part_that_the_rows_allow_is_there(whole: FinishedRun) -> None:
    page = report.page([whole])
    assert re.findall("<h3>(.*?)</h3>", page) == [
        "Better, or luck?",
        "For whom",
        "How far probabilities can be believed",
        "Does the place in the prompt matter?",
        "Some people",
        "Problems in the data, counted",  # an empty title
        "What was run",
    ]
    assert "nDCG@10 (%) against alpha" in page
    assert len(page.encode()) < 1_000_000


def test_a_prompt_is_shown_as_it_was_asked(whole: FinishedRun) -> None:
    shown = people.shown(whole)
    assert 1 <= len(shown) <= 6
    for person in shown:
        asked = whole.asked[person.user_id]
        assert sum(answer for _, answer, _ in person.lines) == len(asked.target)
        assert {name for prompt in person.prompts for name in prompt["rows"]} == set(whole.prompt_rows)
        (complete,) = [prompt for prompt in person.prompts if "complete" in prompt["rows"]]
        assert complete["rows"] == ["complete", "complete pmi 0.5", "complete pmi 1"]  # they asked the same
        assert all(title in complete["text"] for title in person.history)


def test_people_are_shown_for_whom_the_best_prompt_wins_and_for_whom_it_loses(whole: FinishedRun) -> None:
    best, other = rows.leaders(whole)
    gap = dict(zip(whole.users, whole.values(best, "nDCG@10") - whole.values(other, "nDCG@10"), strict=True))
    stories = {person.user_id: person.story for person in people.shown(whole)}
    assert len(set(stories.values())) == 2
    for user_id, story in stories.items():
        assert story == (f"{best} does better than {other}" if gap[user_id] > 0 else f"{other} does better than {best}")


def test_differences_are_those_of_compare(whole: FinishedRun) -> None:
    from fewrec_prompt.comparison import compare

    found = rows.differences(rows.entries([whole], [""]))
    assert found is not None
    assert found.reference == "complete"
    asked = [f"complete={label}" for label, _ in found.found]
    pairs = compare(whole.folder, whole.folder, rows=asked, metrics=["nDCG@10"]).pairs
    assert [one for _, one in found.found] == [pair.differences[0] for pair in pairs]


def test_reliability_has_the_calibration_error_of_the_metric(tmp_path: Path) -> None:
    run = FinishedRun(run_in(tmp_path, RowSettings(prompt="judge"), metrics=("ECE", "nDCG@10")).folder)
    (one,) = figures.reliability(run)
    said, n, right = (np.array([float(line[at]) for line in one.lines]) for at in range(3))
    assert n.sum() == 24 * 3
    error = (n * np.abs(said - right)).sum() / n.sum() / 100
    assert error == pytest.approx(run.rows["judge"]["metrics"]["ECE"]["value"], abs=5e-3)  # three digits are shown


def test_a_row_that_always_takes_the_first_place_is_seen(tmp_path: Path) -> None:
    run = FinishedRun(run_in(tmp_path, RowSettings(prompt="judge")).folder)
    placed = run.placed("judge")
    assert sorted(set(placed.place.tolist())) == [0, 1, 2]
    ranked = [run.best_rank("judge", list(run.asked)[at], [list(run.asked.values())[at].candidates[place]])
              for at, place in zip(placed.user, placed.place, strict=True)]  # fmt: skip
    assert ranked == placed.rank.tolist()
    (one,) = figures.positions(run)
    shares = [float(line[1]) for line in one.lines]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    first = placed.place[placed.rank == 1]
    assert shares == pytest.approx([100 * float((first == place).mean()) for place in range(3)], abs=0.06)


class Flat(WordyBackend):
    """Says the same of everything."""

    def _told(self, question: Question, continuation: str) -> np.ndarray:
        return np.array([-3.0])


def test_a_model_that_says_the_same_of_everything_has_a_page_and_no_preference(tmp_path: Path) -> None:
    task = Options(rows=ASKED).applied(task_in(tmp_path, rows=many(24)))
    run = FinishedRun(evaluate(task, out=tmp_path / "run", backend=Flat()).folder)
    assert Tags(report.page([run])).open == []
    assert {line[1] for one in figures.positions(run) for line in one.lines} == {"33.3"}
    places = {cell[0] for person in people.shown(run) for _, _, cells in person.lines for cell in cells[1:]}
    assert places == {"1–3"}


def test_a_row_that_nobody_measured_has_a_page(tmp_path: Path) -> None:
    """AUC has no value where there is one candidate, and then no row leads."""
    queries = [one | {"candidates": [one["target"]]} for one in many(6)]
    run = FinishedRun(run_in(tmp_path, RowSettings(prompt="judge"), queries=queries, metrics=("AUC",)).folder)
    assert run.rows["judge"]["metrics"]["AUC"]["value"] is None
    assert Tags(report.page([run])).open == []


def test_files_that_do_not_belong_together_are_named(whole: FinishedRun, tmp_path: Path) -> None:
    other = run_in(tmp_path, RowSettings(prompt="judge"), n_users=6).folder
    (other / "rankings.parquet").write_bytes((whole.folder / "rankings.parquet").read_bytes())
    with pytest.raises(RunError, match=r"rankings\.parquet and candidates\.parquet do not belong together"):
        FinishedRun(other).placed("judge")


# --- several runs


def test_runs_of_one_test_share_a_table_and_baselines_stand_once(tmp_path: Path, whole: FinishedRun) -> None:
    other = FinishedRun(run_in(tmp_path, RowSettings(prompt="judge"), RowSettings(prompt="complete"), out="b").folder)
    page = report.page([whole, other])
    heads = re.findall(r'<th scope="row">([^<]*)</th>', page.split("Better, or luck?")[0])
    assert heads[:2] == ["random", "popularity"]
    assert heads.count("random") == 1
    assert {"complete · run", "complete · b", "judge · b"} <= set(heads)
    assert "cannot be compared" not in page


def test_runs_of_other_users_stand_apart(tmp_path: Path, whole: FinishedRun) -> None:
    other = FinishedRun(run_in(tmp_path, RowSettings(prompt="judge"), n_users=6).folder)
    page = re.sub(r"\s+", " ", report.page([whole, other]))
    assert "2 runs of 2 tests" in page
    assert "cannot be compared" in page


def test_a_setting_that_runs_differ_in_becomes_a_curve(tmp_path: Path) -> None:
    runs = []
    for n in (1, 2):
        queries = [one | {"history": one["history"][-n:]} for one in many(24)]
        made = run_in(tmp_path / str(n), RowSettings(prompt="complete"), queries=queries, out=f"shots-{n}")
        record = json.loads((made.folder / "run.json").read_text())
        record["settings"]["data"]["shots"] = n
        runs.append(FinishedRun(made.folder, record))
    entries = rows.entries(runs, ["one", "two"])
    (curve,) = figures.curves(entries)
    assert curve.title == "nDCG@10 (%) against users to learn from"
    assert [line[:2] for line in curve.lines] == [("complete", "1"), ("complete", "2")]


def test_the_command_writes_the_page_or_says_what_is_wrong(tmp_path: Path, whole: FinishedRun) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(whole.folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8") == report.page([whole])
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "nothing"), "--out", str(out)])
    assert isinstance(wrong.exception, RunError)
    assert "nothing: holds no finished run" in str(wrong.exception)


def test_a_thousand_users_take_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_in(tmp_path, *ASKED, n_users=1000)
    begin = time.perf_counter()
    page = report.page([FinishedRun(run.folder)])
    with capsys.disabled():
        print(f"\nreport over 1,000 users: {time.perf_counter() - begin:.2f} s, {len(page)} characters")  # noqa: T201 - a figure to see
    assert "1000 users" in page
