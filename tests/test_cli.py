"""The command line as a person meets it: what it prints where, and how it ends."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from _commands import PLAIN, TASK, fewrec, project, save_letters, start
from test_evaluation import rankings_in, record_in
from test_tasks import QUERIES, queries_in

from fewrec_prompt.cli.bench import _row
from fewrec_prompt.cli.evaluation import _paired, _readings
from fewrec_prompt.cli.ranking import spread_lists
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_letters(tmp_path_factory.mktemp("models") / "my-model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return project(tmp_path)


# --- eval --------------------------------------------------------------------------------------------------------


def test_the_command_of_the_readme_shape_runs_and_resumes_nothing(here: Path, model: Path) -> None:
    words = ["eval", "mine.toml", "--prompt", "complete", "--verbalizer", "title", "--calibrate", "pmi"]
    words += ["--alpha", "0.6", "--users", "2", "--model", str(model), "--precision", "fp32", "--out", "runs/a"]
    words += ["--unit", "throughput", "--token-budget", "300"]

    done = fewrec(*words)

    assert done.code == 0, done.err
    assert "precision fp32 on cpu (asked for)" in done.err
    assert "100 %" in done.err
    assert "complete pmi 0.6" in done.out
    assert "runs/a/report.html" in done.out
    record = record_in(here / "runs" / "a")
    assert [row["name"] for row in record["rows"]] == ["random", "popularity", "complete pmi 0.6"]
    assert record["n_users"] == 2
    assert len(record["model"]["sha256"]) == 64
    assert record["call"]["precision"] == "fp32"
    assert record["numerics"].items() >= {"unit": "throughput", "token_budget": 300, "int8_threshold": None}.items()

    again = fewrec(*words)
    assert again.code == 2
    assert "runs/a: holds a finished run; give --out a new folder" in again.err
    assert again.out == ""


def test_flags_that_are_given_twice_make_two_rows(here: Path, model: Path) -> None:
    (here / "my.jinja").write_text(PLAIN + "{% for item in history %}\n{{ item.title }}\n{% endfor %}\n-\n")
    words = ["--prompt", "complete", "--verbalizer", "title", "--prompt", "my.jinja", "--verbalizer", "title"]
    done = fewrec("eval", "mine.toml", *words, "--calibrate", "none", "--calibrate", "pmi", "--alpha", "0.5",
                  "--alpha", "1", "--model", str(model), "--out", "a")  # fmt: skip
    assert done.code == 0, done.err
    names = [row["name"] for row in record_in(here / "a")["rows"][2:]]
    assert names == [
        *("complete", "complete pmi 0.5", "complete pmi 1"),
        *("my.jinja", "my.jinja pmi 0.5", "my.jinja pmi 1"),
    ]


def test_prompts_and_verbalizers_pair_up() -> None:
    assert _paired(["a", "b"], []) == [("a", None), ("b", None)]
    assert _paired(["a", "b"], ["v"]) == [("a", "v"), ("b", "v")]
    assert _paired(["a"], ["v", "w"]) == [("a", "v"), ("a", "w")]
    assert _paired(["a", "b"], ["v", "w"]) == [("a", "v"), ("b", "w")]
    with pytest.raises(FewrecError, match="--prompt is given 3 times and --verbalizer 2 times"):
        _paired(["a", "b", "c"], ["v", "w"])


def test_alphas_belong_to_pmi() -> None:
    assert _readings([], []) == [("none", None)]
    assert _readings([], [0.5]) == [("pmi", 0.5)]
    assert _readings(["none", "pmi"], [0.5, 1.0]) == [("none", None), ("pmi", 0.5), ("pmi", 1.0)]
    with pytest.raises(FewrecError, match="--alpha is the weight of a calibration"):
        _readings(["none"], [0.5])
    with pytest.raises(FewrecError, match="--alpha nan: give a finite number"):
        _readings(["pmi"], [float("nan")])


def many(folder: Path, n_users: int) -> None:
    rows = [QUERIES[n % 3] | {"user_id": f"u{n}"} for n in range(n_users)]
    queries_in(folder, "csv", rows)


def test_ctrl_c_names_the_command_that_goes_on_and_two_processes_take_turns(here: Path, model: Path) -> None:
    many(here, 300)
    words = ["eval", "mine.toml", "--prompt", "complete", "--model", str(model), "--metric", "MRR", "--no-cache"]
    process = start(*words)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(" 10 %"):
            break
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said = process.stderr.read()
    assert process.wait() == 130, said
    assert time.monotonic() - begin < 5
    command = said.strip().splitlines()[-1].strip()
    assert command == shlex.join(["fewrec", *words])
    again = shlex.split(command)[1:]

    with (here / "runs" / "mine-1" / "lock").open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = fewrec(*again)
    assert second.code == 75
    assert "runs/mine-1: another process is writing this run" in second.err

    resumed = fewrec(*again)
    assert resumed.code == 0, resumed.err
    assert fewrec(*words, "--out", "whole").code == 0
    assert rankings_in(here / "runs" / "mine-1") == rankings_in(here / "whole")


def test_answers_are_kept_for_the_next_command_until_they_are_cleared(
    here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWREC_CACHE", str(here / "kept"))
    words = ["eval", "mine.toml", "--prompt", "complete", "--model", str(model), "--metric", "MRR", "--out"]
    assert "units   3 scored, 0 known from earlier runs" in fewrec(*words, "a").out
    assert "units   0 scored, 3 known from earlier runs" in fewrec(*words, "b", "--calibrate", "none").out
    shown = fewrec("cache", "show")
    assert shown.out.startswith("3 units of computation, ")
    assert shown.out.endswith(f"{here / 'kept' / 'scores-1.sqlite'}\n")
    assert fewrec("cache", "clear").out.startswith("3 units of computation dropped, ")
    assert "units   3 scored, 0 known from earlier runs" in fewrec(*words, "c", "--no-cache").out
    assert fewrec("cache", "show").out.startswith("0 units of computation, ")
    assert rankings_in(here / "a") == rankings_in(here / "b") == rankings_in(here / "c")


# --- search ------------------------------------------------------------------------------------------------------


def test_a_search_shows_what_was_tried_the_test_table_and_what_is_left_of_the_gain(here: Path, model: Path) -> None:
    others = [row | {"user_id": f"v{row['user_id']}"} for row in QUERIES]
    (here / "more").mkdir()
    queries_in(here / "more", "csv", others)
    (here / "mine.toml").write_text(f'{TASK}selection = "more/queries.csv"\n')
    (here / "my.jinja").write_text(PLAIN + "{% for item in history %}\n{{ item.title }}\n{% endfor %}\n-\n")
    words = ("search", "mine.toml", "--prompt", "complete", "--prompt", "my.jinja", "--model", str(model))

    done = fewrec(*words, "--alpha-range", "0", "2", "--trials", "10")
    again = fewrec(*words, "--alpha-range", "0", "2", "--trials", "10")
    few = fewrec(*words, "--calibrate", "none", "--metric", "MRR")

    assert done.code == again.code == few.code == 0, done.err + again.err + few.err
    assert "chosen by nDCG@10 on 3 selection users: " in done.out
    assert "of 42 candidates tried (TPE (Optuna))" in done.out
    assert "cannot be told apart from the best on these users" in done.out
    assert "on 3 test users, scored once for this search" in done.out
    for row in ("random", "popularity", "complete", "complete pmi 0.5"):
        assert f"\n{row} " in done.out
    assert "runs/search-mine-1/search.json" in done.out
    assert again.out == done.out
    assert "holds this very search" in again.err
    assert "2 of 2 candidates tried (every candidate)" in few.out
    assert "1 other search has scored these test users too (runs/search-mine-1)" in few.out


# --- rank --------------------------------------------------------------------------------------------------------


def test_rank_takes_several_titles_after_one_flag(here: Path, model: Path) -> None:
    lists = ["--history", "Heat (1995)", "Ronin (1998)", "--candidates", "Alien (1979)", "Up (2009)"]
    done = fewrec("rank", "--model", str(model), "--prompt", "complete", *lists)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert {" ".join(line.split()[2:]) for line in lines} == {"Alien (1979)", "Up (2009)"}


def test_rank_says_how_much_history_did_not_fit(here: Path, model: Path) -> None:
    history = [f"A film with a fairly long name, part {n} (1990)" for n in range(40)]
    done = fewrec("rank", "--json", "--model", str(model), "--history", *history, "--candidates", "Up", "Alien")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert 0 < told["n_history"] < 40
    said = f"{40 - told['n_history']} of 40 history items, the oldest, did not fit the context window"
    assert said in done.err
    assert [set(item) for item in told["items"]] == [{"rank", "item_id", "title", "score"}] * 2


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        (["--history", "a", "b", "--candidates", "c"], ["--history=a", "--history=b", "--candidates=c"]),
        (["--history=a", "b", "--json"], ["--history=a", "--history=b", "--json"]),
        (["--history=--Dashes", "b"], ["--history=--Dashes", "--history=b"]),
        (["--history", "-30- (1959)", "a=b"], ["--history=-30- (1959)", "--history=a=b"]),
        (["--history", "a", "--model", "m", "--history", "b"], ["--history=a", "--model", "m", "--history=b"]),
        (["--history", "a", "--model=m", "x"], ["--history=a", "--model=m", "x"]),
        (["--help"], ["--help"]),
    ],
)
def test_lists_are_spread_before_they_are_parsed(words: list[str], spread: list[str]) -> None:
    assert spread_lists(["rank", *words]) == ["rank", *spread]
    assert spread_lists(["eval", *words]) == ["eval", *words]


# --- bench -------------------------------------------------------------------------------------------------------


def test_bench_prints_a_line_a_precision_and_writes_the_same_numbers(here: Path, model: Path) -> None:
    words = ["bench", "precision", "fp32", "bf16", "--task", "mine.toml", "--split", "test", "--model", str(model)]

    done = fewrec(*words, "--prompt", "complete", "--calibrate", "pmi", "--json", "parity.json", patience=300)

    assert done.code == 0, done.err
    assert "100 %" in done.err
    heads, fp32, bf16 = done.out.splitlines()
    assert heads.split()[0] == "precision"
    assert heads.endswith("ms/user  peak MB")
    assert fp32.split()[:4] == ["fp32", "–", "–", "–"]
    assert bf16.split()[0] == "bf16"
    record = json.loads((here / "parity.json").read_text())
    assert (record["task"], record["split"], record["n_users"]) == ("mine", "test", 3)
    assert record["row"]["calibrate"] == "pmi"
    first, second = record["lines"]
    assert first["numerics"]["precision"] == "fp32"
    assert first["max_abs_dlogp"] is None
    assert second["max_abs_dlogp"] > 0
    assert second["delta nDCG@10"]["low"] <= second["delta nDCG@10"]["value"] <= second["delta nDCG@10"]["high"]
    assert bf16.split()[-1] == f"{second['peak_memory_bytes'] / 1e6:.0f}"


def test_bench_takes_the_first_row_of_the_task_and_what_the_flags_change_of_it(here: Path) -> None:
    rows = '[[rows]]\nprompt = "complete"\nverbalizer = "title"\nlength = "mean"\ncalibrate = "pmi"\nalpha = 0.3\n'
    (here / "mine.toml").write_text(TASK + rows)
    task = load_task(here / "mine.toml")
    (first,) = task.settings.rows

    assert _row(task, None, None) == first
    assert _row(task, None, "none") == RowSettings(prompt="complete", verbalizer="title", length="mean")
    assert _row(task, "judge", None) == RowSettings(prompt="judge")
    assert _row(task, "judge", "pmi") == RowSettings(prompt="judge", calibrate="pmi")


def test_bench_refuses_a_place_for_its_numbers_before_it_works(here: Path, model: Path) -> None:
    words = ["bench", "precision", "--task", "mine.toml", "--split", "test", "--model", str(model), "--json"]
    done = fewrec(*words, "no/such/folder/parity.json")
    assert done.code == 74
    assert "its folder is not there or not writable" in done.err
    assert "precision" not in done.err.splitlines()[0].removeprefix("fewrec: no/such/folder/")
    assert fewrec(*words, ".").code == 74


# --- prompts -----------------------------------------------------------------------------------------------------


def test_prompts_are_listed_and_shown(here: Path) -> None:
    (here / "prompts").mkdir()
    (here / "prompts" / "complete.jinja").write_text(PLAIN.replace('"d"', '"my own words"') + "-\n")
    done = fewrec("prompts", "list")
    assert done.code == 0
    assert "my own words" in done.out
    assert "judge" in done.out
    shown = fewrec("prompts", "show", "complete")
    assert shown.out == (here / "prompts" / "complete.jinja").read_text()
    assert "prompts/complete.jinja" in shown.err


def test_a_broken_prompt_does_not_hide_the_others(here: Path) -> None:
    (here / "prompts").mkdir()
    (here / "prompts" / "bad.jinja").write_text(PLAIN + "{{ x }}\n")
    done = fewrec("prompts", "list")
    assert done.code == 2
    assert "judge" in done.out
    assert "bad.jinja:7: unknown variable 'x'" in done.err


def test_render_shows_what_a_model_reads_and_the_tokens_around_the_answer(here: Path, model: Path) -> None:
    words = ["prompts", "render", "complete", "--task", "mine.toml", "--user", "u1"]
    done = fewrec(*words, "--tokens", "--model", str(model))
    assert done.code == 0, done.err
    text, _, tokens = done.out.partition("\ntokens before the answer:\n")
    assert text.rstrip("\n").endswith("- Heat\n- NA\n-")
    assert "'-'\nanswer ' Heat\\n':\n" in tokens
    plain = fewrec(*words)
    assert plain.out.rstrip("\n") == text.rstrip("\n")


# --- the real model ----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_model_ranks_for_three_people(smollm2: Path, tmp_path: Path) -> None:
    words = ["--prompt", "complete", "--prompt", "choose", "--users", "3", "--precision", "fp32"]
    done = fewrec("eval", "tiny", *words, "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    ranked = pq.read_table(tmp_path / "run" / "rankings.parquet").to_pandas()
    assert list(ranked["row"].unique()) == ["random", "popularity", "complete", "choose"]
    assert record_in(tmp_path / "run")["rows"][3]["notes"]["label_mass"] > 0.01
