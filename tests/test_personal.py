"""One new person: what is learnt is small, used only where it helps, and everybody's recommender stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _tiny import FILMS, TITLES
from test_tuning import recommender

from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.given import taken_of
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import personal
from fewrec_prompt.tuning.personal import adapt_user
from fewrec_prompt.types import Interaction, Item, Query

CATALOGUE = [f"Film {n}" for n in range(30)]


def toy(calibrate: str = "none") -> Recommender:
    """A model to which all films are alike, but for their length."""
    template, reader, calibration = choose("complete", None, calibrate, None, None)
    return Recommender(template, reader, ToyBackend(), FILMS, calibration)


def test_who_takes_long_titles_gets_them_first() -> None:
    """The model prefers short titles; this person took eight long ones. The weight of the length turns round."""
    long = [f"The Very Long And Winding Road {n}" for n in range(8)]
    mine = adapt_user(toy(), long, CATALOGUE)
    assert mine.helped
    assert mine.loss < mine.zero_shot_loss
    seen = tuple(Interaction(Item(title, title)) for title in long)
    query = Query("x", seen, (Item("a", "Up"), Item("b", "The Very Long And Winding Road 9")))
    assert toy().rank(query).item_ids == ("a", "b")
    assert mine.ranker.rank(query).item_ids == ("b", "a")
    assert 0 < mine.n_bytes <= 64 * 1024


def test_what_does_not_help_is_thrown_away() -> None:
    """Long titles at first, a short one in the end: what was learnt is wrong for what came next."""
    history = [*(f"The Very Long And Winding Road {n}" for n in range(5)), "Up"]
    start = toy()
    mine = adapt_user(start, history, [f"A Long Film Of Number {n}" for n in range(30)])
    assert not mine.helped
    assert mine.ranker is start
    assert mine.n_bytes == 0
    assert mine.loss >= mine.zero_shot_loss


@pytest.mark.parametrize("n", [1, 2])
def test_with_too_little_to_learn_and_test_everybodys_stays(n: int) -> None:
    start = toy()
    mine = adapt_user(start, CATALOGUE[:n], CATALOGUE)
    assert not mine.helped
    assert mine.ranker is start
    assert np.isnan(mine.loss)


def test_the_latest_is_never_learnt_from() -> None:
    items = [Item(title, title) for title in CATALOGUE]
    questions = personal._questions(items[:8], items, 0)
    assert len(questions) == personal.MOST_LEARNT + 1
    others = []
    for at, question in enumerate(questions):
        answer = question.query.candidates[question.relevant[0]]
        assert answer == items[2 + at]
        assert [seen.item for seen in question.query.history] == items[: 2 + at]
        others.append({item.id for item in question.query.candidates} - {answer.id})
        assert not others[-1] & set(CATALOGUE[:8]), "nothing that they took"
    assert all(own == others[0] for own in others[:-1]), "titles that stand in every question are asked once"
    assert not others[-1] & others[0], "nothing was learnt of the others that test it"


def test_a_recommender_may_know_its_catalogue(smollm2: Path) -> None:
    known = replace(toy(), catalogue=tuple(Item(title, title) for title in CATALOGUE))
    long = [f"The Very Long And Winding Road {n}" for n in range(8)]
    assert known.adapt_user(long).loss == toy().adapt_user(long, CATALOGUE).loss
    assert known.adapt_user(long).helped
    start = Recommender.load(str(smollm2), catalogue=["Heat", Item("7", "Up")], precision="fp32")
    assert start.catalogue == (Item("Heat", "Heat"), Item("7", "Up"))
    assert start.top_k(["Ronin"], k=1).ranking == start.top_k(["Ronin"], ["Heat", Item("7", "Up")], 1).ranking


def test_a_soft_prompt_of_ones_own_is_small() -> None:
    start = recommender()
    films = [*TITLES, *(f"Film {n}" for n in range(12))]
    mine = start.adapt_user(TITLES[:4], films, method="soft-prompt")
    assert mine.n_bytes in (0, 4 * 32 * personal.TOKENS)
    assert mine.helped == (mine.ranker is not start)


def test_a_wide_model_gets_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit the bytes that a person's own weights may take."""
    monkeypatch.setattr(personal, "MOST_BYTES", 3 * 32 * 4)
    asked = personal._questions([Item(one, one) for one in TITLES[:4]], [Item(one, one) for one in CATALOGUE], 0)
    *_, n_bytes = personal._soft_prompt(recommender(), asked, (), 0)
    assert n_bytes == 3 * 32 * 4


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(DataError, match="the catalogue has 3 items that this person did not take; 12 are needed"):
        adapt_user(toy(), CATALOGUE[:4], CATALOGUE[:7])
    with pytest.raises(DataError, match="no catalogue is known; give one here, or once"):
        adapt_user(toy(), CATALOGUE[:4])
    known = replace(toy(), catalogue=tuple(Item(title, title) for title in CATALOGUE))
    with pytest.raises(DataError, match="the catalogue is empty"):
        adapt_user(known, CATALOGUE[:4], [])
    with pytest.raises(DataError, match="item 'Film 0' stands twice in the catalogue"):
        adapt_user(toy(), CATALOGUE[:4], [*CATALOGUE, *CATALOGUE])
    with pytest.raises(DataError, match="the history is the text 'Heat'"):
        adapt_user(toy(), "Heat", CATALOGUE)
    with pytest.raises(FewrecError, match="unknown method 'lora' for one person"):
        adapt_user(toy(), CATALOGUE[:4], CATALOGUE, method="lora")  # type: ignore[arg-type]  # that is the point


def test_titles_of_a_history_are_the_items_that_the_catalogue_calls_so() -> None:
    """Else a person would be asked about things that they took, as if they were others."""
    catalogue = [Item(f"id {n}", title) for n, title in enumerate(CATALOGUE)]
    assert taken_of(catalogue, CATALOGUE[:3]) == tuple(catalogue[:3])
    assert taken_of(catalogue, ["Unknown", catalogue[1]]) == (Item("Unknown", "Unknown"), catalogue[1])
    with pytest.raises(DataError, match=r"2 items of the catalogue are called 'Film 0' \(id 0, again\)"):
        taken_of([*catalogue, Item("again", "Film 0")], CATALOGUE[:1])
    found = adapt_user(toy(), CATALOGUE[:8], catalogue)
    assert found.zero_shot_loss == adapt_user(toy(), catalogue[:8], catalogue).zero_shot_loss
