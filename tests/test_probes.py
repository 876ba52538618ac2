"""What probes say of models that are known: of places, of histories, of lengths; and what each of them changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_collection import fewrec
from test_evaluation import WordyBackend, tiny
from test_kept_answers import Named

from fewrec_prompt import checked, evaluation, probes
from fewrec_prompt.evaluation import Options
from fewrec_prompt.probes import CHANGES, Probe, Probed, tau, with_typo
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task
from fewrec_prompt.types import Item, Question

CHOOSE, PLAIN = RowSettings(prompt="choose"), RowSettings(prompt="complete")
CHANGE = {one.name: one for one in CHANGES}


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "cache"))


class Says(WordyBackend):
    """A model that answers by a rule: the log-probability of a continuation, given the question."""

    def __init__(self, rule: Callable[[Question, str], float]) -> None:
        super().__init__()
        self.rule = rule

    def _told(self, question: Question, continuation: str) -> np.ndarray:
        return np.array([self.rule(question, continuation)])


def probed(row: RowSettings, backend: WordyBackend) -> dict[str, Probe]:
    found = probes.probe(load_task("eval/tiny.toml"), Options(rows=(row,)), backend=backend, cache=False)
    return {one.name: one for one in found.probes}


def by_place(_: Question, continuation: str) -> float:
    return -1.0 - ord(continuation.strip()[0]) / 64


# --- models that are known ---------------------------------------------------------------------------------------


def test_a_model_that_names_the_first_letter_prefers_what_stands_first_and_reads_no_history() -> None:
    found = probed(CHOOSE, Says(by_place))

    first, last = found["target first"].difference, found["target last"].difference
    assert first is not None
    assert last is not None
    assert first.low > 0 > last.high
    assert found["target first"].meaning == "what stands here is preferred"
    for name in ("no history", "another user's history", "history shuffled", "other words for the things"):
        assert found[name].difference is not None
        assert (found[name].difference.value, found[name].tau.value) == (0.0, pytest.approx(1.0))
    assert found["no history"].meaning == "no sign that the history is used"


def test_a_model_that_turns_around_without_history_uses_it() -> None:
    """Titles by the alphabet after a history, against it without."""

    def rule(question: Question, title: str) -> float:
        order = ord(title.strip()[0]) / 100
        return -2.0 + (order if "\n- " in str(question.prompt) else -order)

    found = probed(PLAIN, Says(rule))

    assert found["no history"].tau.value == pytest.approx(-1.0)
    assert found["another user's history"].tau.value == pytest.approx(1.0)


def test_a_model_that_counts_letters_goes_by_length_alone() -> None:
    found = probed(PLAIN, Says(lambda _, title: -float(len(title))))

    assert found["title length and rank"].tau.value == pytest.approx(-1.0)
    assert found["title length and rank"].meaning == "less title length stands higher"
    assert found["typos in titles"].tau.value == pytest.approx(1.0)
    assert found["title length and rank"].difference is None


def test_a_model_without_a_target_in_mind_is_told_nothing_of_it() -> None:
    """The same answers for every target: what is asked depends on qrels only in where a candidate stands."""
    task = tiny(CHOOSE)
    plain = checked.check(task)
    other = replace(plain, queries=replace(plain.queries, qrels={}))
    for change in CHANGES:
        same = change.make(plain).queries.queries == change.make(other).queries.queries
        assert same is not change.name.startswith("target")


# --- what is changed ---------------------------------------------------------------------------------------------


def test_changes_leave_users_and_candidates_and_are_the_same_every_time() -> None:
    plain = checked.check(tiny(CHOOSE))
    for change in CHANGES:
        changed, again = change.make(plain).queries.queries, change.make(plain).queries.queries
        assert changed == again
        for before, after in zip(plain.queries.queries, changed, strict=True):
            assert before.user_id == after.user_id
            assert {item.id for item in before.candidates} == {item.id for item in after.candidates}


def test_another_history_is_anothers_and_holds_no_candidate() -> None:
    plain = checked.check(tiny(CHOOSE))
    histories = {query.history for query in plain.queries.queries}
    for before, after in zip(
        plain.queries.queries, CHANGE["another user's history"].make(plain).queries.queries, strict=True
    ):
        assert after.history != before.history
        assert after.history
        assert any(set(after.history) <= set(history) for history in histories - {before.history})
        assert not {seen.item.id for seen in after.history} & {item.id for item in after.candidates}


def test_what_is_known_of_people_goes_round_where_anything_is_known() -> None:
    plain = checked.check(tiny(CHOOSE))
    change = CHANGE["another user's name and moment"]
    assert not change.fits(plain)
    named = tuple(replace(query, user=(("name", query.user_id),)) for query in plain.queries.queries)
    known = replace(plain, queries=replace(plain.queries, queries=named))
    assert change.fits(known)
    swapped = change.make(known).queries.queries
    assert {query.user for query in swapped} == {query.user for query in named}
    for before, after in zip(named, swapped, strict=True):
        assert after.user != before.user
        assert replace(after, user=before.user) == before


@pytest.mark.parametrize(("name", "place"), [("target first", 0), ("target in the middle", 2), ("target last", 5)])
def test_the_target_changes_places_with_what_stood_there(name: str, place: int) -> None:
    plain = checked.check(tiny(CHOOSE))
    for before, after in zip(plain.queries.queries, CHANGE[name].make(plain).queries.queries, strict=True):
        (target,) = plain.queries.qrels[before.user_id]
        assert after.candidates[place].id == target
        moved = [one for one, two in zip(before.candidates, after.candidates, strict=True) if one != two]
        assert len(moved) in (0, 2)


@pytest.mark.parametrize("title", ["Heat (1995)", "Amélie", "2001: A Space Odyssey"])
def test_a_typo_swaps_two_letters_the_same_for_everybody(title: str) -> None:
    item = Item("1", title)
    wrong = with_typo(item, 0)
    assert wrong == with_typo(item, 0) != item
    assert sorted(wrong.title) == sorted(title)
    assert sum(a != b for a, b in zip(wrong.title, title, strict=True)) == 2


def test_a_title_without_letters_to_swap_stays() -> None:
    assert with_typo(Item("1", "9"), 0) == Item("1", "9")


def test_tau_is_that_of_kendall() -> None:
    """Ranks 1 2 3 4 and 1 3 2 4: five pairs agree, one does not: 4 / 6. With a tie in one: 5 / √(6 · 5)."""
    assert tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    assert tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 2, 4])) == pytest.approx(5 / math.sqrt(30))
    assert math.isnan(tau(np.array([1.0, 2]), np.array([1.0, 1])))


# --- as a whole --------------------------------------------------------------------------------------------------


def test_a_channel_is_not_probed_for_its_history_nor_titles_for_their_place() -> None:
    assert "no history" not in probed(RowSettings(prompt="channel"), WordyBackend())
    assert "target first" not in probed(PLAIN, WordyBackend())


@pytest.mark.parametrize("row", [RowSettings(prompt=name) for name in ("judge", "rate", "channel", "setwise")], ids=str)
def test_every_kind_is_probed(row: RowSettings) -> None:
    for one in probed(row, WordyBackend()).values():
        assert one.meaning
        assert -1 <= one.tau.low <= one.tau.value <= one.tau.high <= 1 or math.isnan(one.tau.value)


def test_a_second_probe_asks_nothing(tmp_path: Path) -> None:
    backends = Named(), Named()
    first, again = (probes.probe(tiny(CHOOSE), Options(split="test"), backend=backend) for backend in backends)
    assert backends[0].asked
    assert backends[1].asked == []
    assert first.probes == again.probes


def test_users_without_answers_have_rankings_to_compare_and_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = probes.tasks.load_queries
    monkeypatch.setattr(probes.tasks, "load_queries", lambda *a, **k: replace(honest(*a, **k), qrels={}))

    found = probed(PLAIN, WordyBackend())

    assert all(one.difference is None for one in found.values())
    assert found["no history"].meaning == "nobody has an answer, so there is nothing to measure"


def test_the_command_prints_a_table_and_writes_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_backend", lambda *_: WordyBackend())
    said = fewrec("probe", "tiny", "--prompt", "choose", "--users", "4", "--out", tmp_path / "probes.json")
    record = json.loads((tmp_path / "probes.json").read_text(encoding="utf-8"))
    assert record["row"] == "choose"
    assert [one["name"] for one in record["probes"]] == [
        *(one.name for one in CHANGES if one.name != "another user's name and moment"),  # nothing is known of them
        *("popularity and rank", "title length and rank"),
    ]
    assert all(one["name"] in said and one["meaning"] in said for one in record["probes"])
    assert {"task", "model", "numerics", "versions", "queries"} <= record.keys()
    assert isinstance(probes.probe(tiny(CHOOSE), Options(split="test"), backend=WordyBackend()), Probed)
