"""Metrics against hand-worked numbers, every order of tied candidates, trec_eval and scikit-learn."""

from __future__ import annotations

import itertools
import math
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.errors import DataError, FewrecError, NumericError
from fewrec_prompt.metrics import UserScores, check_metrics, finding, measure, metric_names, parse_metric

ISSUE = ["nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "HR@10", "MRR"]


def value(name: str, scores: list[float], relevant: list[int], n_relevant: int | None = None) -> float:
    total = sum(relevant) if n_relevant is None else n_relevant
    return parse_metric(name)(np.array(scores, dtype=float), np.array(relevant, dtype=bool), total)


def user(scores: list[float], relevant: list[int], n_relevant: int | None = None, user_id: str = "u1") -> UserScores:
    return UserScores.from_lists(user_id, scores, relevant, sum(relevant) if n_relevant is None else n_relevant)


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
    for name in (*ISSUE, "Recall@1", "MAP", "AUC"):
        assert value(name, [-12.5, -0.0, -40.0], [0, 1, 0]) == 1.0
        assert value(name, [-12.5, -11.0, -40.0], [0, 1, 0]) == 1.0


def test_a_scorer_that_says_nothing_gets_what_a_random_order_gets() -> None:
    values = [value(name, [-7.0] * 20, [1] + [0] * 19) for name in ISSUE]

    assert [round(100 * x, 2) for x in values[:5]] == [5.00, 14.74, 22.72, 35.20, 50.00]
    assert values[5] == pytest.approx(sum(1 / rank for rank in range(1, 21)) / 20, abs=1e-15)


def test_the_place_of_the_target_among_tied_candidates_changes_nothing() -> None:
    for name in (*ISSUE, "MAP", "AUC", "Recall@5", "Precision@5"):
        assert len({value(name, [-7.0] * 20, [int(i == gold) for i in range(20)]) for gold in range(20)}) == 1


def test_a_target_that_is_no_candidate_scores_zero() -> None:
    for name in (*ISSUE, "Recall@5", "Precision@5", "MAP", "AUC"):
        assert value(name, [3.0, 2.0, 1.0], [0, 0, 0], n_relevant=1) == 0.0


def test_one_of_two_targets_missing_lowers_what_depends_on_both() -> None:
    best_possible = 1 + 1 / math.log2(3)
    assert value("nDCG@10", [2.0, 1.0], [1, 0], n_relevant=2) == pytest.approx(1 / best_possible)
    assert value("nDCG@1", [2.0, 1.0], [1, 0], n_relevant=2) == 1.0
    assert value("Recall@1", [2.0, 1.0], [1, 0], n_relevant=2) == 0.5
    assert value("HR@1", [2.0, 1.0], [1, 0], n_relevant=2) == 1.0
    assert value("AUC", [2.0, 1.0], [1, 0], n_relevant=2) == 0.5


def test_nothing_relevant_is_not_a_number_rather_than_zero() -> None:
    for name in (*ISSUE, "Recall@5", "Precision@5", "MAP", "AUC"):
        assert math.isnan(value(name, [2.0, 1.0], [0, 0]))


def test_auc_of_candidates_that_are_all_relevant_has_no_pair_to_compare() -> None:
    assert math.isnan(value("AUC", [2.0, 1.0], [1, 1]))


def test_no_candidates_at_all_score_zero() -> None:
    for name in (*ISSUE, "Recall@5", "Precision@5", "MAP"):
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


def random_users(n: int, tied: bool) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    rng = np.random.default_rng(20)
    for _ in range(n):
        size = int(rng.integers(2, 60))
        # whole negative numbers: trec_eval keeps scores in 32 bits, in which close ones would tie
        scores = rng.integers(-4, 0, size) if tied else -1.0 - rng.permutation(size)
        relevant = rng.random(size) < rng.choice([0.05, 0.3, 0.7])
        relevant[rng.integers(size)] = True
        yield scores.astype(float), relevant, int(relevant.sum() + rng.integers(0, 3))


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


# --- through evaluate


@pytest.fixture(scope="module")
def modules_cache() -> Iterator[Path]:
    """evaluate without network, its copies of metrics in a folder of these tests."""
    import evaluate

    folder = Path(evaluate.config.HF_MODULES_CACHE)  # of this test session: conftest.py
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def script(folder: Path, name: str, features: str, body: str, top: str = "import evaluate\nimport datasets") -> str:
    """A user's metric in a folder of its name; returns the path of the folder."""
    (folder / name).mkdir()
    code = f"""
        class Mine(evaluate.Metric):
            def _info(self):
                return evaluate.MetricInfo(description="", citation="", inputs_description="",
                                           features=datasets.Features({{{features}}}))

            def _compute(self, **columns):
                {body}
    """
    (folder / name / f"{name}.py").write_text(f"{top}\n{textwrap.dedent(code)}")
    return str(folder / name)


FLOATS = '"predictions": datasets.Value("float32"), "references": datasets.Value("int32")'
WHOLE = '"predictions": datasets.Value("int32"), "references": datasets.Value("int32")'
LISTS = '"predictions": datasets.List(datasets.Value("float64")), "references": datasets.List(datasets.Value("int8"))'
ACCURACY = (
    'same = [a == b for a, b in zip(columns["predictions"], columns["references"])]; '
    'return {"accuracy": sum(same) / len(same)}'
)


def test_one_value_per_user_in_order() -> None:
    users = [user([2.0, 1.0], [1, 0]), user([2.0, 1.0, 0.5], [0, 1, 0]), user([1.0], [0]), user([1.0], [0], 1)]

    values = measure(["MRR", "HR@1", "MRR"], users)

    assert list(values) == ["MRR", "HR@1"]
    np.testing.assert_array_equal(values["MRR"], [1.0, 0.5, np.nan, 0.0])
    np.testing.assert_array_equal(values["HR@1"], [1.0, 0.0, np.nan, 0.0])


def test_nobody_to_measure_is_an_error() -> None:
    with pytest.raises(DataError, match="no user"):
        measure(["MRR"], [])


def test_what_goes_through_evaluate_is_what_is_measured(tmp_path: Path) -> None:
    """No rounding to 32 bits on the way: scores that differ in the 15th digit do not tie."""
    from fewrec_prompt.metrics.ranking_metrics.ranking_metrics import RankingMetrics

    users = [UserScores(f"u{i}", *one) for i, one in enumerate(random_users(50, tied=True))]
    users.append(user([-1.0, -1.0 + 1e-15], [0, 1]))

    through = RankingMetrics(keep_in_memory=True, cache_dir=str(tmp_path), seed=0).compute(
        predictions=[one.scores for one in users],
        references=[one.relevant.astype(np.int64) for one in users],
        n_relevant=[one.n_relevant for one in users],
        metrics=ISSUE,
    )

    values = measure(ISSUE, users)
    for name in ISSUE:
        np.testing.assert_array_equal(
            values[name], [parse_metric(name)(one.scores, one.relevant, one.n_relevant) for one in users]
        )
        np.testing.assert_array_equal(values[name], through["per_user"][name])
    assert values["nDCG@1"][-1] == 1.0


def test_our_module_loads_by_its_folder_as_any_metric_of_evaluate(modules_cache: Path) -> None:
    import evaluate

    module = evaluate.load(str(Path(finding.__file__).parent / "ranking_metrics"), keep_in_memory=True)

    answer = module.compute(predictions=[[-1.0, -2.0], [-3.0], [-4.0]], references=[[0, 1], [1], [0]], metrics=["MRR"])
    assert answer["MRR"] == 0.75
    assert answer["per_user"]["MRR"][:2] == [0.5, 1.0]
    assert math.isnan(answer["per_user"]["MRR"][2])

    answer = module.compute(predictions=[[1.0]], references=[[0]], metrics=["MRR"], n_relevant=[1])
    assert answer == {"MRR": 0.0, "per_user": {"MRR": [0.0]}}


def test_a_users_metric_of_scores_works_by_path(modules_cache: Path, tmp_path: Path) -> None:
    features = '"prediction_scores": datasets.Value("float64"), "references": datasets.Value("int32")'
    body = 'return {"roc_auc": roc_auc_score(columns["references"], columns["prediction_scores"])}'
    top = "import evaluate\nimport datasets\nfrom sklearn.metrics import roc_auc_score"
    path = script(tmp_path, "my_auc", features, body, top)
    users = [user([-1.0, -2.0, -3.0], [0, 1, 0]), user([-1.0, -1.0, -3.0], [1, 0, 0]), user([-1.0], [0], 1)]

    values = measure(["AUC", path, path + "/my_auc.py"][:2], users)

    np.testing.assert_allclose(values["my_auc"], [0.5, 0.75, np.nan])
    assert list(values) == ["AUC", "my_auc"]
    assert list(measure([path + "/my_auc.py"], users)) == ["my_auc"]


def test_a_metric_of_decisions_gets_the_best_scored_candidate(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "my_accuracy", WHOLE, ACCURACY)
    values = measure([path], [user([-1.0, -2.0, -3.0], [1, 0, 0]), user([-1.0, -2.0, -3.0], [0, 0, 1])])
    np.testing.assert_allclose(values["my_accuracy"], [1.0, 1 / 3])


def test_decisions_between_tied_candidates_count_at_their_expectation(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "tied_accuracy", WHOLE, ACCURACY)
    values = measure(
        [path], [user([-1.0] * 4, [0, 0, 1, 0]), user([-1.0] * 2, [1, 1]), user([-1.0, -1.0, -2], [0, 0, 1])]
    )
    np.testing.assert_allclose(values["tied_accuracy"], [1 / 4 * 1 + 3 / 4 * 2 / 4, 1 / 2, 1 / 3])


def test_a_metric_that_takes_lists_gets_one_user_at_a_time(modules_cache: Path, tmp_path: Path) -> None:
    body = 'return {"n": len(columns["predictions"]) * 10 + len(columns["predictions"][0])}'
    path = script(tmp_path, "sizes", LISTS, body)
    np.testing.assert_array_equal(measure([path], [user([1.0, 2.0], [1, 0]), user([1.0], [1])])["sizes"], [12.0, 11.0])


def test_several_numbers_become_several_metrics_and_curves_are_left_out(modules_cache: Path, tmp_path: Path) -> None:
    body = 'return {"low": min(columns["predictions"]), "n": len(columns["references"]), "curve": [1, 2]}'
    path = script(tmp_path, "several", FLOATS, body)
    values = measure([path], [user([1.0, 2.0], [1, 0]), user([5.0], [0], 1)])
    np.testing.assert_array_equal(values["several.low"], [1.0, np.nan])
    np.testing.assert_array_equal(values["several.n"], [2.0, np.nan])
    assert list(values) == ["several.low", "several.n"]


def test_the_first_inputs_that_fit_are_used(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "options", FLOATS, 'return {"options": sum(columns["predictions"])}')
    file = Path(path) / "options.py"
    texts = 'datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})'
    file.write_text(
        file.read_text().replace("features=datasets", f"features=[{texts}, datasets").replace("}))", "})])")
    )
    assert measure([path], [user([0.25, 0.5], [1, 0])])["options"] == [0.75]


@pytest.mark.parametrize(
    ("features", "declared"),
    [
        ('"predictions": datasets.Value("string"), "references": datasets.Value("string")', r"string"),
        ('"predictions": datasets.Value("int32")', r"\{predictions: "),
        ('"sources": datasets.Value("float32"), ' + FLOATS, r"\{sources: "),
        ('"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int32")', "List"),
    ],
)
def test_inputs_that_do_not_fit_are_named(modules_cache: Path, tmp_path: Path, features: str, declared: str) -> None:
    path = script(tmp_path, "unfit", features, "return {}")
    with pytest.raises(FewrecError, match=f"metric 'unfit' does not fit: it declares .*{declared}.*It can be given"):
        check_metrics([path])


def test_a_metric_that_fails_names_the_user(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "failing", FLOATS, 'raise ZeroDivisionError("of its own")')
    with pytest.raises(FewrecError, match=r"metric 'failing' failed for user u7: ZeroDivisionError: of its own"):
        measure([path], [user([1.0], [1], user_id="u7")])


def test_a_metric_without_a_number_is_refused(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "curves", FLOATS, 'return {"curve": [1, 2]}')
    with pytest.raises(FewrecError, match=r"metric 'curves' returned no number for user u1, but \{'curve'"):
        measure([path], [user([1.0], [1])])


@pytest.mark.parametrize(
    ("top", "cause"),
    [
        ("import datasets, evaluate", "ImportError"),
        ("import evaluate\nimport datasets\nimport no_such_package_at_all", "no_such_package_at_all"),
        ("from evaluate import Metric\nimport evaluate\nimport datasets", "NotImplementedError"),
        ("import evaluate\nimport datasets\ndef (", "SyntaxError"),
    ],
)
def test_a_script_that_evaluate_cannot_load_says_why(modules_cache: Path, tmp_path: Path, top: str, cause: str) -> None:
    path = script(tmp_path, "broken", FLOATS, "return {}", top)
    with pytest.raises(FewrecError, match=f"broken.py: cannot be loaded as a metric: .*{cause}") as error:
        check_metrics([path])
    assert "one import a line" in str(error.value)


def test_two_metrics_of_one_name_are_refused(modules_cache: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [script(tmp_path / folder, "same", FLOATS, 'return {"x": 1}') for folder in ("a", "b")]
    with pytest.raises(FewrecError, match="two metrics are called 'same'"):
        check_metrics(paths)
    with pytest.raises(FewrecError, match="two metrics are called 'MRR'"):
        check_metrics(["MRR", script(tmp_path, "MRR", FLOATS, 'return {"x": 1}')])


def test_an_installed_package_brings_a_metric(
    modules_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path, "brought", FLOATS, 'return {"x": sum(columns["predictions"])}')
    info = tmp_path / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fewrec_prompt.metrics]\nour_sum = brought:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(path)
    assert measure(["our_sum"], [user([1.0, 2.0], [1, 0])])["our_sum"] == [3.0]


def test_a_path_that_is_not_there_is_not_looked_for_on_a_hub() -> None:
    for name in ("./no_such_metric", "someone/metric", "no_such_metric.py"):
        with pytest.raises(FewrecError, match="there is no such script or folder here"):
            check_metrics([name])


def test_a_folder_without_a_script_of_its_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(FewrecError, match=f"that folder holds no {tmp_path.name}.py"):
        check_metrics([str(tmp_path)])


def test_a_name_offline_says_that_the_hub_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FewrecError, match=r"none of ours.*Did you mean 'MRR'.*not in evaluate's cache, and HF_HUB_OFFLINE"
    ):
        check_metrics(["MRRR"])


def test_a_hub_that_refuses_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(FewrecError, match=r"metric 'some_metric'.*127\.0\.0\.1:\d+ cannot be reached"):
            check_metrics(["some_metric"])


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(finding, "PROBE_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(FewrecError, match=r"did not answer within 0\.1 s|timed out"):
            check_metrics(["some_metric"])


def test_a_metric_that_evaluate_has_cached_works_without_the_hub(modules_cache: Path, tmp_path: Path) -> None:
    path = script(tmp_path, "seen_before", WHOLE, ACCURACY)
    cached = modules_cache / "evaluate_modules" / "metrics" / "evaluate-metric--seen_before" / ("a" * 64)
    cached.mkdir(parents=True)
    for folder in (cached, *cached.parents[:3]):
        (folder / "__init__.py").touch()
    (Path(path) / "seen_before.py").rename(cached / "seen_before.py")

    assert measure(["seen_before"], [user([2.0, 1.0], [1, 0])])["seen_before"] == [1.0]


def test_loading_a_metric_leaves_evaluates_settings_as_they_were(modules_cache: Path, tmp_path: Path) -> None:
    import evaluate

    before = evaluate.config.HF_EVALUATE_OFFLINE, evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS
    check_metrics([script(tmp_path, "harmless", FLOATS, 'return {"x": 1}')])
    after = evaluate.config.HF_EVALUATE_OFFLINE, evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS
    assert after == before


def test_a_modules_cache_that_cannot_be_written_is_named(
    modules_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evaluate

    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "file" / "below")
    path = script(tmp_path, "homeless", FLOATS, 'return {"x": 1}')
    with pytest.raises(FewrecError, match=r"NotADirectoryError.*HF_MODULES_CACHE: that folder must be writable"):
        check_metrics([path])
    assert measure(["MRR"], [user([1.0], [1])])["MRR"] == [1.0]
