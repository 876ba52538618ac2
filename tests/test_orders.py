"""Candidates shown together: windows of them, orders of them, and sorting by comparing a few."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from _tiny import FILMS, query

from fewrec_prompt import templates, verbalizers
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.recommender import Recommender, check_trains, next_groups
from fewrec_prompt.verbalizers import Choose, Pairwise, Setwise
from fewrec_prompt.verbalizers.choose import merged, windows

approx = pytest.approx


def choosing(labels="ABCD", **settings):
    return Choose(kind="choose", description="", labels=tuple(labels), **settings)


def of(n):
    return query(candidates=tuple(f"c{at}" for at in range(n)))


def said(groups, worth):
    """What a model answers that chooses by Luce's rule: log p of each label, as rows of one token."""
    rows = []
    for group in groups:
        logits = np.array([worth[place] for place in group])
        rows.append(tuple((logits - np.log(np.exp(logits).sum()))[:, None]))
    return rows


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 5, 26])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 19, 53])
def test_windows_hold_every_candidate_and_each_shares_half_with_the_next(n, size):
    made = windows(tuple(range(n)), size)

    assert {place for group in made for place in group} == set(range(n))
    assert all(len(group) <= size for group in made)
    assert all(len(set(one) & set(other)) == size // 2 for one, other in pairwise(made))


def test_two_windows_agree_on_what_both_hold():
    """Places 1 and 2 stand in both: −2 and −4 there, −1 and −2 here; so the second window is shifted by −1.5."""
    rows = [tuple(np.array([p]) for p in ps) for ps in ((-1.0, -2.0, -4.0), (-1.0, -2.0, -3.0))]

    assert merged([(0, 1, 2), (1, 2, 3)], rows) == approx([-1.0, (-2 - 2.5) / 2, (-4 - 3.5) / 2, -4.5])


def test_windows_of_a_model_that_chooses_by_worth_are_merged_into_the_order_of_worth():
    worth = np.random.default_rng(0).normal(size=40)
    verbalizer = choosing()
    groups = windows(tuple(range(40)), 4)

    scores = verbalizer.read(said(groups, worth), of(40))

    assert scores - scores.mean() == approx(worth - worth.mean())


def test_windows_train_like_anything_else():
    groups = windows(tuple(range(7)), 4)
    rows = said(groups, np.arange(7.0))
    tensors = [tuple(torch.tensor(row, requires_grad=True) for row in group) for group in rows]

    learned = choosing().read(tensors, of(7))
    learned.log_softmax(-1)[0].backward()

    assert learned.detach().numpy() == approx(choosing().read(rows, of(7)))
    assert all(torch.isfinite(row.grad).all() for group in tensors for row in group)


# --- orders ------------------------------------------------------------------------------------------------------


def test_orders_are_the_given_one_and_others_that_all_differ_by_user_and_round():
    orders = choosing(orders=6).orders_of(of(5))
    other_user = choosing(orders=6).orders_of(query(candidates=tuple("vwxyz")).__class__("u2", (), of(5).candidates))

    assert orders[0] == (0, 1, 2, 3, 4)
    assert len(set(orders)) == 6
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders[1:] != other_user[1:]
    assert orders == choosing(orders=6).orders_of(of(5))
    assert orders != choosing(orders=6, seed=1).orders_of(of(5))


def test_more_orders_begin_with_the_fewer_and_end_where_there_are_no_more():
    assert choosing(orders=8).orders_of(of(5))[:3] == choosing(orders=3).orders_of(of(5))
    assert sorted(choosing(orders=100).orders_of(of(3))) == sorted(
        {(a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3}
    )


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_balanced_orders_put_every_candidate_on_every_place_once(n):
    orders = choosing(orders="balanced").orders_of(of(n))

    assert [sorted(column) for column in zip(*orders, strict=True)] == [list(range(n))] * n


def test_a_model_that_looks_at_the_place_alone_says_nothing_over_balanced_orders():
    by_place = tuple(np.array([p]) for p in (-1.0, -2.0, -3.0))

    assert choosing(orders="balanced").read([by_place] * 3, of(3)) == approx([-2.0] * 3)


def test_scores_of_orders_are_a_mean_by_candidate():
    """The second order shows c1 first: its −1 belongs to c1."""
    verbalizer = choosing(orders=2)
    assert verbalizer.orders_of(of(2)) == [(0, 1), (1, 0)]
    rows = [tuple(np.array([p]) for p in ps) for ps in ((-3.0, -2.0), (-1.0, -5.0))]

    assert verbalizer.read(rows, of(2)) == approx([(-3 - 5) / 2, (-2 - 1) / 2])


def rounds_until_done(verbalizer, asked, answer):
    """(groups of each round, scores) when every round is answered."""
    rounds, log, seen = verbalizer.rounds(asked), [], []
    groups = next_groups(rounds)
    while groups:
        seen.append(groups)
        rows = answer(groups)
        log += rows
        groups = next_groups(rounds, rows)
    return seen, verbalizer.read(log, asked)


def test_orders_stop_when_the_first_places_stay_as_they_were():
    worth = [0.0, 3.0, 1.0, 2.0]
    seen, scores = rounds_until_done(choosing(orders=8, settled=2), of(4), lambda groups: said(groups, worth))

    assert len(seen) == 2  # the second says what the first said
    assert np.argsort(-scores).tolist() == [1, 3, 2, 0]


def test_orders_that_never_settle_end_at_the_most_that_may_be_asked():
    flips = iter(range(100))

    def answer(groups):
        at = next(flips)
        return said(groups, [0.0, 10.0 * (-2) ** at, 0.0, 0.0])

    seen, scores = rounds_until_done(choosing(orders=5, settled=1), of(4), answer)

    assert len(seen) == 5
    assert np.isfinite(scores).all()


def test_settling_compares_orders():
    with pytest.raises(ValueError, match="`settled` compares orders"):
        choosing(settled=3)
    with pytest.raises(VerbalizerError, match="ask for more than 1"):
        verbalizers.with_orders(choosing(orders=4, settled=3), 1)


# --- sorting -----------------------------------------------------------------------------------------------------

PAIR = Pairwise(kind="pairwise", description="", labels=("A", "B"), top=99, max_questions=9999)


def sets(size, **settings):
    labels = tuple("ABCDEFG"[:size])
    return Setwise(
        **({"kind": "setwise", "description": "", "labels": labels, "top": 99, "max_questions": 9999} | settings)
    )


@pytest.mark.parametrize("verbalizer", [PAIR, *(sets(size) for size in (2, 3, 4, 7))], ids=lambda one: str(one.labels))
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_comparing_sorts(verbalizer, n):
    worth = np.random.default_rng(n).normal(size=n)

    _, scores = rounds_until_done(verbalizer, of(n), lambda groups: said(groups, worth))

    assert sorted(scores.tolist()) == list(range(1, n + 1))
    assert np.argsort(-scores).tolist() == np.argsort(-worth).tolist()


def test_a_pair_is_asked_in_both_orders_and_never_twice():
    worth = [1.0, 3.0, 0.0, 2.0]
    seen, _ = rounds_until_done(PAIR, of(4), lambda groups: said(groups, worth))

    assert all(one == other[::-1] for one, other in seen)
    pairs = [frozenset(one) for one, _ in seen]
    assert len(set(pairs)) == len(pairs) <= len(list(combinations(range(4), 2)))


def test_a_model_that_always_names_the_first_changes_no_order_of_pairs():
    """Both orders together say nothing, so what stood first stays first: the order given is the ranking."""
    first = tuple(np.array([p]) for p in (-0.1, -3.0))

    _, scores = rounds_until_done(PAIR, of(5), lambda groups: [first] * len(groups))

    assert scores.tolist() == [5, 4, 3, 2, 1]


def test_a_pass_brings_the_best_to_the_first_place():
    """One pass over six, three at a time: places 3–5, then 1–3, then 0–1; two candidates a step move up."""
    seen, scores = rounds_until_done(sets(3, top=1), of(6), lambda groups: said(groups, [0, 1, 2, 3, 4, 5]))

    assert seen == [[(3, 4, 5)], [(1, 2, 5)], [(0, 5)]]
    assert scores.tolist() == [5, 4, 3, 2, 1, 6]


@pytest.mark.parametrize("most", [1, 2, 7, 20])
@pytest.mark.parametrize("verbalizer", [PAIR, sets(3), sets(4, orders=4)], ids=lambda one: f"{one.kind} {one.orders}")
def test_no_more_questions_are_asked_than_may_be_and_the_ranking_is_whole(verbalizer, most):
    bounded = verbalizer.model_copy(update={"max_questions": most})

    seen, scores = rounds_until_done(bounded, of(9), lambda groups: said(groups, np.arange(9.0)))

    assert sum(map(len, seen)) <= most
    assert sorted(scores.tolist()) == list(range(1, 10))


def test_a_recommender_sorts_by_asking(tmp_path):
    """A is likelier whatever stands beside it, so both orders tie and nothing moves; what was compared is known."""
    path = tmp_path / "t.jinja"
    path.write_text(
        '{#\nkind = "pairwise"\ndescription = ""\nsource = ""\nverbalizer = "x"\n#}\n'
        "{% for x in candidates %}{{ x.label }} {{ x.title }} {% endfor %}?"
    )
    backend = ToyBackend({"A": 0.6, "B": 0.3})

    ranking = Recommender(templates.read(path), PAIR, backend, FILMS).rank(of(3))

    assert [item.title for item in ranking.items] == ["c0", "c1", "c2"]
    assert str(backend.asked[0].prompt) == "A c1 B c2 ?"
    assert str(backend.asked[1].prompt) == "A c2 B c1 ?"
    assert len(backend.asked) == 2 * 2
    assert math.isfinite(sum(ranking.scores))


@pytest.mark.parametrize(
    ("name", "calibration", "says"),
    [
        ("pair", "none", "kind 'pairwise' that asks by what was answered before cannot be trained through"),
        ("set", "none", "kind 'setwise' that asks"),
        ("letters-settled", "none", "kind 'choose' that asks"),
        ("title", "batch", "calibration 'batch' takes the answers of all users and cannot be trained through"),
    ],
)
def test_what_cannot_be_trained_through_is_refused_by_name(name, calibration, says):
    with pytest.raises(VerbalizerError, match=says):
        check_trains(verbalizers.load(name), Calibration(calibration, 1.0))
    check_trains(verbalizers.load("letters-balanced"), Calibration("pmi", 1.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kind = "pairwise"\ndescription = ""\nlabels = ["A", "B", "C"]', "labels: a pair takes two labels, not 3"),
        ('kind = "setwise"\ndescription = ""\nlabels = ["A"]', "labels: comparing takes two labels at least"),
        (
            'kind = "setwise"\ndescription = ""\nlabels = ["A", "B"]\nmax_questions = 0',
            "max_questions: Input should be",
        ),
        ('kind = "choose"\ndescription = ""\nlabels = ["A", "B"]\norders = "all"', "orders"),
    ],
)
def test_what_cannot_compare_is_refused_with_its_line(tmp_path, text, says):
    (tmp_path / "mine.toml").write_text(text)

    with pytest.raises(VerbalizerError, match=says):
        verbalizers.load(str(tmp_path / "mine.toml"))
