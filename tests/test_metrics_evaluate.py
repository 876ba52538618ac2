"""Metrics of the evaluate library, and of people: by path, by name, from packages, and what is said where they fail."""

from __future__ import annotations

import math
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _users import USUAL, random_users, user

from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.metrics import UserScores, check_metrics, finding, measure, parse_metric


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
        metrics=USUAL,
    )

    values = measure(USUAL, users)
    for name in USUAL:
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
