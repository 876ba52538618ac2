"""What a calibration takes out of scores, with numbers worked out by hand; and what each costs in questions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from _tiny import FILMS, query

from fewrec_prompt import templates, verbalizers
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.calibration import Calibration, priors, twin
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.types import Interaction, Item, Query
from fewrec_prompt.verbalizers import Choose, Complete

approx = pytest.approx
TITLE = Complete(kind="complete", description="")
LETTERS = Choose(kind="choose", description="", labels=("A", "B", "C"))


SAID = {"Heat ?": 0.2, "?": 0.1, "N/A ?": 0.4, "[MASK] ?": 0.8}  # probability of "Heat", by what was asked


class Remembering(ToyBackend):
    """Finds "Heat" likelier after a history that holds it, and likelier still after one that says nothing."""

    def logprobs(self, questions, *, grad=False):
        for question in questions:
            self.probabilities["Heat"] = SAID[str(question.prompt)]
            yield from super().logprobs([question])


@pytest.fixture
def recommender(tmp_path):
    """A recommender that scores titles after a prompt of the history and a question mark."""

    def made(**settings):
        path = tmp_path / "t.jinja"
        head = 'kind = "complete"\ndescription = ""\nsource = ""\nverbalizer = "x"\nend = " ."'
        path.write_text(f"{{#\n{head}\n#}}\n{{% for x in history %}}{{{{ x.title }}}} {{% endfor %}}?")
        backend = Remembering({"Up": 0.3, ".": 0.5})
        return Recommender(templates.read(path), TITLE, backend, FILMS, **settings)

    return made


HEAT = query(history=("Heat",), candidates=("Heat", "Up"))


def scores(recommender, asked=HEAT):
    return recommender.scores(recommender.answers(asked))


# --- twins -------------------------------------------------------------------------------------------------------


def test_pmi_subtracts_alpha_times_what_is_said_without_history(recommender):
    """Heat: log .2 − α log .1; Up: log .3 both times; the end costs log .5 both times."""
    made = recommender(calibration=Calibration("pmi", 0.6))

    assert scores(made) == approx(
        [math.log(0.2 * 0.5) - 0.6 * math.log(0.1 * 0.5), math.log(0.3 * 0.5) - 0.6 * math.log(0.3 * 0.5)]
    )
    assert [str(question.prompt) for question in made.backend.asked] == ["Heat ?", "?"]


def test_contextual_subtracts_the_mean_over_histories_that_say_nothing(recommender):
    """Heat after nothing, N/A and [MASK]: .1, .4, .8, on the geometric mean 0.032 to the power of a third."""
    made = recommender(calibration=Calibration("contextual", 1.0))

    expected = math.log(0.2) - math.log(0.1 * 0.4 * 0.8) / 3

    assert scores(made) == approx([expected, 0.0], abs=1e-9)
    assert [str(question.prompt) for question in made.backend.asked] == ["Heat ?", "?", "N/A ?", "[MASK] ?"]


@pytest.mark.parametrize("name", ["pmi", "contextual"])
def test_another_alpha_costs_no_question(recommender, name):
    made = recommender(calibration=Calibration(name, 0.6))
    answers = made.answers(HEAT)
    asked = len(made.backend.asked)

    by_alpha = [replace(made, calibration=Calibration(name, alpha)).scores(answers) for alpha in (0.0, 0.6, 1.2)]

    assert len(made.backend.asked) == asked
    assert by_alpha[1] == approx((by_alpha[0] + by_alpha[2]) / 2)
    assert by_alpha[0] == approx(scores(recommender()))


def test_alpha_zero_and_no_calibration_agree(recommender):
    assert scores(recommender()).tolist() == scores(recommender(calibration=Calibration("pmi", 0.0))).tolist()
    assert not recommender().calibration.needs_twin


def test_the_twin_keeps_user_and_candidates_and_knows_no_history():
    asked = query()

    assert twin(asked) == replace(asked, history=())


def test_a_neutral_twin_has_the_fields_of_an_item_and_nothing_of_what_they_say():
    seen = Interaction(Item("1", "Heat", (("genres", "Crime"), ("year", 1995))), rating=5.0, time=1.0)
    asked = Query("u", (seen, seen), ())

    (neutral,) = twin(asked, "N/A").history

    assert neutral == Interaction(Item("N/A", "N/A", (("genres", "N/A"), ("year", 1995))))


# --- what other users say ----------------------------------------------------------------------------------------


def user(user_id, *candidates):
    return Query(user_id, (), tuple(Item(name, name) for name in candidates))


def test_batch_subtracts_how_an_item_does_with_the_other_users():
    """Differences from the mean of the list: ann x +1, y −1; bob y +2, x −2; cem x +3, z −3.

    For ann, x is worth (−2 + 3 + 0) / 3 to the others and one who says nothing, y is worth (2 + 0) / 2; nobody but cem
    was asked about z.
    """
    queries = [user("ann", "x", "y"), user("bob", "y", "x"), user("cem", "x", "z")]
    scores = [np.array([5.0, 3.0]), np.array([4.0, 0.0]), np.array([7.0, 1.0])]

    found = priors("batch", scores, queries)

    assert found[0] == approx([1 / 3, 2 / 2])
    assert found[1] == approx([-1 / 2, (1 + 3) / 3])
    assert found[2] == approx([(1 - 2) / 3, 0.0])


def test_position_subtracts_how_a_place_does_with_the_other_users():
    """The first place: ann +1, bob +2, cem 0; the second −1, −2, −1; only cem has a third: +1."""
    queries = [user("ann", "x", "y"), user("bob", "v", "w"), user("cem", "a", "b", "c")]
    scores = [np.array([5.0, 3.0]), np.array([4.0, 0.0]), np.array([2.0, 1.0, 3.0])]

    found = priors("position", scores, queries)

    assert found[0] == approx([(2 + 0) / 3, (-2 - 1) / 3])
    assert found[1] == approx([(1 + 0) / 3, (-1 - 1) / 3])
    assert found[2] == approx([(1 + 2) / 3, (-1 - 2) / 3, 0.0])


def test_position_takes_out_what_a_place_is_worth_and_batch_what_an_item_is_worth():
    """Many users, whose scores are the worth of the item and of the place: each calibration leaves the other one."""
    rng = np.random.default_rng(0)
    by_place, by_item = np.array([3.0, 0.0, -3.0]), {"a": 1.0, "b": 0.0, "c": -1.0}
    queries = [user(f"u{at}", *rng.permutation(list(by_item))) for at in range(600)]
    scores = [by_place + [by_item[item.id] for item in one.candidates] for one in queries]

    placed = [own - prior for own, prior in zip(scores, priors("position", scores, queries), strict=True)]
    batched = [own - prior for own, prior in zip(scores, priors("batch", scores, queries), strict=True)]

    # the worths are estimated from 600 users, to about .1
    worths = [[by_item[item.id] for item in one.candidates] for one in queries]
    assert all(own == approx(worth, abs=0.25) for own, worth in zip(placed, worths, strict=True))
    assert all(own == approx(by_place, abs=0.25) for own in batched)


def test_nobody_else_means_that_nothing_is_subtracted():
    for name in ("batch", "position"):
        assert priors(name, [np.array([2.0, 1.0])], [user("ann", "x", "y")])[0].tolist() == [0.0, 0.0]


def test_one_user_alone_is_not_ranked_by_what_others_say(recommender):
    made = recommender(calibration=Calibration("batch", 1.0))

    with pytest.raises(VerbalizerError, match="'batch' needs the answers of many users; rank them together in a task"):
        made.rank(HEAT)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "alpha", "says"), [("pmo", 1, "Did you mean 'pmi'"), ("pmi", math.nan, "alpha is nan")]
)
def test_a_calibration_that_means_nothing_is_refused(name, alpha, says):
    with pytest.raises(VerbalizerError, match=says):
        Calibration.named(name, alpha)


@pytest.mark.parametrize(
    ("name", "verbalizer", "says"),
    [
        ("position", "title", "'position' is for prompts of kind 'choose' in one order"),
        ("position", "letters-balanced", "'position' is for prompts of kind 'choose' in one order"),
        ("pmi", "pair", "'pmi' asks a twin of every question, and 'pairwise' here asks by what was answered"),
        ("contextual", "letters-settled", "'contextual' asks a twin of every question, and 'choose' here asks"),
        ("pmi", "history", "'pmi' asks without history, and the history is what kind 'channel' asks for"),
    ],
)
def test_a_calibration_that_has_nothing_to_work_on_is_refused(name, verbalizer, says):
    with pytest.raises(VerbalizerError, match=says):
        Calibration.named(name, None, verbalizers.load(verbalizer))


def test_twins_weigh_what_the_verbalizer_says_and_other_calibrations_one():
    title = verbalizers.load("title")

    assert [Calibration.named(name, None, title).alpha for name in ("pmi", "contextual", "batch")] == [0.5, 0.5, 1.0]
    assert Calibration.named("none", None, title) == Calibration()
