"""Metrics against hand-worked numbers, every order of tied candidates, trec_eval and scikit-learn."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from _users import USUAL, random_users, user
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.errors import DataError, FewrecError, NumericError
from fewrec_prompt.metrics import UserScores, check_metrics, metric_names, parse_metric


def value(name: str, scores: list[float], relevant: list[int], n_relevant: int | None = None) -> float:
    total = sum(relevant) if n_relevant is None else n_relevant
    return parse_metric(name)(np.array(scores, dtype=float), np.array(relevant, dtype=bool), total)


# --- by hand


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nDCG@1", 0.0),
        ("nDCG@2", (1 / math.log2(3)) / (1 + 1 / math.log2(3))),
        ("nDCG@10", (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))),
        ("nDCG", (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))),
        ("HR@1", 0.0),
        ("HR@2", 1.0),
        ("MRR", 1 / 2),
        ("MRR@1", 0.0),
        ("Recall@3", 1 / 2),
        ("Precision@3", 1 / 3),
        ("Precision@10", 2 / 10),
        ("MAP", (1 / 2 + 2 / 4) / 2),
        ("MAP@3", (1 / 2) / 2),
        ("AUC", 3 / 6),
    ],
)
def test_two_relevant_of_five_on_places_two_and_four(name: str, expected: float) -> None:
    assert value(name, [-0.5, -1.0, -2.0, -3.0, -9.0], [0, 1, 0, 1, 0]) == pytest.approx(expected, abs=1e-15)


def test_log_probabilities_count_although_they_are_negative() -> None:
    """A library that drops targets with a score of 0 or less returns 0.0 for all of these."""
    for name in (*USUAL, "Recall@1", "MAP", "AUC"):
        assert value(name, [-12.5, -0.0, -40.0], [0, 1, 0]) == 1.0
        assert value(name, [-12.5, -11.0, -40.0], [0, 1, 0]) == 1.0


def test_a_scorer_that_says_nothing_gets_what_a_random_order_gets() -> None:
    values = [value(name, [-7.0] * 20, [1] + [0] * 19) for name in USUAL]

    assert [round(100 * x, 2) for x in values[:5]] == [5.00, 14.74, 22.72, 35.20, 50.00]
    assert values[5] == pytest.approx(sum(1 / rank for rank in range(1, 21)) / 20, abs=1e-15)


def test_the_place_of_the_target_among_tied_candidates_changes_nothing() -> None:
    for name in (*USUAL, "MAP", "AUC", "Recall@5", "Precision@5"):
        assert len({value(name, [-7.0] * 20, [int(i == gold) for i in range(20)]) for gold in range(20)}) == 1


def test_a_target_that_is_no_candidate_scores_zero() -> None:
    for name in (*USUAL, "Recall@5", "Precision@5", "MAP", "AUC"):
        assert value(name, [3.0, 2.0, 1.0], [0, 0, 0], n_relevant=1) == 0.0


def test_one_of_two_targets_missing_lowers_what_depends_on_both() -> None:
    best_possible = 1 + 1 / math.log2(3)
    assert value("nDCG@10", [2.0, 1.0], [1, 0], n_relevant=2) == pytest.approx(1 / best_possible)
    assert value("nDCG@1", [2.0, 1.0], [1, 0], n_relevant=2) == 1.0
    assert value("Recall@1", [2.0, 1.0], [1, 0], n_relevant=2) == 0.5
    assert value("HR@1", [2.0, 1.0], [1, 0], n_relevant=2) == 1.0
    assert value("AUC", [2.0, 1.0], [1, 0], n_relevant=2) == 0.5


def test_nothing_relevant_is_not_a_number_rather_than_zero() -> None:
    for name in (*USUAL, "Recall@5", "Precision@5", "MAP", "AUC"):
        assert math.isnan(value(name, [2.0, 1.0], [0, 0]))


def test_auc_of_candidates_that_are_all_relevant_has_no_pair_to_compare() -> None:
    assert math.isnan(value("AUC", [2.0, 1.0], [1, 1]))


def test_no_candidates_at_all_score_zero() -> None:
    for name in (*USUAL, "Recall@5", "Precision@5", "MAP"):
        assert value(name, [], [], n_relevant=1) == 0.0


def test_a_list_shorter_than_the_depth_is_no_error() -> None:
    assert value("nDCG@20", [1.0, 2.0], [1, 0]) == pytest.approx(1 / math.log2(3))
    assert value("HR@20", [1.0, 2.0], [1, 0]) == 1.0


def test_infinite_scores_are_an_order_too() -> None:
    assert value("MRR", [-math.inf, -5.0, math.inf], [0, 1, 0]) == 0.5
    assert value("AUC", [-math.inf, -math.inf, 0.0], [0, 1, 0]) == 0.25


# --- ties: the mean over every order


def plain(name: str, ranked: list[int], n_relevant: int) -> float:
    """The textbook metric of one strict order; slow, and with nothing in common with the code under test."""
    family, _, depth = name.partition("@")
    top = ranked[: int(depth)] if depth else ranked
    places = [place for place, one in enumerate(top, 1) if one]
    if family == "nDCG":
        best = min(n_relevant, int(depth)) if depth else n_relevant
        return sum(1 / math.log2(p + 1) for p in places) / sum(1 / math.log2(p + 1) for p in range(1, best + 1))
    if family == "AUC":
        pairs = [(i, j) for i, a in enumerate(ranked) for j, b in enumerate(ranked) if a and not b]
        n_bad = len(ranked) - sum(ranked)
        return sum(i < j for i, j in pairs) / (n_relevant * n_bad) if n_bad else math.nan
    return {
        "HR": float(bool(places)),
        "MRR": 1 / places[0] if places else 0.0,
        "Recall": len(places) / n_relevant,
        "Precision": len(places) / (int(depth) if depth else len(ranked)),
        "MAP": sum(n / place for n, place in enumerate(places, 1)) / n_relevant,
    }[family]


def mean_over_orders(name: str, scores: list[int], relevant: list[int], n_relevant: int) -> float:
    orders = itertools.permutations(range(len(scores)))
    ranked = [[relevant[i] for i in sorted(order, key=lambda i: -scores[i])] for order in orders]
    return float(np.mean([plain(name, one, n_relevant) for one in ranked]))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    candidates=st.lists(st.tuples(st.integers(-2, 0), st.integers(0, 1)), min_size=1, max_size=6),
    missing=st.integers(0, 2),
    k=st.integers(1, 7),
)
def test_ties_are_the_mean_over_all_orders(candidates: list[tuple[int, int]], missing: int, k: int) -> None:
    scores, relevant = [score for score, _ in candidates], [one for _, one in candidates]
    n_relevant = sum(relevant) + missing
    names = [
        "nDCG",
        "MRR",
        "MAP",
        "AUC",
        *(f"{one}@{k}" for one in ("nDCG", "HR", "MRR", "Recall", "Precision", "MAP")),
    ]
    for name in names:
        expected = mean_over_orders(name, scores, relevant, n_relevant) if n_relevant else math.nan
        assert value(name, scores, relevant, n_relevant) == pytest.approx(expected, abs=1e-12, nan_ok=True), name


# --- other people's code on random rankings


def test_agrees_with_trec_eval_on_a_thousand_rankings() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    users = {f"u{i}": one for i, one in enumerate(random_users(1000, tied=False))}
    qrels, run = {}, {}
    for name, (scores, relevant, n_relevant) in users.items():
        qrels[name] = {f"d{i}": int(one) for i, one in enumerate(relevant)}
        qrels[name] |= {f"missing{i}": 1 for i in range(n_relevant - relevant.sum())}
        run[name] = {f"d{i}": float(score) for i, score in enumerate(scores)}
    theirs = {
        "nDCG@1": "ndcg_cut_1", "nDCG@5": "ndcg_cut_5", "nDCG@10": "ndcg_cut_10", "nDCG@20": "ndcg_cut_20",
        "nDCG": "ndcg", "HR@1": "success_1", "HR@10": "success_10", "MRR": "recip_rank", "Recall@5": "recall_5",
        "Precision@5": "P_5", "MAP": "map", "MAP@10": "map_cut_10",
    }  # fmt: skip
    asked = {"ndcg_cut.1,5,10,20", "ndcg", "success.1,10", "recip_rank", "recall.5", "P.5", "map", "map_cut.10"}
    answers = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    for ours, their in theirs.items():
        for name, one in users.items():
            assert parse_metric(ours)(*one) == pytest.approx(answers[name][their], abs=1e-9), (ours, name)


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_scikit_learn_on_a_thousand_rankings(tied: bool) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    for scores, relevant, _ in random_users(1000, tied):
        found = int(relevant.sum())
        for k in (1, 10):
            theirs = sklearn_metrics.ndcg_score([relevant.astype(int)], [scores], k=k)
            assert parse_metric(f"nDCG@{k}")(scores, relevant, found) == pytest.approx(theirs, abs=1e-9)
        if found < len(relevant):
            theirs = sklearn_metrics.roc_auc_score(relevant, scores)
            assert parse_metric("AUC")(scores, relevant, found) == pytest.approx(theirs, abs=1e-9)


def test_a_catalogue_of_tied_items_stays_exact() -> None:
    """Products of 3,706 factors: the hypergeometric chance by whole numbers is the reference."""
    scores, relevant = np.zeros(3706), np.arange(3706) < 3
    missed = math.comb(3703, 10) / math.comb(3706, 10)
    assert parse_metric("HR@10")(scores, relevant, 3) == pytest.approx(1 - missed, abs=1e-12)
    assert parse_metric("HR@3706")(scores, relevant, 3) == 1.0


# --- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", "unknown metric 'nDGC@10'.*Did you mean 'nDCG'"),
        ("ndcg@10", "Did you mean 'nDCG'"),
        ("mrr", "Did you mean 'MRR'"),
        ("nDCG@0", "depth from 1 up"),
        ("nDCG@ten", "depth from 1 up"),
        ("nDCG@-1", "depth from 1 up"),
        ("HR", "needs a depth; write e.g. 'HR@10'"),
        ("AUC@5", "takes no depth; write 'AUC'"),
    ],
)
def test_a_wrong_name_says_what_is_right(name: str, message: str) -> None:
    with pytest.raises(FewrecError, match=message):
        check_metrics([name])


def test_the_names_that_errors_list_can_all_be_written() -> None:
    for name in metric_names():
        assert parse_metric(name.replace("[", "").replace("]", "").replace("@k", "@3")).name


def test_importing_the_metrics_loads_nothing_heavy() -> None:
    code = (
        "import sys, fewrec_prompt.metrics, fewrec_prompt.significance as s; "
        "sys.exit(', '.join({'torch', 'transformers', 'evaluate', 'datasets', 'pandas'} & set(sys.modules)) or None)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


# --- what is measured


def test_scores_and_relevance_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(DataError, match=r"user u1: scores of shape \(2,\) and relevance of shape \(1,\)"):
        user([1.0, 2.0], [1])
    with pytest.raises(DataError, match="user u1: 2 relevant candidates, but n_relevant is 1"):
        user([1.0, 2.0], [1, 1], n_relevant=1)
    with pytest.raises(DataError, match=r"relevance holds \[2\]; give 0 or 1"):
        user([1.0, 2.0], [2, 0])
    with pytest.raises(DataError, match="relevance is float64"):
        UserScores("u1", np.array([1.0]), np.array([1.0]), 1)  # type: ignore[arg-type]  # what is tested


def test_a_score_that_is_not_a_number_is_refused_for_its_user() -> None:
    with pytest.raises(NumericError, match="user u1: 1 scores are not a number"):
        user([1.0, math.nan], [1, 0])
