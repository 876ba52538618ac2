"""Examples in a prompt: which are chosen, what they say, and that nobody reads their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from _tiny import FILMS

from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.demos import Demos
from fewrec_prompt.errors import ArtifactError, DataError, VerbalizerError
from fewrec_prompt.few_shot import with_demos
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.types import Demo, Interaction, Item, Query

SEEN = {"ann": "Red Door", "bob": "Red Window", "cas": "Blue Boat", "dan": "Blue Bridge", "eve": "Green Hill"}


def asked(user: str, *titles: str) -> Query:
    history = tuple(Interaction(Item(title, title)) for title in titles)
    return Query(user, history, (Item("x", "Long Road"), Item("y", "Short Road")))


POOL = tuple(Demo(asked(user, title), n % 2) for n, (user, title) in enumerate(SEEN.items()))


def people(demos: tuple[Demo, ...]) -> list[str]:
    return [demo.query.user_id for demo in demos]


def test_the_most_similar_history_is_shown_last() -> None:
    chosen = people(Demos(POOL, "similar", 2)(asked("zoe", "Blue Bridge", "Blue Sky")))
    assert chosen == ["cas", "dan"]


@pytest.mark.parametrize("how", ["random", "diverse", "similar"])
def test_nobody_is_shown_their_own_example(how: str) -> None:
    demos = Demos(POOL, how, 5)  # type: ignore[arg-type]  # one of the names
    assert len(people(demos(asked("zoe", "Red Door")))) == 5
    for user, title in SEEN.items():
        for name in (user, f"{user}#2"):
            assert user not in people(demos(asked(name, title)))


@pytest.mark.parametrize("how", ["random", "diverse"])
def test_examples_for_everybody_are_the_same_for_everybody(how: str) -> None:
    demos = Demos(POOL, how, 3)  # type: ignore[arg-type]
    assert people(demos(asked("zoe", "Red Door"))) == people(demos(asked("yan", "Blue Boat")))
    other = Demos(POOL, how, 3, seed=1)  # type: ignore[arg-type]
    assert demos.sha256 != other.sha256


def test_diverse_examples_share_no_word_while_there_are_such() -> None:
    for seed in range(10):
        chosen = people(Demos(POOL, "diverse", 3, seed)(asked("zoe", "Up")))
        assert len({SEEN[user].split()[0] for user in chosen}) == 3


@pytest.mark.parametrize(("how", "n", "pool"), [("nearest", 2, POOL), ("random", 0, POOL), ("random", 2, ())])
def test_a_choice_that_cannot_be_made_is_refused(how: str, n: int, pool: tuple[Demo, ...]) -> None:
    with pytest.raises(DataError):
        Demos(pool, how, n)  # type: ignore[arg-type]


# --- in prompts ----------------------------------------------------------------------------------------------------


def recommender(prompt: str, calibrate: str = "none") -> Recommender:
    template, reader, _ = choose(prompt, None, "none", None, None)
    calibration = Calibration.named(calibrate, 0.5, reader) if calibrate != "none" else Calibration()
    return Recommender(template, reader, ToyBackend(), FILMS, calibration)


EXAMPLES = [Example(demo.query, (demo.answer,)) for demo in POOL]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("complete", "Long Road"), ("choose", "A"), ("judge", "Yes")],
)
def test_an_example_ends_with_its_answer(prompt: str, said: str) -> None:
    shown = with_demos(recommender(prompt), EXAMPLES, "similar", 1)
    text = shown.questions(asked("zoe", "Red Door"))[0].prompt.text
    assert "Red Door" in text.split(said)[0], "the history of ann stands before her answer"
    assert f" {said}" in text
    plain = recommender(prompt).questions(asked("zoe", "Red Door"))[0].prompt.text
    assert len(text) > len(plain)


def test_judged_examples_say_no_as_well() -> None:
    text = with_demos(recommender("judge"), EXAMPLES, "random", 2).questions(asked("zoe", "Up"))[0].prompt.text
    assert text.count("Answer: Yes") == text.count("Answer: No") == 2


JUDGED = [
    Example(replace(asked(user, title), candidates=(Item(f"x{n}", f"Road {n}"),)), (0,) if n % 2 else ())
    for n, (user, title) in enumerate(SEEN.items())
]


def test_of_likes_and_dislikes_both_are_shown() -> None:
    """Ann, cas and eve did not like their road, bob and dan did: without dislikes every example said Yes."""
    text = with_demos(recommender("judge"), JUDGED, "random", 5).questions(asked("zoe", "Up"))[0].prompt.text
    for n in range(5):
        assert f"like Road {n}? Answer: {'Yes' if n % 2 else 'No'}\n" in text


@pytest.mark.parametrize(("prompt", "said"), [("complete", "- Road {}\n"), ("choose", "A. Road {}\n")])
def test_who_liked_nothing_has_no_answer_to_show_where_nothing_is_judged(prompt: str, said: str) -> None:
    shown = with_demos(recommender(prompt), JUDGED, "random", 5)
    text = shown.questions(replace(asked("zoe", "Up"), candidates=JUDGED[0].query.candidates))[0].prompt.text
    assert [said.format(n) in text.rpartition("Up")[0] for n in range(5)] == [False, True, False, True, False]


def test_examples_that_differ_in_a_dislike_are_others() -> None:
    liked, disliked = (Demos((replace(POOL[0], liked=liked),)) for liked in (True, False))
    assert liked.sha256 != disliked.sha256


def test_a_twin_is_shown_the_same_examples() -> None:
    shown = with_demos(recommender("complete", "pmi"), EXAMPLES, "similar", 2)
    backend = shown.backend
    shown.answers(asked("zoe", "Blue Boat"))
    own, twin = backend.asked[-2].prompt.text, backend.asked[-1].prompt.text
    assert own.startswith(twin.rsplit("Somebody", 1)[0])
    assert "Blue Boat" in twin, "of cas, whose example it is"


def test_examples_that_everybody_sees_are_computed_once() -> None:
    shown = with_demos(recommender("complete"), EXAMPLES, "random", 3)
    one, two = (shown.questions(asked(user, title))[0].prompt for user, title in (("zoe", "Up"), ("yan", "Heat")))
    begins = one.text[: one.n_shared]
    assert two.text.startswith(begins)
    assert begins.count("Road") == 3, "all three answers are in what is shared"


def test_rows_that_show_other_examples_share_no_answers() -> None:
    from fewrec_prompt.scoring import Row
    from fewrec_prompt.task_settings import RowSettings

    shown = with_demos(recommender("complete"), EXAMPLES, "random", 2)
    other = replace(shown, demos=Demos(POOL, "random", 2, seed=3))
    asks = {Row("x", RowSettings(prompt="complete"), one).asks for one in (shown, other, replace(shown, demos=None))}
    assert len(asks) == 3


def test_a_template_without_examples_takes_the_one_that_has_them_or_none() -> None:
    assert with_demos(recommender("complete"), EXAMPLES).template.name == "complete-demos"
    with pytest.raises(ArtifactError, match="news-complete-demos"):
        with_demos(recommender("news-complete"), EXAMPLES)


def test_a_kind_without_words_for_examples_says_so() -> None:
    shown = replace(recommender("channel"), demos=Demos(POOL, "random", 1))
    with pytest.raises(VerbalizerError, match="'channel' has no words for examples"):
        shown.questions(asked("zoe", "Up"))
