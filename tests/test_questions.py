"""Many questions a person, of one candidate each: measured over all people and person by person, learnt from by row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _tiny import save_model

from fewrec_prompt import artifacts, cells, tasks, templates
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.baselines import BASELINES
from fewrec_prompt.cells import ZERO, Cell, read_cell, statistic, write_cell
from fewrec_prompt.cli.console import print_table
from fewrec_prompt.curve import curve
from fewrec_prompt.curve_table import left_out, shown, table
from fewrec_prompt.data.registered import add
from fewrec_prompt.data.training import from_pairs
from fewrec_prompt.errors import DataError, FewrecError, RunError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.few_shot import recommender_of, tune_task
from fewrec_prompt.metrics import Shelf, UserScores, measure_run
from fewrec_prompt.mixing import tune_mix
from fewrec_prompt.rendering import Render
from fewrec_prompt.shots import check_apart, shots_of
from fewrec_prompt.significance import Bootstrapped
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.effects import key_of
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.mix import fit
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
BOTH = ("pooled-AUC", "user-AUC")
USERS = ("a", "a#2", "b", "b#2", "b#3", "c")
LIKED = ((0,), (), (0,), (), (), (0,))


def cell(method: str, scores: list[float], shots: int = 0) -> Cell:
    """Three people: two questions of one, three of another, and one who liked all that was asked."""
    rows = tuple((score,) for score in scores)
    return Cell(method, shots, 0, USERS, {}, 0, 0.0, 1.0, scores=rows, relevant=LIKED)


# --- measures


def test_both_kinds_of_auc_worked_out_by_hand() -> None:
    """a: 2 over 1. b: 5 over 4, under 6. c: liked, 3. Over all, 2 3 5 are liked and 1 4 6 not: 1 + 1 + 2 of 9 pairs."""
    one = cell(ZERO, [2, 1, 5, 4, 6, 3])
    pooled, own = (statistic(one, name) for name in BOTH)
    assert pooled.value == pytest.approx(4 / 9)
    assert own.value == pytest.approx((1 + 1 / 2) / 2)
    assert (pooled.n_excluded, own.n_excluded) == (0, 1)
    assert pooled.of(np.array([0.0, 2.0, 0.0])) == pytest.approx(1 / 2), "a person drawn twice counts twice, with all"


def test_a_run_is_grouped_by_person_and_says_who_has_no_value() -> None:
    users = [
        UserScores(name, np.array([score]), np.array([bool(liked)]), len(liked))
        for name, score, liked in zip(USERS, [2.0, 1, 5, 4, 6, 3], LIKED, strict=True)
    ]
    found = measure_run(BOTH, users, Shelf())
    assert len(found["pooled-AUC"].left_out) == 3
    interval = found["user-AUC"].interval()
    assert (interval.value, interval.n_users, interval.n_excluded) == (pytest.approx(3 / 4), 2, 1)


def test_people_are_drawn_with_all_their_questions() -> None:
    """Of two people one has pairs that are all right, one that are all wrong: draws give 0, 1/2 or 1, no others."""
    mean = Bootstrapped.of(lambda weights: float(weights[0] / weights.sum()), 2, seed=0)
    assert set(np.round(mean.drawn, 12)) == {0.0, 0.5, 1.0}
    assert np.bincount((2 * mean.drawn).astype(int)) / len(mean.drawn) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (mean.interval().low, mean.interval().high) == (0.0, 1.0)
    level = mean - mean
    assert (level.value, level.interval().low, level.interval().high) == (0.0, 0.0, 0.0), "paired: drawn alike"


def test_the_table_has_both_metrics_and_compares_with_a_baseline() -> None:
    still = [cell(ZERO, [2, 1, 5, 4, 6, 3]), cell("share-liked", [1, 1, 2, 2, 2, 3])]
    lines = table([*still, cell("lora", [9, 1, 8, 2, 3, 7], shots=4)], BOTH, 0, "share-liked")
    assert [(line.method, line.metric) for line in lines[-2:]] == [("lora", "pooled-AUC"), ("lora", "user-AUC")]
    share = (0.5 + 0 + 0 + 1 + 0.5 + 0.5 + 3) / 9  # liked 1 2 3 against 1 2 2
    assert lines[-2].value == 1.0
    assert lines[-2].difference == pytest.approx(1 - share)
    assert lines[2].difference == 0.0, "the row that is compared with"
    assert shown(lines[2], "share-liked")[6] == "–"
    assert left_out(lines) == ["user-AUC: 1 of 3 people have no value and are left out"]


def test_a_cell_is_read_as_it_was_written_and_a_metric_it_lacks_is_an_error(tmp_path: Path) -> None:
    one = replace(cell(ZERO, [2, 1, 5, 4, 6, 3]), values={"log-loss": (1.0, 2.0, 0.5, 0.5, 0.5, 3.0)})
    write_cell(tmp_path / "zero.json", one)
    assert read_cell(tmp_path / "zero.json") == one
    assert statistic(one, "log-loss").value == pytest.approx(7.5 / 6)
    with pytest.raises(RunError, match=r"does not hold MRR; remove it"):
        statistic(one, "MRR")
    with pytest.raises(FewrecError, match="'coverage@5' is of a whole run"):
        cells.check_told(["coverage@5"])


def test_cells_from_before_there_were_scores_give_the_table_they_gave() -> None:
    folder = ROOT / "bench" / "few_shot" / "movielens-100k"
    old = {(line["method"], line["shots"]): line for line in json.loads((folder / "curve.json").read_text())["lines"]}
    for line in table([read_cell(path) for path in (folder / "cells").iterdir()], ["nDCG@10"], 0):
        for name in ("value", "low", "high", "difference", "difference_low", "difference_high"):
            assert getattr(line, name) == pytest.approx(old[line.method, line.shots][name], abs=1e-12)


def test_settings_that_came_later_leave_older_headers_as_they_are() -> None:
    header = json.loads((ROOT / "bench" / "few_shot" / "movielens-100k" / "study.json").read_text())
    settings = tasks.load_task(artifacts.shipped_folder("eval") / "movielens-100k.toml").settings
    assert settings.model_dump(mode="json")["data"] == header["settings"]["data"]


# --- the shortcut


def test_share_liked_is_the_mean_rating_of_the_history() -> None:
    films = [Item(str(n), f"Film {n}") for n in range(4)]
    rated = tuple(Interaction(film, rating) for film, rating in zip(films, (5.0, 1.0, 5.0), strict=False))
    ranker = BASELINES.load("share-liked")(from_pairs({film.id: film for film in films}, []), 0)
    assert ranker.rank(Query("u", rated, (films[3],))).scores == pytest.approx([11 / 3])
    with pytest.raises(DataError, match="user 'u': no history item has a rating"):
        ranker.rank(Query("u", (Interaction(films[0]),), (films[3],)))


def test_a_mix_of_likes_and_dislikes_is_a_logistic_regression_off_the_mean() -> None:
    """x is 1 for three who liked and one who did not, −1 the other way round: the odds at 1 are 3, so w is log 3."""
    film = Item("1", "Film")
    marks = [(1.0, True)] * 3 + [(1.0, False)] + [(-1.0, False)] * 3 + [(-1.0, True)]
    examples = [Example(Query(f"u{n}", (), (film,)), (0,) if liked else ()) for n, (_, liked) in enumerate(marks * 40)]
    logged = [{"x": np.array([x + 7]), "none": np.array([2.0])} for x, _ in marks * 40]
    made = fit(examples, logged, {"x": 1.0})
    assert dict(zip(made.names, made.weights, strict=True))["x"] == pytest.approx(np.log(3), rel=0.05)


# --- rows that a protocol has drawn


TASK = """metrics = ["pooled-AUC", "user-AUC"]
baselines = ["share-liked"]
[data]
dataset = "films"
file = "rows-{part}.parquet"
form = "labelled"
parts = { test = "valid", selection = "train" }
draws = "draws.parquet"
[[rows]]
prompt = "films-judge-tallrec"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven films; 40 rows of ten people to learn from, nine of four people to test, of whom one is in both."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "films"
    made.mkdir()
    (made / "items.csv").write_text("item_id,title\n" + "".join(f"{n},Film {n} (1990)\n" for n in range(7)))
    pairs = [(user, (user + place) % 7, place) for user in range(13) for place in range(4)]
    taken = "".join(f"u{user},{item},{place + 1},{1_500_000_000 + place}\n" for user, item, place in pairs)
    (made / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + taken)
    write_rows(made / "rows-train.parquet", [f"u{n % 10}" for n in range(40)])
    write_rows(made / "rows-valid.parquet", [f"u{9 + n % 4}" for n in range(9)])
    draws = {"seed": [0, 0, 1], "k": [4, 8, 8], "train_rows": [[11, 9, 2, 21], [11, 9, 2, 21, 31, 4, 14, 0], [7] * 8]}
    pq.write_table(pa.table(draws), made / "draws.parquet")
    add("films", made)
    (tmp_path / "mine.toml").write_text(TASK)
    return made


def write_rows(path: Path, users: list[str]) -> None:
    n = len(users)
    columns = {
        "user_id": users,
        "history": [["0", "1", "2"]] * n,
        "history_label": [[at % 2, 1, int(at % 3 == 0)] for at in range(n)],
        "target": [str(3 + at % 4) for at in range(n)],
        "label": [int(at % 3 > 0) for at in range(n)],
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model", max_position_embeddings=1024)


def task_of(model: Path) -> tasks.Task:
    return Options(model=str(model)).applied(tasks.load_task("mine.toml"))


@pytest.mark.usefixtures("folder")
def test_drawn_rows_are_learnt_from_in_their_order_and_other_people_are_held_out() -> None:
    task = tasks.load_task("mine.toml")
    said: list[str] = []
    found = shots_of(task, 6, 0, held_out=0.25, say=said.append)
    assert [one.query.user_id for one in found.learnt] == ["u1#2", "u2", "u1#3", "u1#4", "u4"], "of the draw of 8 six"
    people = {one.query.person for one in found.learnt}
    assert not people & {one.query.person for one in found.held_out}
    assert {one.query.person for one in found.held_out} == {"u0", "u3", "u5", "u6", "u7", "u8"}
    assert found.loss == "binary"
    assert said == [
        "rows-train.parquet: 4 of 40 rows are of people who are tested, and are left out",
        "1 of the 6 rows that were drawn are of people who are tested, and are left out",
    ]
    test = tasks.load_queries(task)
    assert {query.person for query in test.queries} == {"u9", "u10", "u11", "u12"}
    check_apart(found, test)
    assert shots_of(task, 4, 0).held_out == ()
    assert [one.query.user_id for one in shots_of(task, 3, 0).learnt] == ["u1#2", "u2"], "the first of the draw of 4"
    with pytest.raises(DataError, match=r"9 rows of seed 0 were asked, but it has 8 of it; its seeds are 0, 1"):
        shots_of(task, 9, 0)


@pytest.mark.usefixtures("folder")
def test_likes_and_dislikes_are_told_apart_by_templates() -> None:
    """As ratings 1 and 0 both would be dislikes to a template that asks for more than 3 stars."""
    task = tasks.load_task("mine.toml")
    query = tasks.load_queries(task).queries[0]
    assert [taken.rating for taken in query.history] == [1.0, 5.0, 5.0]
    text = str(Render(templates.load("films-judge-tallrec"), task.domain)(query, item=query.candidates[0]))
    assert 'User Preference: "Film 1 (1990)", "Film 2 (1990)"' in text
    assert 'User Unpreference: "Film 0 (1990)"' in text


@pytest.mark.usefixtures("folder")
def test_training_stops_by_the_metric_of_the_task(model: Path, tmp_path: Path) -> None:
    """nDCG of a single candidate is 1 or nothing: by it the first pass, which learnt nothing, was always the best."""
    task, backend = task_of(model), causal.load(str(model), Numerics("fp32", "cpu"))
    settings = Settings("lora", rank=2, epochs=2, learning_rate=1e-2)
    tuned = tune_task(task, settings, 8, tmp_path / "x", backend=backend)
    found = shots_of(task, 8, 0, held_out=settings.held_out)
    users = []
    for one in found.held_out:
        scores = np.asarray(tuned.recommender.scores(tuned.recommender.answers(one.query)), dtype=float)
        users.append(UserScores(one.query.user_id, scores, np.array([bool(one.relevant)]), len(one.relevant)))
    kept = tuned.passes[tuned.best_epoch].metric
    assert kept == pytest.approx(measure_run(["pooled-AUC"], users, Shelf())["pooled-AUC"].value, abs=1e-9)
    assert kept == max(done.metric or 0.0 for done in tuned.passes)
    assert adapters.read(tmp_path / "x").about["tasks"][task.name]["loss"] == "binary"


@pytest.mark.usefixtures("folder")
def test_a_curve_over_rows_has_the_shortcut_and_both_metrics(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = causal.load(str(model), Numerics("fp32", "cpu"))
    methods = [ZERO, "share-liked", "mix", "lora"]
    settings = {"epochs": 1, "held_out": 0.25}
    lines = curve(task_of(model), methods, [4], 1, tmp_path / "out", metrics=BOTH, settings=settings, backend=backend)
    assert [(line.method, line.shots) for line in lines[::2]] == [
        (ZERO, 0),
        ("share-liked", 0),
        ("mix", 4),
        ("lora", 4),
    ]
    assert all(line.n_people + line.n_excluded == 4 for line in lines)
    run = evaluate(task_of(model), out=tmp_path / "run", backend=backend)
    by_name = {row["name"]: row["metrics"] for row in run.rows}
    for place, name in ((0, "films-judge-tallrec"), (2, "share-liked")):
        for line in lines[place : place + 2]:
            assert line.value == pytest.approx(by_name[name][line.metric]["value"]), (name, line.metric)
    assert {row["notes"].get("people without user-AUC", 0) for row in run.rows} == {1} == {lines[1].n_excluded}
    print_table(run.record)
    said = capsys.readouterr().out
    assert "people without user-AUC, who are left out of it: 1" in said
    assert "<svg" in (tmp_path / "out" / "curve.html").read_text()
    with pytest.raises(FewrecError, match=r"'lora-mix' would learn from more than 4 rows: those that mine holds out"):
        curve(task_of(model), ["lora-mix"], [4], 1, tmp_path / "more", metrics=BOTH, settings=settings, backend=backend)
    with pytest.raises(FewrecError, match="no row 'popularity' to compare with"):
        curve(task_of(model), methods, [4], 1, tmp_path / "out", metrics=BOTH, against="popularity", backend=backend)


@pytest.mark.usefixtures("folder")
def test_a_mix_of_rows_keeps_what_others_liked_and_ranks_the_same_from_its_folder(model: Path, tmp_path: Path) -> None:
    task, backend, out = task_of(model), causal.load(str(model), Numerics("fp32", "cpu")), tmp_path / "mix"
    made = tune_mix(task, 8, out, backend=backend)
    assert made.names[-2:] == ("history rating", "item effect")
    assert set(made.effects) == {key_of(Item(str(n), f"Film {n} (1990)")) for n in range(7)}
    run = evaluate(Options(adapters=(out,)).applied(task), out=tmp_path / "run", backend=backend)
    found = {
        (one["user_id"], one["item_id"]): one["score"]
        for one in pq.read_table(run.folder / "rankings.parquet").to_pylist()
        if one["row"].endswith(" mix mix")
    }
    rows = {"films-judge-tallrec": recommender_of(task, task.settings.rows[0], backend)}
    ranker = MixRecommender(rows, made)
    expected = {}
    for query in tasks.load_queries(task).queries:
        ranking = ranker.rank(query)
        expected |= {(query.user_id, ranking.item_ids[0]): ranking.scores[0]}
    assert len(expected) == 9
    assert found == pytest.approx(expected, abs=1e-9)


# --- people that a file names


def test_only_people_whom_the_file_names_are_learnt_from(folder: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u1", "u2", "u2", "u3", "u4", "nobody"]}), folder / "named.parquet")
    lines = '[data]\ndataset = "films"\nusers = 2\ncandidates = 2\nhistory = 3\n'
    plain, named = folder / "plain.toml", folder / "named.toml"
    plain.write_text(lines)
    named.write_text(lines + 'learn_from = "named.parquet"\n')
    test, same = (tasks.load_queries(tasks.load_task(path)) for path in (plain, named))
    assert test.queries == same.queries, "who is tested stays as it was"
    others = {query.person for query in tasks.load_queries(tasks.load_task(plain), "selection").queries}
    found = {query.person for query in tasks.load_queries(tasks.load_task(named), "selection").queries}
    assert found == others & {"u1", "u2", "u3", "u4"}


SHIPPED = {"amazon-office": ("amazon-office",), "tallrec-movie-valid": ("ml-100k-published",)}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("ml_100k")
def test_shots_of_the_shipped_studies_are_of_nobody_who_is_tested(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SHARED / SHIPPED[name][0].removesuffix("-published")
    if not folder.is_dir():
        pytest.skip(f"../shared/data/{folder.name} is not there")
    monkeypatch.setattr("fewrec_prompt.data.registered.list_file", lambda: tmp_path / "datasets.json")
    add(SHIPPED[name][0], folder)
    task = tasks.load_task(artifacts.shipped_folder("eval") / f"{name}.toml")
    test, found = tasks.load_queries(task), shots_of(task, 64, 0, held_out=0.25)
    check_apart(found, test)
    asked = {(query.person, item.id) for query in test.queries for item in query.candidates}
    for one in (*found.learnt, *found.held_out):
        assert not {(one.query.person, one.query.candidates[place].id) for place in one.relevant} & asked
    if name == "amazon-office":
        named = set(pq.read_table(folder / "minionerec-valid.parquet")["user_id"].to_pylist())
        assert {one.query.person for one in found.learnt + found.held_out} <= named
        assert len(test.queries) == 200
    else:
        assert len({query.person for query in test.queries}) == 14
        shares = BASELINES.load("share-liked")(test.to_learn_from(), 0)
        scores = tuple((shares.rank(query).scores[0],) for query in test.queries)
        relevant = tuple((0,) if test.qrels[query.user_id] else () for query in test.queries)
        names = tuple(query.user_id for query in test.queries)
        shortcut = Cell("share-liked", 0, 0, names, {}, 0, 0.0, 0.0, scores=scores, relevant=relevant)
        assert statistic(shortcut, "pooled-AUC").value == pytest.approx(0.6890, abs=5e-5)
        assert statistic(shortcut, "user-AUC").value == pytest.approx(0.5533, abs=5e-5)
