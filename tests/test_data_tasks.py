"""Data sets by name, frozen candidates, descriptions, protocols: from a folder to numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fewrec_prompt import artifacts, tasks
from fewrec_prompt.cli import app
from fewrec_prompt.data import audit, description, read_dataset
from fewrec_prompt.data.parquet_files import note
from fewrec_prompt.data.protocols import read_protocol
from fewrec_prompt.data.registered import add, list_file, registered
from fewrec_prompt.data.splits import Sizes, cut, queries_of
from fewrec_prompt.errors import DataError, FewrecError, TaskError
from fewrec_prompt.tasks import load_queries, load_task

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TITLES = [
    "The Godfather (1972)",
    "Heat (1995)",
    "Ronin (1998)",
    "Alien (1979)",
    "Up (2009)",
    "Heat (1995)",
    "Brat (1997)",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, so that no test sees what a person has added."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven films, eight people with four films each, at times of their own."""
    made = tmp_path / "films"
    made.mkdir()
    (made / "items.csv").write_text("item_id,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(TITLES)))
    rows = [f"u{user},{(user + place) % 7},{place % 5 + 1},{1_500_000_000 + user + 100 * place}" for user in range(8)
            for place in range(4)]  # fmt: skip
    (made / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + "\n".join(rows) + "\n")
    return made


def task_of(folder: Path, data: str = 'dataset = "films"\nusers = 4\ncandidates = 3\n', head: str = "") -> tasks.Task:
    (folder / "mine.toml").write_text(f"{head}\n[data]\n{data}")
    return load_task(folder / "mine.toml")


def said(*words: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_task_names_a_data_set_and_a_person_says_where_it_lies(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"mine\.toml: unknown dataset 'films'.* fewrec assets add films FOLDER"):
        load_queries(task_of(folder))

    said("assets", "add", "films", str(folder))

    assert len(load_queries(task_of(folder)).queries) == 4
    assert registered()["films"].sizes == (8, 7, 32)
    shown = [line.split() for line in said("assets", "list")[1].splitlines()]
    assert ["films", "data", "added", str(folder), "(tables)"] in shown
    assert said("assets", "path", "films")[1].strip() == str(folder)


def test_a_data_set_that_changed_is_an_error_until_it_is_added_again(folder: Path) -> None:
    add("films", folder)
    with (folder / "interactions.csv").open("a") as file:
        file.write("u9,1,5,1500000000\n")

    with pytest.raises(DataError, match=r"'films': interactions\.csv .* is not what it was when it was added"):
        load_queries(task_of(folder))

    add("films", folder)
    assert load_queries(task_of(folder)).queries


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("Films", None, "give a name of small letters"),
        ("../films", None, "give a name of small letters"),
        ("ml-100k", None, "is fetched by this package"),
        ("films", "tabels", "unknown data layout 'tabels'; .* Did you mean 'tables'"),
        ("films", "mind", "No such file"),
    ],
)
def test_what_cannot_be_added_leaves_no_trace(folder: Path, name: str, layout: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        add(name, folder, layout)
    assert not list_file().exists()


def test_a_data_set_of_the_hub_has_its_commit_in_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str]] = []

    def fetched(name: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, revision))
        assert not any(Path("script.py").match(pattern) for pattern in allow_patterns)
        if name == "who/gone":
            raise OSError("404: not there\nmore")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    commit = "0123456789" * 4

    said("assets", "add", "films", f"who/films@{commit}")

    assert asked == [("who/films", "dataset", commit)]
    assert registered()["films"].folder == str(folder)
    with pytest.raises(DataError, match=r"could not be fetched from the Hugging Face hub \(404: not there\)"):
        said("assets", "add", "gone", f"who/gone@{commit}")
    with pytest.raises(DataError, match="who/films@main: no such folder"):
        said("assets", "add", "films", "who/films@main")


def test_a_list_that_is_no_list_is_named(home: Path) -> None:
    home.mkdir()
    list_file().write_text("{")
    with pytest.raises(DataError, match=r"datasets\.json: cannot be read"):
        registered()


def test_own_files_may_call_their_columns_as_they_like(tmp_path: Path) -> None:
    (tmp_path / "shop.jsonl").write_text('{"sku": "007", "label": "NA"}\n{"sku": "7", "label": "None"}\n')
    (tmp_path / "log.csv").write_text("who,what,when\nann,007,2020-01-01\nann,7,2020-01-02T12:00:00+01:00\n")
    data = 'items = "shop.jsonl"\ninteractions = "log.csv"\nusers = 1\ncandidates = 2\n'
    columns = 'columns = { user = "who", item = "what", id = "sku", time = "when", title = "label" }\n'

    with pytest.raises(DataError, match=r"shop\.jsonl: no column 'item_id'; known: label, sku"):
        load_queries(task_of(tmp_path, data))
    with pytest.raises(DataError, match="2 candidates were asked, but only 0 items are unseen"):
        load_queries(task_of(tmp_path, data + columns))

    made = tasks.load_dataset(task_of(tmp_path, data + columns))
    assert [(seen.item.title, seen.time) for seen in made.interactions("ann")] == [
        ("NA", 1577836800),
        ("None", 1577962800),
    ]


WRONG = {
    'dataset = "films"\nitems = "a.csv"\n': "give either `dataset` .a name., which",
    'interactions = "a.csv"\n': "`interactions` needs `items`, the file with their titles",
    'items = "a.csv"\n': "give either `dataset` .a name., which brings its items, or ",
    'items = "a.csv"\nqueries = "b.csv"\nsplit = "hold-out"\n': "`split` says how queries are drawn",
    'dataset = "films"\nsampler = "full"\ncandidates = 9\n': "leave `candidates` out",
    'dataset = "films"\nsampler = "file"\n': "`lists`, a file with",
    'dataset = "films"\ncategory = "genre"\n': "`category`, a field of items, belongs to",
    'dataset = "films"\nusers = 3\nall_users = true\n': "give either `users` or `all_users`",
    'dataset = "films"\nfile = "x.parquet"\n': "`file`, `form` and perhaps `file_of` go together",
    'dataset = "films"\nsplit = "random"\n': "leave-one-out",
    'dataset = "films"\nsmapler = "full"\n': "unknown key 'smapler'; .* Did you mean 'sampler'",
}


@pytest.mark.parametrize("data", WRONG)
def test_settings_that_contradict_each_other_are_errors_with_the_file(tmp_path: Path, data: str) -> None:
    with pytest.raises(TaskError, match=rf"mine\.toml:\d+: .*{WRONG[data]}"):
        task_of(tmp_path, data)


def test_a_task_can_ask_for_the_whole_catalogue_and_for_what_was_liked(folder: Path) -> None:
    add("films", folder)
    every = load_queries(task_of(folder, 'dataset = "films"\nall_users = true\nsampler = "full"\n'))
    assert {len(query.candidates) for query in every.queries} == {4}
    assert len(every.queries) == 8
    fond = tasks.load_dataset(task_of(folder, 'dataset = "films"\nmin_rating = 3\n'))
    assert fond.sizes == (8, 7, 16)


# --- candidates ------------------------------------------------------------------------------------------------------


def test_frozen_candidates_are_what_the_task_would_draw_and_say_where_they_are_from(folder: Path) -> None:
    add("films", folder)
    task = task_of(folder)
    out = folder / "frozen.parquet"

    assert said("candidates", "build", str(task.path), "--out", str(out)) == (0, f"{out}: 4 queries\n")

    drawn, frozen = load_queries(task), load_queries(task, candidates=out)
    assert frozen.queries == drawn.queries
    assert frozen.qrels == drawn.qrels
    assert frozen.popularity == drawn.popularity
    told = json.loads(said("candidates", "show", str(out))[1])
    assert told == note(out)
    assert told["data"] == drawn.sources
    assert (told["task"], told["seed"], told["drawn"]["sampler"], told["users"]) == ("mine", 0, "uniform", 4)
    first = out.read_bytes()
    tasks.freeze(task, out)
    assert out.read_bytes() == first


def test_what_people_take_again_can_be_frozen_too(folder: Path) -> None:
    rows = "".join(f"u,{item},5,{1_500_000_000 + place}\n" for place, item in enumerate([1, 2, 1, 3]))
    (folder / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + rows)
    add("films", folder)
    task = task_of(folder, 'dataset = "films"\nusers = 1\ncandidates = 3\n')

    drawn = tasks.freeze(task, folder / "frozen.parquet")

    frozen = load_queries(task, candidates=folder / "frozen.parquet")
    assert frozen.queries == drawn.queries
    assert frozen.problems == drawn.problems
    assert drawn.problems["history_repeats"] == 1


def test_candidates_of_other_data_are_refused(folder: Path) -> None:
    add("films", folder)
    tasks.freeze(task_of(folder), folder / "frozen.parquet")
    with (folder / "items.csv").open("a") as file:
        file.write("99,new\n")
    add("films", folder)

    with pytest.raises(
        DataError, match=r"frozen\.parquet: was drawn from another items\.csv .* fewrec candidates build"
    ):
        load_queries(task_of(folder), candidates=folder / "frozen.parquet")


def test_another_suffix_and_a_file_without_a_note_are_refused(folder: Path) -> None:
    add("films", folder)
    with pytest.raises(TaskError, match=r"candidate files are parquet; call it frozen\.parquet"):
        tasks.freeze(task_of(folder), folder / "frozen.csv")
    pq.write_table(pa.table({"user_id": ["a"]}), folder / "plain.parquet")
    with pytest.raises(DataError, match="does not say where it is from"):
        said("candidates", "show", str(folder / "plain.parquet"))


# --- describe --------------------------------------------------------------------------------------------------------


def test_a_description_counts_what_is_there(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("u0,0,5,1500001000\n")
    found = description.describe(read_dataset(folder), len)

    assert (found["users"], found["items"], found["interactions"]) == (8, 7, 33)
    assert found["density"] == 33 / 56
    assert found["repeated_interactions"] == 1
    assert found["titles"]["duplicates"] == 1
    assert found["titles"]["characters"] == {"min": 9, "median": 11, "mean": 86 / 7, "max": 20}
    assert found["titles"]["tokens"] == found["titles"]["characters"]
    assert found["times"] == {
        "kind": "clock",
        "first": "2017-07-14T02:40:00+00:00",
        "last": "2017-07-14T02:56:40+00:00",
    }
    assert set(found["files"]) == {"interactions.csv", "items.csv"}


def test_shortcuts_are_measured_like_any_row(folder: Path) -> None:
    """Every answer is the item three after the first: popularity, title and rating can be worked out by hand."""
    data = read_dataset(folder)
    queries = queries_of(data, cut(data), Sizes(None, 10, 4))

    found = audit.audit(queries)

    assert found["users"] == 8
    assert found["shortcuts"]["chance"]["HR@1"] == pytest.approx(0.25)
    hits = []
    for query in queries.queries:
        (target,) = queries.qrels[query.user_id]
        longest = max(len(item.title) for item in query.candidates)
        best = [item.id for item in query.candidates if len(item.title) == longest]
        hits.append((target in best) / len(best))
    assert found["shortcuts"]["longer title"]["HR@1"] == pytest.approx(sum(hits) / 8)
    assert set(found["shortcuts"]) >= {"popularity", "share liked", "last-item similarity", "shorter title"}
    assert found["leaks"]["answer_in_history"] == found["leaks"]["answer_not_among_candidates"] == 0


def test_an_answer_whose_title_is_in_the_history_is_a_leak(folder: Path) -> None:
    rows = "u,1,5,1500000000\nu,2,5,1500000001\nu,5,5,1500000002\n"  # items 1 and 5 are both called Heat
    (folder / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + rows)
    data = read_dataset(folder)
    leaks = audit.audit(queries_of(data, cut(data), Sizes(1, 10, 3)))["leaks"]
    assert leaks["title_of_answer_in_history"] == 1
    assert leaks["answer_in_history"] == 0


def test_a_title_that_stands_twice_among_the_candidates_is_counted(folder: Path) -> None:
    rows = "u,2,5,1500000000\nu,1,5,1500000001\n"  # items 1 and 5 are both called Heat, and all others are drawn
    (folder / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n" + rows)
    data = read_dataset(folder)
    whole = queries_of(data, cut(data), Sizes(1, 10, None))
    assert audit.audit(whole)["leaks"]["title_twice_among_candidates"] == 1
    alone = replace(whole, queries=tuple(replace(one, candidates=one.candidates[:1]) for one in whole.queries))
    assert audit.audit(alone)["leaks"]["title_twice_among_candidates"] == 0


def test_whoever_liked_much_is_a_shortcut_where_one_candidate_is_judged_at_a_time(folder: Path) -> None:
    """Two people who liked half of their history and one who liked all of it; liked, not liked, not liked."""
    found = audit.audit(read_protocol(labelled(folder), "labelled", read_dataset(folder)))
    own, chance = found["shortcuts"]["own ratings"], found["shortcuts"]["chance"]
    assert chance["pooled-AUC"] == pytest.approx(0.5)
    assert own["pooled-AUC"] == pytest.approx((0.5 + 0) / 2)  # level with one who did not, below the other
    assert "pooled-AUC" not in audit.audit(queries_of(read_dataset(folder), cut(read_dataset(folder)), Sizes(3, 10, 3)))


def test_describe_takes_a_folder_a_name_and_a_task(folder: Path) -> None:
    add("films", folder)
    task = task_of(folder)
    by_folder, by_name, by_task = (
        json.loads(said("data", "describe", name, "--users", "4", "--json")[1])
        for name in (str(folder), "films", str(task.path))
    )
    assert by_folder["interactions"] == by_name["interactions"] == by_task["interactions"] == 32
    assert by_task["audit"]["candidates"] == 3
    assert "tiny" in artifacts.names("eval")
    assert json.loads(said("data", "describe", "tiny", "--json")[1])["audit"]["users"] == 6
    text = said("data", "describe", "films", "--users", "4")
    assert "last-item similarity" in text[1]
    assert "tokens not counted" in text[1]
    with pytest.raises(DataError, match=r"filsm: no folder, data set or task of this name; .*Did you mean 'films'"):
        said("data", "describe", "filsm")


# --- protocols -------------------------------------------------------------------------------------------------------


def labelled(folder: Path, **changes: list[Any]) -> Path:
    columns: dict[str, list[Any]] = {
        "user_id": ["u0", "u0", "u1"],
        "history": [["0", "1"], ["1", "2"], ["1"]],
        "history_label": [[1, 0], [0, 1], [1]],
        "target": ["2", "3", "2"],
        "label": [1, 0, 0],
    }
    pq.write_table(pa.table(columns | changes), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_a_labelled_row_is_a_query_with_one_candidate_and_perhaps_no_answer(folder: Path) -> None:
    data = read_dataset(folder)
    found = read_protocol(labelled(folder), "labelled", data)

    assert [query.user_id for query in found.queries] == ["u0", "u0#2", "u1"]
    assert [[item.id for item in query.candidates] for query in found.queries] == [["2"], ["3"], ["2"]]
    assert found.qrels == {"u0": {"2"}, "u0#2": frozenset(), "u1": frozenset()}
    assert [taken.rating for taken in found.queries[0].history] == [5, 1]
    assert found.training is not None
    part = found.training
    learnt = {(part.user_ids[user], part.item_ids[code]) for user, code in zip(part.users, part.codes, strict=True)}
    assert not learnt & {("u0", "2"), ("u0", "3"), ("u1", "2")}
    assert len(learnt) == 29
    with pytest.raises(DataError, match=r"row 1, column 'label': expected 0 or 1, found 5"):
        read_protocol(labelled(folder, label=[5, 0, 0]), "labelled", data)
    with pytest.raises(DataError, match="1 labels beside 2 history items"):
        read_protocol(labelled(folder, history_label=[[1], [0, 1], [1]]), "labelled", data)


def test_retrieved_titles_find_their_items_and_the_answer_its_own(folder: Path) -> None:
    columns = {
        "user_id": ["u0", "u1"],
        "history": [["1"], ["2"]],
        "target": ["5", "6"],
        "target_title": ["Heat", "Brat"],
        "candidate_titles_by_score": [["Godfather, The", "Heat"], ["Alien", "Nobody knows this"]],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")

    found = read_protocol(folder / "rows.parquet", "retrieved", read_dataset(folder))

    assert [[item.id for item in query.candidates] for query in found.queries] == [["0", "5"], ["3"]]
    assert found.problems["missing_target"] == found.problems["unknown_ids"] == 1


def test_the_answer_is_retrieved_for_as_many_users_as_nir_says(ml_100k: Path) -> None:
    folder = SHARED / "ml-100k"
    if not folder.is_dir():
        pytest.skip("../shared/data/ml-100k is not there")
    notes = json.loads((folder / "meta.json").read_text())["protocols"]
    films = read_dataset(ml_100k, "recbole")

    nir = read_protocol(folder / "nir-protocol.parquet", "retrieved", films)
    valid = read_protocol(folder / "tallrec-valid.parquet", "labelled", films)

    assert len(nir.queries) - nir.problems["missing_target"] == notes["nir"]["covered_by_19_candidates"]
    assert sum(map(len, valid.qrels.values())) == notes["tallrec-movie"]["valid"]["positives"]
    assert len({query.user_id.split("#")[0] for query in valid.queries}) == notes["tallrec-movie"]["valid"]["users"]


def test_a_protocol_whose_file_is_not_here_says_what_to_do(folder: Path) -> None:
    add("films", folder)
    lines = 'dataset = "films"\nfile = "rows-{part}.parquet"\nform = "labelled"\nfile_of = "rows"\n'
    with pytest.raises(
        TaskError, match=r"lies in the data set 'rows', which is not here; .* fewrec assets add rows FOLDER"
    ):
        load_queries(task_of(folder, lines))
    with pytest.raises(TaskError, match=r"no file rows-valid\.parquet in "):
        load_queries(task_of(folder, lines.replace('file_of = "rows"\n', "")), "selection")
    assert issubclass(TaskError, FewrecError)
