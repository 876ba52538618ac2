"""A mix learns what is to be learnt from many people, and leaves a good prior alone where people are few."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fewrec_prompt.errors import DataError
from fewrec_prompt.tuning import mix
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.mix import Mix, fit
from fewrec_prompt.types import Item, Query

PRIOR = {"sum": 1.0, "twin": -0.5}


def example(user: int, relevant: tuple[int, ...], n: int = 20) -> Example:
    return Example(Query(f"u{user}", (), tuple(Item(f"i{at}", f"T{at}") for at in range(n))), relevant)


def people(n: int, truth: dict[str, float], seed: int = 0, n_candidates: int = 20):
    """People who choose by a softmax over a weighted sum of features, in units as different as nats and tokens."""
    rng = np.random.default_rng(seed)
    units = {"sum": 12.0, "twin": 10.0, "tokens": 3.0, "judge score": 0.2}
    examples, logged = [], []
    for user in range(n):
        features = {name: unit * rng.standard_normal(n_candidates) + 7 for name, unit in units.items()}
        scores = sum(truth.get(name, 0.0) / units[name] * column for name, column in features.items())
        shares = np.exp(scores - scores.max())
        examples.append(example(user, (int(rng.choice(n_candidates, p=shares / shares.sum())),), n_candidates))
        logged.append(features)
    return examples, logged


# --- fitting -----------------------------------------------------------------------------------------------------


def test_one_weight_is_where_the_slope_is_zero_worked_out_by_hand():
    """Two candidates whose feature differs by 2: three people take the better one, one the other.

    Centred, the feature is ±1, and its deviation 1. With a weight w from a start s the loss is
    4 log(1 + e^(−2w)) + 2w + λ/2 (w − s)², so at its least λ (w − s) = 8 / (1 + e^(2w)) − 2.
    """
    examples = [example(user, (0 if user else 1,), n=2) for user in range(4)]
    problem, spread = mix._problem(examples, [{"x": np.array([3.0, 1.0])}] * 4, ["x"])
    assert spread.tolist() == [1.0]

    (free,) = mix._fitted(problem, np.array([0.1]), np.array(1e-12))
    (pulled,) = mix._fitted(problem, np.array([0.1]), np.array(5.0))

    assert free == pytest.approx(math.log(3) / 2)
    assert 5.0 * (pulled - 0.1) == pytest.approx(8 / (1 + math.exp(2 * pulled)) - 2)


@pytest.mark.parametrize("names", ["abcdefg", "abbbcad", "aaaaaaa"])
def test_a_person_left_out_is_left_out_as_if_never_asked(names: str):
    """With all questions of the own; where they are all of one person, question by question."""
    examples, logged = people(7, {"sum": 1.0, "tokens": -2.0})
    called = [f"{name}#{n}" for n, name in enumerate(names)]
    examples = [
        replace(one, query=replace(one.query, user_id=name)) for one, name in zip(examples, called, strict=True)
    ]
    problem, _ = mix._problem(examples, logged, list(logged[0]))
    start = np.array([0.5, -0.2, 0.0, 0.0])

    pull, n_people = np.array(3.0), problem.whose.max() + 1
    together = mix._fitted(problem, start, pull)
    left_out = mix._left_out(problem, start[None], np.repeat(pull, n_people), together)

    whose = np.array([*names] if len(set(names)) > 1 else [*map(str, range(7))])
    for place in range(7):
        others = whose != whose[place]
        rest = mix._Problem(problem.features[others], problem.targets[others], problem.there[others], np.zeros(0, int))
        alone = problem.losses(mix._fitted(rest, start, pull)[None])[0, place]
        assert left_out[place] == pytest.approx(alone, abs=1e-4)
    assert np.abs(left_out - problem.losses(together[None])[0]).max() > 0.1, "it makes a difference"


def test_what_many_people_go_by_is_found_in_the_units_of_the_features():
    examples, logged = people(256, {"sum": 1.0, "tokens": -1.5, "judge score": 1.0})

    found = fit(examples, logged, PRIOR)

    weights = dict(zip(found.names, found.weights, strict=True))
    assert found.prior_share < 1e-6
    assert found.loss < found.prior_loss - 0.2
    assert weights["tokens"] / weights["sum"] == pytest.approx((-1.5 / 3) / (1 / 12), rel=0.25)
    assert weights["judge score"] / weights["sum"] == pytest.approx((1 / 0.2) / (1 / 12), rel=0.35)


def test_four_people_cost_a_prior_that_is_right_next_to_nothing_and_free_weights_cost_it_much():
    """Over people who were not learnt from: how many candidates stand before the answer, of 19."""
    truth = {"sum": 1.0, "twin": -0.5 * 10 / 12}
    asked, log = people(200, truth, seed=99)
    prior, learnt, free = [], [], []
    for seed in range(10):
        examples, logged = people(4, truth, seed)
        found = fit(examples, logged, PRIOR)
        problem, spread = mix._problem(examples, logged, list(logged[0]))
        loose = mix._fitted(problem, np.zeros(4), np.array(0.01)) / spread
        for scores, into in ((found.weights, learnt), (loose, free), ((1.0, -0.5, 0.0, 0.0), prior)):
            into.append(np.mean([places(one, scores, features) for one, features in zip(asked, log, strict=True)]))
    assert np.mean(learnt) < np.mean(prior) + 0.4
    assert np.mean(free) > np.mean(prior) + 1.0


def places(example: Example, weights, features) -> int:
    """How many candidates stand before the answer."""
    scores = sum(weight * column for weight, column in zip(weights, features.values(), strict=True))
    return int((scores > scores[example.relevant[0]]).sum())


def test_four_who_contradict_a_prior_do_not_turn_it_around_by_its_scale():
    examples, logged = people(4, {"sum": -3.0}, seed=1)
    problem, spread = mix._problem(examples, logged, list(logged[0]))

    (scale,), of_others = mix._scales(problem, np.array([1.0, 0.0, 0.0, 0.0]) * spread)

    assert scale == pytest.approx(min(mix.SCALES))
    assert of_others.tolist() == pytest.approx([min(mix.SCALES)] * 4)


def test_a_priors_scale_is_what_it_is_worth_to_the_others():
    """Of eight people one contradicts the rest, who would be surer without."""
    examples, logged = people(8, {"sum": 3.0}, seed=1)
    problem, spread = mix._problem(examples, logged, list(logged[0]))
    unit = np.array([1.0, 0.0, 0.0, 0.0]) * spread / problem.deviation(np.array([1.0, 0.0, 0.0, 0.0]) * spread)

    _, of_others = mix._scales(problem, unit)

    for place in range(8):
        rest = [at for at in range(8) if at != place]
        alone, _ = mix._problem([examples[at] for at in rest], [logged[at] for at in rest], list(logged[0]))
        alone = replace(alone, features=problem.features[rest])  # in the units that all have
        assert mix._scales(alone, unit)[0].item() == of_others[place]
    assert len(set(of_others.tolist())) > 1


def test_a_prior_that_tells_nobody_apart_has_no_say_and_no_weight_without_bounds():
    """Sixteen who all like what they know are asked about things of which nothing is known: one column for all."""
    film = Item("1", "Film")
    examples = [Example(Query(f"u{n}", (), (film,)), (0,) if n % 2 else ()) for n in range(16)]
    logged = [
        {"row": np.array([2.0 if n % 2 else 1.0]), "history": np.array([5.0]), "effect": np.zeros(1)} for n in range(16)
    ]
    flat = {"history": 0.25, "effect": 1.0}

    both, alone, only = (fit(examples, logged, *priors) for priors in (({"row": 1.0}, flat), ({"row": 1.0},), (flat,)))

    assert both.weights == alone.weights
    assert both.weights[0] > 0
    assert max(map(abs, both.weights + only.weights)) < 100
    one = fit(examples[:1], logged[:1], {"row": 1.0}, flat)
    assert one.weights[0] > 0, "from one answer the row ranks as it did"
    assert max(map(abs, one.weights)) < 100


def test_few_people_who_contradict_a_prior_do_not_overrule_it():
    """The prior is right of everybody else: with four of whom it is not, almost all of its order stays."""
    contrary, their = people(4, {"sum": -3.0, "tokens": 3.0}, seed=1)
    asked, log = people(200, {"sum": 3.0}, seed=2)

    found = fit(contrary, their, PRIOR)

    prior = np.mean([places(one, (1.0, -0.5, 0.0, 0.0), own) for one, own in zip(asked, log, strict=True)])
    learnt = np.mean([places(one, found.weights, own) for one, own in zip(asked, log, strict=True)])
    assert learnt < prior + 1.0


def test_ways_count_by_what_they_foretell_and_priors_begin_with_half():
    """Losses over all people that differ by log 4: a quarter of the say. Two priors have it by halves."""
    level = mix._shares(np.full(6, 10.0))
    behind = mix._shares(np.array([10.0 + math.log(4), 10.0, *[1000.0] * 4]))
    assert mix._shares(np.full(12, 10.0)) == pytest.approx([0.25, *[0.05] * 5] * 2)

    assert level == pytest.approx([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert behind[:2] == pytest.approx([0.125 / 0.225, 0.1 / 0.225])
    assert behind[2:].max() < 1e-6


def test_of_two_priors_the_one_that_foretells_is_believed():
    """And which of them is named first does not matter."""
    truth = {"sum": 1.0, "tokens": -1.5}
    examples, logged = people(64, truth)
    wrong = {"sum": -1.0, "twin": 0.5}

    alone, both = fit(examples, logged, truth), fit(examples, logged, wrong, truth)
    turned = fit(examples, logged, truth, wrong)

    assert both.weights == pytest.approx(alone.weights, rel=0.02)
    assert both.weights == pytest.approx(turned.weights, rel=1e-9)
    assert both.prior_loss > turned.prior_loss == pytest.approx(alone.prior_loss)
    assert both.loss < fit(examples, logged, wrong).loss


def test_what_all_candidates_of_a_person_share_changes_nothing():
    examples, logged = people(32, {"sum": 1.0, "tokens": -1.5})
    rng = np.random.default_rng(3)
    moved = [{name: column + 1000 * rng.random() for name, column in features.items()} for features in logged]

    assert fit(examples, moved, PRIOR).weights == pytest.approx(fit(examples, logged, PRIOR).weights, rel=1e-6)


def test_a_feature_that_never_differs_gets_no_weight_and_does_no_harm():
    examples, logged = people(32, {"sum": 1.0, "tokens": -1.5})
    more = [features | {"constant": np.full(20, 3.0)} for features in logged]

    found, without = fit(examples, more, PRIOR), fit(examples, logged, PRIOR)

    assert dict(zip(found.names, found.weights, strict=True))["constant"] == 0.0
    assert found.weights[:4] == pytest.approx(without.weights)


def test_lists_of_different_lengths_and_several_answers_are_fitted_together():
    one, logged_one = people(20, {"sum": 1.0})
    short, logged_short = people(20, {"sum": 1.0}, seed=1, n_candidates=5)
    several = [example(99, (0, 3), 5)]

    found = fit([*one, *short, *several], [*logged_one, *logged_short, logged_short[0]], PRIOR)

    assert found.n_users == 41
    assert all(map(math.isfinite, found.weights))


def test_the_same_people_give_the_same_bits():
    examples, logged = people(16, {"sum": 1.0, "tokens": -1.5})
    assert fit(examples, logged, PRIOR) == fit(examples, logged, PRIOR)


# --- refusing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e, f: ([], [], PRIOR), "there is nobody to learn from"),
        (lambda e, f: (e, f, {"sum": 1.0, "twins": -0.5}), "the prior weighs 'twins', which is none of the features"),
        (lambda e, f: (e, f, {"sum": 0.0}), "the prior weighs nothing"),
        (lambda e, f: (e, f, PRIOR, {"sum": 0.0}), "the prior weighs nothing"),
        (lambda e, f: (e, f), "the prior weighs nothing"),
        (lambda e, f: ([example(0, ()), *e[1:]], f, PRIOR), "user 'u0': 0 of 20 candidates are right"),
        (lambda e, f: (e, [{"sum": f[0]["sum"]}, *f[1:]], {"sum": 1.0}), "features are sum, twin, tokens, judge score"),
        (lambda e, f: (e, [{f"f{n}": one["sum"] for n in range(17)} for one in f], {"f0": 1.0}), "17 features"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(change, says):
    examples, logged = people(4, {"sum": 1.0})
    with pytest.raises(DataError, match=says):
        fit(*change(examples, logged))


# --- keeping -----------------------------------------------------------------------------------------------------


def test_a_mix_is_arrays_and_json_and_comes_back_the_same():
    examples, logged = people(8, {"sum": 1.0})
    found = fit(examples, logged, PRIOR)

    arrays, meta = found.to_tensors()

    assert {name: array.dtype for name, array in arrays.items()} == {"weights": np.float64}
    assert Mix.from_tensors(arrays, json.loads(json.dumps(meta, allow_nan=False))) == found


def test_weights_that_are_too_few_for_their_names_are_refused():
    meta = {
        "names": ["sum", "twin"],
        "prior_share": 1.0,
        "strength": None,
        "loss": 1.0,
        "prior_loss": 1.0,
        "n_users": 4,
    }
    with pytest.raises(DataError, match="a mix of 2 features needs as many finite weights"):
        Mix.from_tensors({"weights": np.array([1.0])}, meta)


def test_effects_come_back_too_and_have_to_be_finite():
    found = Mix(("item effect",), (1.0,), 1.0, math.inf, 2.0, 2.0, 4, {"heat": 0.25})
    arrays, meta = found.to_tensors()
    meta = json.loads(json.dumps(meta))
    assert Mix.from_tensors(arrays, meta) == found
    with pytest.raises(DataError, match="the effect of item 'heat' is nan, and not finite"):
        Mix.from_tensors(arrays, meta | {"effects": {"heat": math.nan}})


def test_features_of_another_row_are_refused():
    found = Mix(("sum",), (1.0,), 1.0, math.inf, 2.0, 2.0, 4)
    with pytest.raises(DataError, match="features are judge score, but the mix is one of sum"):
        found.scores({"judge score": np.zeros(3)})
