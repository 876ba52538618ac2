"""Queries in a file: what may be in it, what is refused with its place, and what is counted instead."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewrec_prompt.data import parquet_files
from fewrec_prompt.data.queries import PROBLEMS, QuerySet
from fewrec_prompt.data.query_files import own_queries, read_queries, write_queries
from fewrec_prompt.errors import DataError, StorageError
from fewrec_prompt.types import Interaction, Item, Query

ITEMS = {item_id: Item(item_id, f"title {item_id}") for item_id in ("1", "2", "3", "4", "5", "6", "007", "NA")}
FINE = {"user_id": "u", "history": ["1", "2"], "candidates": ["3", "4", "5"], "target": "4"}
OTHER = {"user_id": "v", "history": ["007"], "candidates": ["NA", "1"], "target": "NA"}
Row = dict[str, Any]


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, *rows: Row) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def comma(path: Path, *rows: Row) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    return path


WRITERS = {"jsonl": jsonl, "parquet": parquet, "csv": comma}


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_queries_come_out_of_every_kind_of_file(tmp_path: Path, form: str) -> None:
    found = read_queries(WRITERS[form](tmp_path / f"q.{form}", FINE, OTHER), ITEMS)

    assert [query.user_id for query in found.queries] == ["u", "v"]
    assert found.queries[1] == Query("v", (Interaction(ITEMS["007"]),), (ITEMS["NA"], ITEMS["1"]))
    assert found.qrels == {"u": frozenset({"4"}), "v": frozenset({"NA"})}
    assert found.problems == dict.fromkeys(PROBLEMS, 0)
    assert list(found.sources) == [f"q.{form}"]


@pytest.mark.parametrize("form", WRITERS)
def test_a_target_may_be_a_list(tmp_path: Path, form: str) -> None:
    path = WRITERS[form](tmp_path / f"q.{form}", FINE | {"target": ["4", "5"]}, OTHER | {"target": ["NA"]})

    assert read_queries(path, ITEMS).qrels == {"u": frozenset({"4", "5"}), "v": frozenset({"NA"})}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("nothing", [None, "", []])
def test_queries_without_any_target_are_only_ranked(tmp_path: Path, form: str, nothing: object) -> None:
    path = WRITERS[form](tmp_path / f"q.{form}", FINE | {"target": nothing}, OTHER | {"target": nothing})

    found = read_queries(path, ITEMS)

    assert len(found.queries) == 2
    assert found.qrels == {}
    assert found.problems["missing_target"] == 0


def test_a_file_may_have_no_column_of_targets(tmp_path: Path) -> None:
    rows = [{name: row[name] for name in row if name != "target"} for row in (FINE, OTHER)]

    assert read_queries(jsonl(tmp_path / "q.jsonl", *rows), ITEMS).qrels == {}


def test_a_misspelt_column_of_targets_is_not_taken_for_none(tmp_path: Path) -> None:
    rows = [{("targets" if name == "target" else name): row[name] for name in row} for row in (FINE, OTHER)]

    with pytest.raises(DataError, match=r"q\.jsonl: column 'targets' would not be read; rename it to 'target'"):
        read_queries(jsonl(tmp_path / "q.jsonl", *rows), ITEMS)


# How the row of user u differs from a fine one, what kind it counts as, and the message behind the place.
FORGIVABLE = {
    "no target among the candidates": ({"target": "6"}, "missing_target", "candidates",
                                       "the target '6' is not among the candidates"),
    "one of two targets": ({"target": ["4", "6"]}, "missing_target", "candidates",
                           "the target '6' is not among the candidates"),
    "a candidate twice": ({"candidates": ["3", "4", "3"]}, "duplicate_candidates", "candidates",
                          "item '3' stands twice among the candidates"),
    "a candidate of the history": ({"candidates": ["1", "3", "4"]}, "history_repeats", "candidates",
                                   "item '1' is already in the history"),
    "an item twice in the history": ({"history": ["1", "2", "1"]}, "history_repeats", "history",
                                     "item '1' stands twice in the history"),
    "the target in the history": ({"history": ["1", "4"]}, "history_repeats", "history",
                                  "the target '4' is among the history"),
    "an unknown candidate": ({"candidates": ["3", "4", "7"]}, "unknown_ids", "candidates",
                             "item '7' is not in the catalogue"),
    "an unknown history item": ({"history": ["1", "na"]}, "unknown_ids", "history",
                                "item 'na' is not in the catalogue"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGIVABLE)
def test_a_wrong_query_is_an_error_with_line_column_and_user(tmp_path: Path, name: str) -> None:
    change, _, column, message = FORGIVABLE[name]
    path = jsonl(tmp_path / "q.jsonl", OTHER, FINE | change)

    with pytest.raises(DataError) as caught:
        read_queries(path, ITEMS)

    assert str(caught.value).startswith(f"{path}:2, column '{column}', user 'u': {message}; to score such queries")


@pytest.mark.parametrize("name", FORGIVABLE)
def test_a_wrong_query_is_counted_and_kept_if_asked_for(tmp_path: Path, name: str) -> None:
    change, kind, _, _ = FORGIVABLE[name]
    path = jsonl(tmp_path / "q.jsonl", FINE | change, OTHER)

    found = read_queries(path, ITEMS, on_problem="count")

    assert [query.user_id for query in found.queries] == ["u", "v"]
    assert {kind: count for kind, count in found.problems.items() if count} == {kind: 1}


def test_counting_merges_duplicates_drops_unknown_ids_and_keeps_repeats(tmp_path: Path) -> None:
    row = FINE | {"history": ["1", "x", "2", "1"], "candidates": ["3", "4", "3", "y", "1", "4"]}

    found = read_queries(jsonl(tmp_path / "q.jsonl", row), ITEMS, on_problem="count")

    assert [taken.item.id for taken in found.queries[0].history] == ["1", "2", "1"]
    assert [item.id for item in found.queries[0].candidates] == ["3", "4", "1"]
    assert found.problems == {
        "missing_target": 0,
        "duplicate_candidates": 1,
        "history_repeats": 1,
        "unknown_ids": 1,
        "empty_titles": 0,
    }


def test_a_target_that_is_not_among_the_candidates_stays_the_answer(tmp_path: Path) -> None:
    """So that the query scores zero; without qrels it would not be scored at all."""
    found = read_queries(jsonl(tmp_path / "q.jsonl", FINE | {"target": "zzz"}), ITEMS, on_problem="count")

    assert found.qrels == {"u": frozenset({"zzz"})}
    assert found.problems["missing_target"] == found.problems["unknown_ids"] == 1


# What no counting forgives.
FATAL = {
    "empty history": ({"history": []}, ", column 'history', user 'u': the history is empty"),
    "no candidates": ({"candidates": []}, ", column 'candidates', user 'u': there are no candidates"),
    "history of unknown ids": ({"history": ["x"]}, ", column 'history', user 'u': "),
    "candidates of unknown ids": ({"candidates": ["x"], "target": "x"}, ", column 'candidates', user 'u': "),
    "no target where others have one": ({"target": ""}, ", column 'target', user 'u': no target, but other queries"),
    "a user again": ({"user_id": "v"}, ", column 'user_id': user 'v' has a query above (its row 1); give each query"),
    "ratings of other length": ({"history_ratings": [5]},
                                ", column 'history_ratings', user 'u': 1 values beside 2 history items"),
    "an empty user id": ({"user_id": ""}, ", column 'user_id': the id is empty"),
}  # fmt: skip


@pytest.mark.parametrize("on_problem", ["error", "count"])
@pytest.mark.parametrize("name", FATAL)
def test_some_things_are_errors_however_one_counts(tmp_path: Path, name: str, on_problem: Any) -> None:
    change, message = FATAL[name]
    path = jsonl(tmp_path / "q.jsonl", OTHER, FINE | change)

    with pytest.raises(DataError) as caught:
        read_queries(path, ITEMS, on_problem=on_problem)

    assert str(caught.value).startswith(f"{path}:2{message}")


def test_in_parquet_the_row_and_the_user_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "q.parquet", OTHER, FINE | {"target": "6"})

    with pytest.raises(DataError) as caught:
        read_queries(path, ITEMS)

    assert str(caught.value).startswith(f"{path}, row 2, column 'candidates', user 'u': the target '6' is not among")


def test_fewer_candidates_than_asked_are_an_error_only_where_a_number_was_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", FINE, OTHER)

    assert len(read_queries(path, ITEMS).queries) == 2
    with pytest.raises(DataError, match=r"q\.jsonl:2, column 'candidates', user 'v': 2 candidates, but 3 were asked"):
        read_queries(path, ITEMS, n_candidates=3)


def test_the_first_users_of_the_file_are_taken_and_only_theirs_is_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", FINE, OTHER | {"target": "6"})

    found = read_queries(path, ITEMS, n_users=1)

    assert [query.user_id for query in found.queries] == ["u"]
    assert found.qrels.keys() == {"u"}
    assert len(read_queries(path, ITEMS, n_users=99, on_problem="count").queries) == 2


def test_a_file_without_queries_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"q\.jsonl: holds no queries"):
        read_queries(jsonl(tmp_path / "q.jsonl"), ITEMS)


@pytest.mark.parametrize("n_users", [0, -1])
def test_no_users_at_all_are_not_taken_for_all_but_one(tmp_path: Path, n_users: int) -> None:
    with pytest.raises(DataError, match=rf"q\.jsonl: {n_users} users were asked"):
        read_queries(jsonl(tmp_path / "q.jsonl", FINE, OTHER), ITEMS, n_users=n_users)


def test_popularity_counts_the_histories_of_the_whole_file(tmp_path: Path) -> None:
    found = read_queries(jsonl(tmp_path / "q.jsonl", FINE, OTHER | {"history": ["1", "007"]}), ITEMS, n_users=1)

    assert found.popularity == dict.fromkeys(ITEMS, 0) | {"1": 2, "2": 1, "007": 1}


def test_popularity_of_histories_does_not_give_a_repeated_target_away(tmp_path: Path) -> None:
    found = read_queries(jsonl(tmp_path / "q.jsonl", FINE | {"history": ["4", "1"]}), ITEMS, on_problem="count")

    assert found.popularity["4"] == 0


@pytest.mark.parametrize("form", WRITERS)
def test_popularity_of_interactions_leaves_out_what_users_did_with_their_targets(tmp_path: Path, form: str) -> None:
    pairs = [("u", "4"), ("u", "1"), ("v", "4"), ("v", "NA"), ("w", "NA"), ("u", "4"), ("w", "gone")]
    rows = [{"user_id": user, "item_id": item} for user, item in pairs]
    interactions = WRITERS[form](tmp_path / f"i.{form}", *rows)

    found = read_queries(jsonl(tmp_path / "q.jsonl", FINE, OTHER), ITEMS, interactions=interactions, n_users=1)

    assert found.popularity == dict.fromkeys(ITEMS, 0) | {"1": 1, "4": 1, "NA": 1}
    assert set(found.sources) == {"q.jsonl", f"i.{form}"}


def test_own_items_and_queries_are_a_whole_study(tmp_path: Path) -> None:
    items = comma(tmp_path / "items.csv", *({"item_id": item_id, "title": "NA"} for item_id in ITEMS), {"item_id": "8"})

    found = own_queries(items, jsonl(tmp_path / "q.jsonl", FINE, OTHER))

    assert found.queries[0].candidates[0].title == "NA"
    assert found.problems["empty_titles"] == 1
    assert set(found.sources) == {"items.csv", "q.jsonl"}


def test_files_of_the_same_name_keep_both_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    items = comma(tmp_path / "a" / "data.csv", *({"item_id": item_id, "title": item_id} for item_id in ITEMS))

    found = own_queries(items, comma(tmp_path / "data.csv", FINE, OTHER))

    assert len(set(found.sources.values())) == 2


def a_set(**change: Any) -> QuerySet:
    history = (Interaction(ITEMS["007"], 5.0, 881250949.0), Interaction(ITEMS["NA"], None, 881250950.0))
    query = Query("u", history, (ITEMS["3"], ITEMS["1"]))
    made = QuerySet((query,), {"u": frozenset({"1"})}, dict.fromkeys(PROBLEMS, 0), {}, {})
    return replace(made, **change)


def test_what_is_written_is_read_again_ratings_and_times_included(tmp_path: Path) -> None:
    write_queries(tmp_path / "q.parquet", a_set())

    again = read_queries(tmp_path / "q.parquet", ITEMS)

    assert again.queries == a_set().queries
    assert again.qrels == a_set().qrels


def test_what_is_known_of_the_person_and_the_moment_is_written_and_read_again(tmp_path: Path) -> None:
    (query,) = a_set().queries
    known = replace(query, user=(("age", 25), ("town", "Oslo")), context=(("hour", 7.5),))
    made = a_set(queries=(known, replace(query, user_id="v")), qrels={})
    write_queries(tmp_path / "q.parquet", made)

    assert read_queries(tmp_path / "q.parquet", ITEMS).queries == made.queries


def test_a_column_of_text_and_numbers_about_people_is_refused(tmp_path: Path) -> None:
    one = {"history": ["1"], "candidates": ["3"]}
    rows = [{"user_id": "u", "user.age": 7, **one}, {"user_id": "v", "user.age": "old", **one}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))

    with pytest.raises(DataError, match=r"q\.jsonl, column 'user\.age': holds int and str; write text"):
        read_queries(tmp_path / "q.jsonl", ITEMS)


def test_queries_without_answers_are_written_without_a_column_of_them(tmp_path: Path) -> None:
    write_queries(tmp_path / "q.parquet", a_set(qrels={}))

    assert "target" not in pq.read_schema(tmp_path / "q.parquet").names
    assert read_queries(tmp_path / "q.parquet", ITEMS).qrels == {}


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda s: s.strip())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(text, min_size=3, max_size=8, unique=True), user_id=text, cut=st.integers(1, 2))
def test_any_ids_come_back_as_they_were_written(tmp_path: Path, ids: list[str], user_id: str, cut: int) -> None:
    items = {item_id: Item(item_id, item_id) for item_id in ids}
    history = tuple(Interaction(items[item_id]) for item_id in ids[:cut])
    query = Query(user_id, history, tuple(items[item_id] for item_id in ids[cut:]))
    made = a_set(queries=(query,), qrels={user_id: frozenset(ids[-1:])})
    write_queries(tmp_path / "q.parquet", made)

    again = read_queries(tmp_path / "q.parquet", items)

    assert (again.queries, again.qrels) == (made.queries, made.qrels)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1")
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr(parquet_files.pq, "write_table", refuse)


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, full_disk: Callable[[], None]
) -> None:
    path = tmp_path / "q.parquet"
    write_queries(path, a_set())
    before = path.read_bytes()
    full_disk()

    with pytest.raises(StorageError, match=r"q\.parquet: cannot be written \(No space left on device\)"):
        write_queries(path, a_set(qrels={}))

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_folder_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_queries(tmp_path / "nowhere" / "q.parquet", a_set())
