"""Several questions of each person: about what they took before the answer, asked one a pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from _tiny import save_model
from hypothesis import given
from hypothesis import strategies as st
from test_tuning import recommender
from typer.testing import CliRunner

from fewrec_prompt.backends import causal
from fewrec_prompt.cli import app
from fewrec_prompt.data.training import from_pairs
from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import passes
from fewrec_prompt.tuning.examples import Example, stepped_back
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

ITEMS = [Item(str(n), f"Film {n}") for n in range(12)]


def example(n_history: int, places: tuple[int, ...] = (1,), n: int = 3, rating: float | None = None) -> Example:
    history = tuple(Interaction(item, rating) for item in ITEMS[:n_history])
    return Example(Query("u", history, tuple(ITEMS[8 : 8 + n])), places)


def test_what_was_taken_before_stands_where_the_answer_stood() -> None:
    found = stepped_back(example(5), 2)
    assert [seen.item.id for seen in found.query.history] == ["0", "1", "2"]
    assert [item.id for item in found.query.candidates] == ["8", "3", "10"]
    assert found.relevant == (1,)


@given(st.integers(1, 8), st.integers(0, 20))
def test_the_answer_is_never_in_the_history_and_nothing_later_is_shown(n_history: int, back: int) -> None:
    whole = example(n_history)
    found = stepped_back(whole, back)
    shown = {seen.item.id for seen in found.query.history}
    assert shown
    assert not shown & {item.id for item in found.query.candidates}
    assert found.query.history == whole.query.history[: len(found.query.history)]
    assert (found == whole) == (min(back, n_history - 1) == 0)


def test_what_was_taken_twice_is_not_shown_before_it_is_asked_about() -> None:
    once, again = (Interaction(ITEMS[n]) for n in (0, 1))
    whole = Example(Query("u", (once, again, once), tuple(ITEMS[8:11])), (1,))
    assert stepped_back(whole, 1).query.history == (again,)
    alone = Example(Query("u", (once, once), tuple(ITEMS[8:11])), (1,))
    assert stepped_back(alone, 1) == alone


def test_what_is_taken_again_as_the_answer_is_asked_about_once() -> None:
    taken = tuple(Interaction(ITEMS[n]) for n in (0, 1, 2))
    whole = Example(Query("u", (*taken, Interaction(ITEMS[5])), (ITEMS[3], ITEMS[2], ITEMS[4])), (1,))
    found = stepped_back(whole, 2)
    assert [item.id for item in found.query.candidates] == ["3", "2", "4"]
    assert found.relevant == (1,)
    assert [seen.item.id for seen in found.query.history] == ["0", "1"]


def test_several_answers_become_one() -> None:
    found = stepped_back(example(4, (0, 2)), 1)
    assert [item.id for item in found.query.candidates] == ["3", "9"]
    assert found.relevant == (0,)


@pytest.mark.parametrize(("rating", "relevant"), [(5.0, (0,)), (1.0, ())])
def test_a_single_candidate_is_judged_by_the_rating(rating: float, relevant: tuple[int, ...]) -> None:
    found = stepped_back(example(4, (), n=1, rating=rating), 1)
    assert [item.id for item in found.query.candidates] == ["3"]
    assert found.relevant == relevant


def test_what_was_not_rated_is_not_judged() -> None:
    whole = example(4, (), n=1)
    assert stepped_back(whole, 1) == whole


def test_everybody_is_asked_all_questions_one_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    asked: dict[str, list[int]] = defaultdict(list)

    def seen(one: Example, back: int) -> Example:
        asked[one.query.user_id].append(back)
        return stepped_back(one, back)

    monkeypatch.setattr(passes, "stepped_back", seen)
    row = RowSettings(prompt="complete")
    model = causal.load(str(save_model(tmp_path / "model")))
    settings = Settings("lora", epochs=3, questions=3, held_out=0.0)
    tuned = tune_task("eval/tiny.toml", settings, 3, tmp_path / "x", row=row, backend=model)
    assert len(asked) == 3
    for first, *later in asked.values():
        assert sorted(later) == [0, 1, 2]
        assert first == later[0]  # the loss before training is of the questions of the first pass
    assert {backs[0] for backs in asked.values()} == {0, 1, 2}
    assert tuned.settings.questions == 3


def test_candidates_that_came_with_an_answer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    model = causal.load(str(save_model(tmp_path / "model")))
    settings = Settings("lora", questions=2, negatives="given")
    with pytest.raises(DataError, match="2 questions of a person"):
        tune_task("eval/tiny.toml", settings, 3, tmp_path / "x", row=RowSettings(prompt="complete"), backend=model)


def test_a_classifier_and_a_mix_have_no_several_questions(tmp_path: Path) -> None:
    with pytest.raises(FewrecError, match="'head' makes no use of questions"):
        Settings("head", questions=2)
    command = ["tune", "movielens-100k", "--method", "mix", "--questions", "2", "--out", str(tmp_path / "x")]
    assert "leave --questions out" in str(CliRunner().invoke(app, command).exception)


def test_whether_it_learned_is_asked_of_the_same_questions() -> None:
    """The last pass asks about other things than the first, so its loss says nothing beside that before training."""
    people = [example(5, (at % 3,)) for at in range(4)]
    people = [replace(one, query=replace(one.query, user_id=f"u{at}")) for at, one in enumerate(people)]
    items = {item.id: item for item in ITEMS}
    training = from_pairs(items, [("somebody", item_id) for item_id in items])
    how = {"negatives": "uniform", "epochs": 3, "learning_rate": 1e-2, "rank": 4}
    tuned = tune(recommender(), people, Settings("lora", **how, questions=3), training=training)
    assert tuned.again is not None
    assert tuned.again.loss < tuned.zero_shot_loss
    worse = [replace(one, loss=99.0, losses={"": 99.0}) for one in tuned.passes[1:]]
    assert replace(tuned, passes=(tuned.passes[0], *worse)).learned
    assert not replace(tuned, again=replace(tuned.again, loss=99.0, losses={"": 99.0})).learned
    still = tune(
        recommender(), people, Settings("lora", **how | {"learning_rate": 1e-8}, questions=3), training=training
    )
    assert still.again is not None
    assert still.again.loss == pytest.approx(still.zero_shot_loss, abs=1e-4)
    assert abs(still.passes[3].loss - still.zero_shot_loss) > 1e-3, "its questions are others"
    assert tune(recommender(), people, Settings("lora", **how), training=training).again is None
