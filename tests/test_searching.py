"""A whole search with a model without a model: what is chosen, on whom, and that the test users have no say in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_evaluation import WordyBackend, rankings_in, record_in
from test_tasks import QUERIES, queries_in, task_in

from fewrec_prompt import searching, tasks
from fewrec_prompt.errors import FewrecError, RunError, TaskError, VerbalizerError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.searching import Search, search
from fewrec_prompt.space import Space
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
SPACE = Space(prompts=("choose", "judge"), alphas=(0.3, 0.6, 1.0))
N_ASKED = 8 + 2 * 8 + 2 * 48  # of eight people: titles for the default row; letters, six yes or no, and their twins
N_TEST = 2 * 6 + 6  # of six people: titles and their twins for the rows of the task, letters for the winner
RUN = """
import sys, time
from test_evaluation import WordyBackend
from fewrec_prompt import runs
from test_searching import SPACE, search

runs.COMMIT_SECONDS = 0.0
class Slow(WordyBackend):
    def logprobs(self, questions, *, grad=False):
        time.sleep(0.02)
        return super().logprobs(questions)
Slow.__name__ = "WordyBackend"
search("eval/tiny.toml", SPACE, out=sys.argv[1], backend=Slow(), progress=lambda *point: print(point, flush=True))
"""


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def found_in(out: Path, space: Space = SPACE, backend: WordyBackend | None = None, **more: Any) -> Search:
    return search("eval/tiny.toml", space, out=out, backend=backend or WordyBackend(), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """A search that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield found_in(tmp_path_factory.mktemp("whole") / "a")


def chosen(found: Search) -> dict[str, Any]:
    """All of a record that does not depend on the test users."""
    kept = {key: value for key, value in found.record.items() if key not in ("test", "earlier_searches", "search")}
    return kept | {key: value for key, value in found.record["search"].items() if key != "test_queries"}


# --- what is chosen ----------------------------------------------------------------------------------------------


def test_the_winner_is_what_an_evaluation_of_the_selection_users_shows_as_best(whole: Search, tmp_path: Path) -> None:
    rows = tuple(RowSettings(**one["settings"]) for one in whole.record["candidates"])
    options = Options(rows=rows, split="selection", metrics=("nDCG@10",))
    run = evaluate("eval/tiny.toml", options, out=tmp_path / "run", backend=WordyBackend())

    shown = {row["name"]: row["metrics"]["nDCG@10"] for row in run.rows[2:]}
    tried = {one["name"]: {key: one[key] for key in ("value", "low", "high")} for one in whole.record["candidates"]}
    assert len(tried) == 8
    for name, one in shown.items():
        assert tried[name] == pytest.approx(one, abs=1e-12)
    assert whole.record["winner"]["name"] == max(shown, key=lambda name: shown[name]["value"])
    assert whole.winner == rows[0]


def test_the_test_table_has_chance_popularity_the_rows_of_the_task_and_the_winner_once(
    whole: Search, tmp_path: Path
) -> None:
    names = [row["name"] for row in whole.test.rows]
    winner = whole.record["winner"]["name"]
    assert names[:4] == ["random", "popularity", "complete", "complete pmi 0.5"]
    assert Counter(names)[winner] == 1
    rows = (*(row for row in load_task("eval/tiny.toml").settings.rows), whole.winner)
    run = evaluate("eval/tiny.toml", Options(rows=rows), out=tmp_path / "run", backend=WordyBackend())
    assert rankings_in(run.folder) == rankings_in(whole.folder / "test")
    assert record_in(whole.folder / "selection")["split"] == "selection"


class Elsewhere(WordyBackend):
    """A model that answers some questions with none of their labels."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def logprobs(self, questions: Any, *, grad: bool = False) -> Any:
        told = super().logprobs(questions)
        lost = [self.words in str(question.prompt) for question in questions]
        return [tuple(row - 50 for row in rows) if one else rows for rows, one in zip(told, lost, strict=True)]


def test_a_candidate_that_fails_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    found = found_in(tmp_path / "a", backend=Elsewhere("Which of these"), say=said.append)
    failed, tried = found.record["failed"], {one["name"] for one in found.record["candidates"]}
    assert failed
    assert tried
    assert not failed.keys() & tried
    assert all("gives all labels together a probability of" in why for why in failed.values())
    assert len([line for line in said if line.startswith("failed, and left out: ")]) == 1
    lost = [one for one in found.record["trials"] if one["name"] in failed]
    assert lost
    assert all(one["value"] is None for one in lost)
    assert found.record["winner"]["name"] in tried


def test_if_every_candidate_fails_so_does_the_search(tmp_path: Path) -> None:
    with pytest.raises(VerbalizerError, match=r"every candidate failed; the first: .*choose"):
        found_in(tmp_path / "a", Space(prompts=("choose",)), Elsewhere("Which of these"))


def test_if_the_first_row_of_the_task_fails_so_does_the_search(tmp_path: Path) -> None:
    task = Options(rows=(RowSettings(prompt="choose"),)).applied(load_task("eval/tiny.toml"))
    with pytest.raises(VerbalizerError, match="the task's first row, which candidates are set against, fails"):
        search(task, Space(prompts=("judge",)), out=tmp_path / "a", backend=Elsewhere("Which of these"))


def test_every_question_is_asked_once(tmp_path: Path) -> None:
    backend = WordyBackend()
    found = found_in(tmp_path / "a", backend=backend)
    assert found.record["winner"]["name"] == "choose"
    assert len(backend.asked) == N_ASKED + N_TEST
    of_people = [question for question in backend.asked if "\n" in str(question.prompt)]  # people share yes-no twins
    assert max(Counter(of_people).values()) == 1


def test_what_was_searched_on_whom_stands_in_the_record(whole: Search) -> None:
    record = json.loads((whole.folder / "search.json").read_text(encoding="utf-8"))
    assert record == whole.record
    assert record["search"]["space"] == SPACE.to_dict()
    assert (record["n_candidates"], record["n_tried"], record["n_trials"]) == (8, 8, 8)
    assert record["how"] == "every candidate"
    assert (record["selection"]["n_users"], record["test"]["n_users"]) == (8, 6)
    assert record["selection"]["queries"] != record["test"]["queries"] == record["search"]["test_queries"]
    assert record["test"]["difference"]["verdict"]
    assert record["test"]["difference"]["low"] <= record["test"]["difference"]["difference"]
    assert "verdict" not in record["selection"]["difference"]  # the best of many on the same users says nothing
    assert record["default"]["name"] == "complete"
    assert record["versions"]["python"]


def test_how_much_of_the_best_is_luck_is_told(whole: Search) -> None:
    best, *others = whole.record["candidates"]
    assert best["minus_winner"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert all(one["minus_winner"]["value"] <= 0 for one in others)
    assert sum(one["first"] for one in whole.record["candidates"]) == pytest.approx(1.0)
    assert whole.record["expected"] < best["value"]
    level = [one for one in others if one["minus_winner"]["low"] <= 0 <= one["minus_winner"]["high"]]
    assert whole.record["n_level"] == len(level) > 0


def test_to_pandas_gives_a_line_a_candidate(whole: Search) -> None:
    frame = whole.to_pandas()
    assert list(frame["name"]) == [one["name"] for one in whole.record["candidates"]]
    assert {"prompt", "calibrate", "alpha", "value", "low", "high"} <= set(frame.columns)


def test_less_is_better_where_a_metric_says_so(tmp_path: Path) -> None:
    found = found_in(tmp_path / "a", Space(prompts=("complete", "judge")), metric="Brier")
    values = [one["value"] for one in found.record["candidates"]]
    assert values == sorted(values)
    assert {one["settings"]["prompt"] for one in found.record["candidates"]} == {"judge"}  # titles have no probability
    assert found.record["test"]["difference"] is None  # the default row, complete, has none either


# --- the test users have no say ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["other answers", "no answers", "other users"])
def test_test_users_and_their_answers_change_no_choice(
    whole: Search, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tasks.load_queries

    def changed(task: Any, split: str = "test", *args: Any, **kwargs: Any) -> Any:
        found = honest(task, split, *args, **kwargs)
        if split != "test":
            return found
        if change == "other users":
            return replace(found, queries=found.queries[:2], qrels={})
        other = {query.user_id: frozenset({query.candidates[0].id}) for query in found.queries}
        return replace(found, qrels=other if change == "other answers" else {})

    monkeypatch.setattr(tasks, "load_queries", changed)
    found = found_in(tmp_path / "a")

    assert chosen(found) == chosen(whole)
    assert found.record["test"] != whole.record["test"]


def test_no_test_user_is_asked_about_before_the_choice_is_made(tmp_path: Path) -> None:
    backend = WordyBackend()
    asked_when_told: list[int] = []
    found_in(tmp_path / "a", backend=backend, say=lambda line: asked_when_told.append(len(backend.asked)))
    assert asked_when_told == [N_ASKED]


def test_a_user_on_both_sides_is_refused(tmp_path: Path) -> None:
    task = own_task(tmp_path, [QUERIES[1] | {"user_id": "v1"}, QUERIES[0]])
    with pytest.raises(TaskError, match=r"1 user is among the test users too \(such as 'u1'\)"):
        tasks.load_queries(task, "selection")
    with pytest.raises(TaskError, match="nothing may be chosen on those it is measured on"):
        search(task, out=tmp_path / "run", backend=WordyBackend())
    assert not (tmp_path / "run").exists()


def own_task(folder: Path, selection: list[dict[str, Any]]) -> Any:
    (folder / "more").mkdir()
    file = queries_in(folder / "more", "csv", selection)
    return task_in(folder, more=f'selection = "more/{file}"\n')


def test_own_queries_may_name_others_to_choose_on(tmp_path: Path) -> None:
    task = own_task(tmp_path, [row | {"user_id": f"v{row['user_id']}"} for row in QUERIES])
    found = search(task, out=tmp_path / "run", backend=WordyBackend())
    assert found.record["selection"]["n_users"] == 3


def test_a_task_without_others_to_choose_on_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r'has no \'selection\' split; .* selection = "FILE" below \[data\]'):
        search(task_in(tmp_path), out=tmp_path / "run", backend=WordyBackend())
    assert not (tmp_path / "run").exists()


def test_others_without_answers_are_refused(tmp_path: Path) -> None:
    blind = [{key: value for key, value in row.items() if key != "target"} for row in QUERIES]
    task = own_task(tmp_path, [row | {"user_id": f"v{row['user_id']}"} for row in blind])
    with pytest.raises(TaskError, match="the selection users have no targets"):
        search(task, out=tmp_path / "run", backend=WordyBackend())


def test_a_second_search_on_the_same_test_users_is_counted(tmp_path: Path) -> None:
    first = found_in(tmp_path / "a")
    other = found_in(tmp_path / "b", Space(prompts=("choose",)))
    third = found_in(tmp_path / "c", options=Options(users=4))
    assert first.record["earlier_searches"] == third.record["earlier_searches"] == []
    assert other.record["earlier_searches"] == [str(tmp_path / "a")]


# --- again, and after a stop -------------------------------------------------------------------------------------


def test_the_same_seed_chooses_the_same_and_naming_things_in_another_order_is_the_same_search(
    whole: Search, tmp_path: Path
) -> None:
    other = Space(prompts=("judge", "choose"), calibrations=("pmi", "none"), alphas=(1.0, 0.3, 0.6))
    assert chosen(found_in(tmp_path / "a", other)) == chosen(whole)


def test_users_in_another_order_choose_the_same(whole: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = tasks.load_queries

    def reversed_(*args: Any, **kwargs: Any) -> Any:
        found = honest(*args, **kwargs)
        return replace(found, queries=found.queries[::-1])

    monkeypatch.setattr(tasks, "load_queries", reversed_)
    found = found_in(tmp_path / "a", trials=5)
    monkeypatch.setattr(tasks, "load_queries", honest)
    again = found_in(tmp_path / "b", trials=5)

    assert found.record["trials"] == again.record["trials"]
    assert found.winner == again.winner
    assert found.record["how"] == "TPE (Optuna)"


@pytest.mark.parametrize("n_asked", [0, 7, 8, 20, N_ASKED - 1, N_ASKED, N_ASKED + 3, N_ASKED + 17])
def test_a_search_that_was_stopped_goes_on_and_ends_as_if_nothing_had_happened(
    whole: Search, tmp_path: Path, n_asked: int
) -> None:
    class Interrupted(WordyBackend):
        def logprobs(self, questions: Any, *, grad: bool = False) -> Any:
            if len(self.asked) + len(questions) > n_asked:
                raise KeyboardInterrupt
            return super().logprobs(questions)

    Interrupted.__name__ = "WordyBackend"
    stopped, backend = Interrupted(), WordyBackend()
    with pytest.raises(KeyboardInterrupt):
        found_in(tmp_path / "a", backend=stopped)
    assert (tmp_path / "a").exists() == bool(stopped.asked)

    found = found_in(tmp_path / "a", backend=backend)

    assert found.record == whole.record
    assert rankings_in(tmp_path / "a" / "test") == rankings_in(whole.folder / "test")
    assert len(stopped.asked) + len(backend.asked) == N_ASKED + N_TEST


@pytest.mark.parametrize("n_seen", [3, 25, 34])
def test_a_killed_search_goes_on(whole: Search, tmp_path: Path, n_seen: int) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "a")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(n_seen):
        process.stdout.readline()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert found_in(tmp_path / "a").record == whole.record


def test_a_search_that_stopped_at_its_last_file_is_not_scored_again(
    whole: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(searching, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            found_in(tmp_path / "a")
    backend = WordyBackend()
    assert found_in(tmp_path / "a", backend=backend).record == whole.record
    assert backend.asked == []


def test_a_finished_search_is_shown_again_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, said = load_task("tiny").path.resolve(), []
    monkeypatch.chdir(tmp_path)
    first = search(task, SPACE, backend=WordyBackend())
    backend = WordyBackend()
    again = search(task, SPACE, backend=backend, say=said.append)
    assert first.folder == again.folder == Path("runs/search-tiny-1")
    assert (first.record, backend.asked) == (again.record, [])
    assert any("holds this very search" in line for line in said)
    assert search(task, SPACE, trials=4, backend=WordyBackend()).folder == Path("runs/search-tiny-2")
    with pytest.raises(RunError, match="holds a finished run"):
        search(task, SPACE, out=first.folder, backend=WordyBackend())


def test_a_folder_of_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty and not an unfinished search"):
        found_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- what is refused before anything is asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"metric": "coverage@10"}, "says what comes up, not how good it is"),
        ({"metric": "pooled-AUC"}, "one number of all users"),
        ({"metric": "nDGC@10"}, "unknown metric"),
        ({"metric": "Brier", "space": Space(prompts=("complete",))}, "has no value for any candidate"),
        ({"trials": 0}, "0 trials"),
        ({"selection_users": 9}, "9 selection users were asked, but there are 8"),
        ({"options": Options(split="selection")}, "leave rows, split and candidates out"),
        ({"space": Space(prompts=("complte",))}, "no template named 'complte'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(FewrecError, match=said):
        found_in(tmp_path / "a", **({"space": SPACE} | more))


def test_fewer_users_may_be_asked(tmp_path: Path) -> None:
    backend = WordyBackend()
    found = found_in(tmp_path / "a", backend=backend, selection_users=3)
    assert found.record["selection"]["n_users"] == 3
    assert len(backend.asked) < N_ASKED
