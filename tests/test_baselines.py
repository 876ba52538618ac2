"""Baselines: each ranks by what it says it ranks by, learns from training alone, and is never left out in silence."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import PLAIN, WordyBackend, tiny

from fewrec_prompt import scoring, tasks
from fewrec_prompt.baselines import BASELINES, check_baselines
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.data.training import Training, from_pairs
from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.types import Interaction, Item, Query

GENRES = {"a": "War", "b": "War, Drama", "c": "Comedy", "d": "Comedy", "e": "Drama", "f": "Western"}
ITEMS = {one: Item(one, f"Film {one.upper()}", (("genres", genres),)) for one, genres in GENRES.items()}
NO_MODEL = [name for name in BASELINES if name not in ("last-embedding", "share-liked")]  # this one needs ratings


def training(*pairs: str) -> Training:
    """From words such as "1:abc": person 1 took a, b and c in that order."""
    return from_pairs(ITEMS, [(word[0], item) for word in pairs for item in word[2:]])


def query(history: str, candidates: str = "abcdef", user: str = "1") -> Query:
    return Query(user, tuple(Interaction(ITEMS[one]) for one in history), tuple(ITEMS[one] for one in candidates))


def scores(name: str, learned: Training, asked: Query, seed: int = 0) -> dict[str, float]:
    ranking = BASELINES.load(name)(learned, seed).rank(asked)
    return dict(zip(ranking.item_ids, ranking.scores, strict=True))


def needs_implicit() -> None:
    if importlib.util.find_spec("implicit") is None:
        pytest.skip("implicit is not installed: pip install 'fewrec-prompt[baselines]'")


# --- what each ranks by


def test_item_knn_is_the_cosine_of_takers_summed_over_the_history() -> None:
    """a: 1 2 3, b: 1 2, c: 3 4, d: 4."""
    found = scores("item-knn", training("1:ab", "2:ba", "3:ac", "4:cd"), query("ac", "bdf"))
    assert found["b"] == pytest.approx(2 / np.sqrt(3 * 2))
    assert found["d"] == pytest.approx(1 / np.sqrt(2 * 1))
    assert found["f"] == 0


def test_taking_twice_counts_once_for_item_knn() -> None:
    once, twice = training("1:ab", "2:ac"), training("1:abbb", "2:aac")
    assert scores("item-knn", once, query("a")) == scores("item-knn", twice, query("a"))


def test_bm25_prefers_what_shares_rare_words_with_the_last_item() -> None:
    items = {
        "1": Item("1", "Alien (1979)"), "2": Item("2", "Aliens (1986)"), "3": Item("3", "Alien Resurrection (1997)"),
        "4": Item("4", "Up (1979)"), "5": Item("5", "Heat (1995)"),
    }  # fmt: skip
    asked = Query("u", (Interaction(items["5"]), Interaction(items["1"])), tuple(items[one] for one in "2345"))
    ranking = BASELINES.load("last-bm25")(from_pairs(items, []), 0).rank(asked)
    found = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    rarity = np.log(1 + (5 - 2 + 0.5) / (2 + 0.5))  # "alien" stands in two of five
    length = (2 + 2 + 3 + 2 + 2) / 5
    assert found["3"] == pytest.approx(rarity * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / length)))
    assert found["3"] < found["4"]  # as rare a word in a shorter title
    assert found["2"] == found["5"] == 0


def test_recency_is_the_latest_time_of_an_item(films: Dataset) -> None:
    found = leave_one_out(films, n_users=3)
    learned = found.to_learn_from()
    times = {item.id: -1.0 for item in found.queries[0].candidates}
    for code, time in zip(learned.codes, learned.times, strict=True):
        item_id = learned.item_ids[code]
        if item_id in times:
            times[item_id] = max(times[item_id], float(time))
    ranking = BASELINES.load("recency")(learned, 0).rank(found.queries[0])
    assert [times[item_id] for item_id in ranking.item_ids] == sorted(times.values(), reverse=True)


def test_recency_without_times_is_an_error() -> None:
    with pytest.raises(DataError, match="'recency' needs times by the clock"):
        BASELINES.load("recency")(training("1:ab"), 0)
    learned = training("1:ab")
    with pytest.raises(DataError, match="by the clock"):
        BASELINES.load("recency")(replace(learned, times=np.arange(2.0)), 0)


@pytest.mark.parametrize("name", ["als", "bpr", "sasrec"])
def test_what_is_learned_finds_the_half_of_a_catalogue_that_a_person_likes(name: str) -> None:
    """Two kinds of people who never take the same things."""
    if name != "sasrec":
        needs_implicit()
    items = {f"{kind}{n}": Item(f"{kind}{n}", f"{kind} {n}") for kind in "xy" for n in range(12)}
    rng = np.random.default_rng(0)
    pairs = [
        (f"{kind}-{person}", f"{kind}{n}") for kind in "xy" for person in range(30) for n in rng.permutation(12)[:8]
    ]
    learned = from_pairs(items, pairs)
    taken = tuple(Interaction(items[f"x{n}"]) for n in range(6))
    asked = Query("somebody new", taken, tuple(items[one] for one in ("x7", "y7", "x9", "y9", "x11", "y11")))
    ranking = BASELINES.load(name)(learned, 0).rank(asked)
    assert {item_id[0] for item_id in ranking.item_ids[:3]} == {"x"}
    again = BASELINES.load(name)(learned, 0).rank(asked)
    assert again.scores == ranking.scores


@pytest.mark.model
def test_vectors_know_a_sequel(smollm2: Path) -> None:
    titles = ("Star Trek: First Contact", "Star Trek: Generations", "Pretty Woman", "A Time to Kill")
    items = {title: Item(title, title) for title in titles}
    asked = Query("u", (Interaction(items[titles[0]]),), tuple(items[title] for title in titles[1:]))
    ranker = BASELINES.load("last-embedding")(from_pairs(items, []), 0)
    assert ranker.rank(asked).item_ids[0] == titles[1]
    assert "smollm2-135m" in ranker.about or "sentence-transformers" in ranker.about


# --- what they may see


def test_training_holds_nothing_that_users_had_to_do_with_their_targets(films: Dataset) -> None:
    found = leave_one_out(films, n_users=50)
    learned = found.to_learn_from()
    pairs = {
        (learned.user_ids[user], learned.item_ids[code])
        for user, code in zip(learned.users, learned.codes, strict=True)
    }
    assert not pairs & {(user, item) for user, items in found.qrels.items() for item in items}
    assert learned.tested == found.qrels.keys()
    assert len(pairs) == len(films.codes) - len(films.user_ids)
    one = found.queries[0].user_id
    history = {seen.item.id for seen in found.queries[0].history}
    assert history <= {item for user, item in pairs if user == one}


@pytest.mark.parametrize("name", NO_MODEL)
def test_another_answer_of_the_same_user_changes_no_score(name: str) -> None:
    """The last interaction of the users under test is swapped for another: what is learned stays the same."""
    if name in ("als", "bpr"):
        needs_implicit()
    learned = [
        training("1:abcd", "2:bcae", "3:cabf").without({"1": ["d"], "2": ["e"]}),
        training("1:abcf", "2:bcad", "3:cabf").without({"1": ["f"], "2": ["d"]}),
    ]
    if name == "recency":
        learned = [replace(one, times=1e9 + one.codes) for one in learned]
    first, second = (scores(name, one, query("ab", "cdef")) for one in learned)
    assert first == second


def test_held_out_people_of_sasrec_are_none_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewrec_prompt.backends import sequences

    seen: dict[str, list[list[int]]] = {}

    def fit(learned: list[list[int]], held_out: list[list[int]], *_: int) -> None:
        seen.update(learned=learned, held_out=held_out)

    monkeypatch.setattr(sequences, "fit", fit)
    learned = training("1:abc", "2:bca", "3:cab", "4:fed").without({"1": ["f"], "2": ["f"], "3": ["f"]})
    BASELINES.load("sasrec")(learned, 0)
    place = learned.place
    # one alone is free of a test, and one cannot be both taught and asked
    assert [place[one] for one in "fed"] in seen["learned"] + seen["held_out"]
    assert all(
        taken not in seen["held_out"] for taken in ([place[one] for one in word] for word in ("abc", "bca", "cab"))
    )


# --- rows of a table


def test_a_task_names_its_baselines_and_they_are_rows_like_others(tmp_path: Path) -> None:
    run = evaluate(
        tiny(PLAIN, baselines=("popularity", "item-knn", "last-bm25")), out=tmp_path / "run", backend=WordyBackend()
    )
    assert [row["name"] for row in run.rows] == ["popularity", "item-knn", "last-bm25", "complete"]
    assert all(0 <= row["metrics"]["nDCG@10"]["value"] <= 1 for row in run.rows)
    assert run.record["settings"]["baselines"] == ["popularity", "item-knn", "last-bm25"]


def test_random_and_popularity_are_there_where_nobody_says_otherwise() -> None:
    assert tasks.load_task("movielens-100k").settings.baselines == ("random", "popularity")


@pytest.mark.parametrize(
    ("names", "said"),
    [(["item-kn"], "unknown baseline 'item-kn'.*Did you mean 'item-knn'"), (["random", "random"], "asked for twice")],
)
def test_a_baseline_that_cannot_be_had_is_an_error(names: list[str], said: str) -> None:
    with pytest.raises(FewrecError, match=said):
        check_baselines(names)


def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewrec_prompt.baselines.find_spec", lambda _name: None)
    with pytest.raises(FewrecError, match=r"'als' needs implicit: pip install 'fewrec-prompt\[baselines\]'"):
        evaluate(tiny(PLAIN, baselines=("als",)), out=tmp_path / "run", backend=WordyBackend())
    assert not (tmp_path / "run").exists()


def test_on_films_neighbours_beat_popularity(ml_100k: Path) -> None:
    found = tasks.load_queries(Options(users=200).applied(tasks.load_task("movielens-100k")))
    hits = {}
    for scored in scoring.baselines(("popularity", "item-knn"), found.queries, found.to_learn_from(), 0):
        hits[scored.name] = sum(ranking.item_ids[0] in found.qrels[ranking.user_id] for ranking in scored.rankings)
    assert hits["item-knn"] > hits["popularity"] > 200 / 20
