"""A template, a verbalizer and a model rank candidates: what fits is asked, what comes back is all of them in order."""

import json
from dataclasses import replace

import pytest
from _tiny import FILMS, TITLES, model, query, tokenizer

import fewrec_prompt
from fewrec_prompt import templates
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.errors import BudgetError, DataError, FewrecError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.types import Item, Query, Ranking

MODE = NumericMode(precision="fp32", reason="a test", device="cpu")


def recommender(prompt="complete", backend=None, **settings):
    template, verbalizer, _ = choose(prompt, None, "none", None, None)
    return Recommender(template, verbalizer, backend or ToyBackend(), FILMS, **settings)


@pytest.fixture(scope="module")
def tiny():
    return CausalBackend(model(n_words=len(tokenizer())), tokenizer(), MODE)


# --- from titles -----------------------------------------------------------------------------------------------------


def test_titles_are_enough_and_the_likeliest_comes_first():
    made = recommender(backend=ToyBackend({"Up": 0.5, "Alien": 0.2}, default=0.1))

    ranking = made.rank(history=["Heat (1995)"], candidates=["Alien", "Brat", "Up"])

    assert ranking.item_ids == ("Up", "Alien", "Brat")
    assert ranking.n_history == 1
    assert isinstance(ranking, fewrec_prompt.types.Ranking)


@pytest.mark.parametrize(
    ("history", "candidates", "says"),
    [
        ([], ["Up"], "the history is empty; give at least one title"),
        (["Heat"], [], "the list of candidates is empty"),
        (["Heat"], ["Up", "Alien", "Up"], "candidate 'Up' is given more than once"),
        ("Heat", ["Up"], "the history is the text 'Heat'; give a list of titles"),
        (["Heat"], "Up", "the list of candidates is the text 'Up'"),
        (["Heat", " \n"], ["Up"], "title 2 of the history is empty"),
        (["Heat"], ["Up", ""], "title 2 of the list of candidates is empty"),
    ],
)
def test_input_that_is_empty_repeated_or_no_list_is_refused(history, candidates, says):
    with pytest.raises(DataError, match=says):
        recommender().rank(history=history, candidates=candidates)


def test_a_query_and_titles_together_are_refused():
    with pytest.raises(DataError, match="not both"):
        recommender().rank(query(), candidates=["Up"])


def test_unknown_names_are_refused_before_any_model_is_looked_for():
    for names in ({"prompt": "complet"}, {"verbalizer": "titel"}, {"calibrate": "pmo"}):
        with pytest.raises(FewrecError, match="Did you mean"):
            Recommender.load("no-such-model", **names)


# --- the ranking -----------------------------------------------------------------------------------------------------


def test_a_ranking_prints_and_becomes_a_dict_and_a_table():
    ranking = Ranking.from_scores(query(candidates=("Alien", "Up")), (-2.0, -1.5))

    assert str(ranking).splitlines() == ["1     -1.500  Up", "2     -2.000  Alien"]
    assert json.loads(json.dumps(ranking.to_dict()))["items"][0] == {
        "rank": 1,
        "item_id": "i-Up",
        "title": "Up",
        "score": -1.5,
    }
    assert ranking.to_pandas().to_dict("list") == {
        "rank": [1, 2],
        "item_id": ["i-Up", "i-Alien"],
        "title": ["Up", "Alien"],
        "score": [-1.5, -2.0],
    }


def test_ties_stand_in_an_order_that_depends_on_the_ids_alone():
    asked = query(candidates=TITLES)
    orders = {
        Ranking.from_scores(replace(asked, candidates=asked.candidates[n:] + asked.candidates[:n]), [0.0] * 7).item_ids
        for n in range(7)
    }

    assert len(orders) == 1
    assert orders != {tuple(sorted(item.id for item in asked.candidates))}  # nor is it the alphabet


@pytest.mark.parametrize("prompt", ["complete", "judge"])
def test_the_order_of_candidates_changes_no_score(prompt, tiny):
    made, asked = recommender(prompt, tiny, calibration=Calibration("pmi", 0.6)), query(candidates=TITLES[2:])
    turned = replace(asked, candidates=asked.candidates[::-1])

    one, other = made.rank(asked), made.rank(turned)

    assert one.item_ids == other.item_ids
    assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_scores_stand_in_the_order_of_the_candidates_for_every_shipped_template(tiny):
    for prompt in ("choose", "judge", "complete"):
        made, asked = recommender(prompt, tiny), query(candidates=TITLES[2:])
        scores = made.scores(made.answers(asked))
        ranking = made.rank(asked)

        best = max(range(len(scores)), key=lambda place: scores[place])
        assert ranking.items[0] == asked.candidates[best]
        assert sorted(ranking.item_ids) == sorted(item.id for item in asked.candidates)


# --- what fits -------------------------------------------------------------------------------------------------------


def long_query(n):
    return query(history=tuple(f"Film{place}" for place in range(n)), candidates=("Alien", "Up"))


@pytest.mark.parametrize("n_fitting", [1, 2, 17, 39, 40])
def test_history_is_cut_oldest_first_and_what_was_kept_is_counted(n_fitting):
    """Each item takes two words, "-" and the title: the window is what the prompt with `n_fitting` items needs."""
    made = recommender()
    window = made.backend.n_tokens(recommender().questions(long_query(n_fitting))[0])
    made = recommender(backend=ToyBackend(context_window=window))

    ranking = made.rank(long_query(40))

    assert ranking.n_history == n_fitting
    shown = [
        line.removeprefix("- ") for line in str(made.backend.asked[0].prompt).splitlines() if line.startswith("- ")
    ]
    assert shown == [f"Film{place}" for place in range(40 - n_fitting, 40)]


def test_a_prompt_that_does_not_fit_with_one_item_is_an_error_and_nothing_is_asked():
    made = recommender(backend=ToyBackend(context_window=10))

    with pytest.raises(BudgetError, match=r"user 'u1': the prompt does not fit 10 tokens even with one history item"):
        made.rank(long_query(40))
    assert made.backend.asked == []


def test_the_longest_candidate_has_to_fit_too(tiny):
    asked = query(history=TITLES * 2, candidates=("Up", "A " * 60))
    window = replace_window(tiny, 220)
    made = recommender(backend=window)

    ranking = made.rank(asked)

    assert 1 <= ranking.n_history < 14
    assert all(window.n_tokens(question) <= 220 for question in made.questions(asked))


def replace_window(backend, window):
    made = CausalBackend(backend.model, tokenizer(), MODE)
    made.context_window = window
    return made


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_calibration_asks_the_twin_and_nothing_else_does(tiny):
    asked = query()

    assert recommender(backend=tiny).answers(asked).twins == ()
    assert len(recommender(backend=tiny, calibration=Calibration("pmi", 0.6)).answers(asked).twins) == 1


def test_the_work_of_a_query_is_what_the_model_computes(tiny):
    made, asked = recommender(backend=tiny), query()
    tiny.engine.forget()
    seen = []
    hook = tiny.model.model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )

    made.ask(asked)
    hook.remove()

    assert sum(seen) == made.work(asked)


def test_a_shipped_template_works_without_history_for_its_twin():
    for name in ("choose", "judge", "complete"):
        template = templates.load(name)
        item = Item("1", "Up")
        prompt = template.render(Query("u", (), (item,)), FILMS, item=item, labels=("A",))
        assert "Film" not in str(prompt)
        assert str(prompt).strip()


# --- the embedded model ----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_model_prefers_the_sequel_and_packs_exactly(smollm2):
    made = Recommender.load("smollm2-135m", prompt="complete", precision="fp32")
    history, candidates = (
        ["Star Wars (1977)", "The Empire Strikes Back (1980)"],
        ["Return of the Jedi (1983)", "Fargo (1996)"],
    )

    ranking = made.rank(history=history, candidates=candidates)

    assert ranking.item_ids[0] == candidates[0]
    assert made.backend.mode.layout == "packed"
    plain = CausalBackend(
        made.backend.model, made.backend.tokens._tokenizer, replace(made.backend.mode, layout="plain")
    )
    slow = replace(made, backend=plain).rank(history=history, candidates=candidates)
    assert slow.scores == pytest.approx(ranking.scores, abs=1e-4)
