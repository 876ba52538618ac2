"""The command line as a person meets it: what it prints where, how it ends, and what it leaves behind when it refuses.

Each command is a process of its own. The model is a Llama of one layer that knows letters.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_evaluation import rankings_in, record_in
from test_tasks import QUERIES, items_in, queries_in

from fewrec_prompt.cli.bench import _row
from fewrec_prompt.cli.evaluation import _paired, _readings
from fewrec_prompt.cli.ranking import spread_lists
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
PLAIN = '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'
TASK = '[data]\nitems = "items.csv"\nqueries = "queries.csv"\n'


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def start(*words: str, stderr: int = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
    # one thread: so small a model gains nothing from two
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fewrec_prompt.cli", *words],
        env=os.environ | offline | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
    )


def fewrec(*words: str, patience: float = 120, **environment: str) -> Done:
    process = start(*words, **environment)
    out, err = process.communicate(timeout=patience)
    return Done(process.returncode, out, err)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have them: config.json, tokenizer.json, model.safetensors."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("models") / "my-model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=1024, **size)).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a task, mine.toml, as the working directory."""
    monkeypatch.chdir(tmp_path)
    items_in(tmp_path, "csv")
    queries_in(tmp_path, "csv")
    (tmp_path / "mine.toml").write_text(TASK)
    return tmp_path


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


# --- refused: code 2, where and what, nothing left behind --------------------------------------------------------


def refused(here: Path, *words: str) -> str:
    """What is said when this is refused, with nothing new in the folder."""
    before = sorted(str(path) for path in here.rglob("*"))
    done = fewrec(*words)
    assert done.code == 2, (done.code, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err
    assert sorted(str(path) for path in here.rglob("*")) == before
    return " ".join(done.err.replace("│", " ").split())


EVAL = ("eval", "mine.toml", "--out", "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ histroy }}\n-\n", "my.jinja:7: unknown variable 'histroy'"),
        ("a\n{% for item in history %}\n-\n", "my.jinja:9: Unexpected end of template"),
        ("a\n{{ item.title }\n-\n", "my.jinja:8: unexpected '}'"),
        ("a {{ domain }}\n-\n", "a template prints text and numbers; this is a Record"),
    ],
)
def test_a_template_with_a_mistake(here: Path, text: str, said: str) -> None:
    (here / "my.jinja").write_text(PLAIN + text)
    assert said in refused(here, *EVAL, "--prompt", "my.jinja")


def test_front_matter_with_a_mistake(here: Path) -> None:
    (here / "my.jinja").write_text(PLAIN.replace("source", "sauce") + "-\n")
    assert "my.jinja:4: unknown key 'sauce'" in refused(here, *EVAL, "--prompt", "my.jinja")


def test_an_unknown_key_in_a_task_and_in_a_verbalizer(here: Path) -> None:
    (here / "my.toml").write_text('kind = "complete"\ndescription = "d"\nlenght = "sum"\n')
    assert "my.toml:3: unknown key 'lenght'" in refused(here, *EVAL, "--prompt", "complete", "--verbalizer", "my.toml")
    (here / "mine.toml").write_text(TASK + "user = 3\n")
    assert "mine.toml:4: unknown key 'user'" in refused(here, *EVAL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history": []}, "queries.csv:3, column 'history', user 'u2': the history is empty"),
        ({"candidates": ["f", "zz"]}, "queries.csv:3, column 'candidates', user 'u2': item 'zz' is not in the cat"),
        ({"history": ["d", "f"]}, "queries.csv:3, column 'history', user 'u2': the target 'f' is among the history"),
        ({"candidates": ["f", "f", "a"]}, "user 'u2': item 'f' stands twice among the candidates"),
        ({"target": "b"}, "user 'u2': the target 'b' is not among the candidates"),
    ],
)
def test_a_query_with_a_mistake(here: Path, change: dict[str, object], said: str) -> None:
    queries_in(here, "csv", [QUERIES[0], QUERIES[1] | change])
    assert said in refused(here, *EVAL)


def test_a_missing_column_and_too_few_candidates(here: Path) -> None:
    (here / "mine.toml").write_text(TASK + "candidates = 4\n")
    assert "user 'u1': 3 candidates, but 4 were asked" in refused(here, *EVAL)
    (here / "queries.csv").write_text("user_id,history\nu1,[]\n")
    assert "queries.csv:1" in (said := refused(here, *EVAL))
    assert "'candidates'" in said


def test_one_label_for_several_candidates(here: Path) -> None:
    (here / "a.toml").write_text('kind = "choose"\ndescription = "d"\nlabels = ["A"]\n')
    said = refused(here, *EVAL, "--prompt", "choose", "--verbalizer", "a.toml")
    assert "user 'u1': 3 candidates but only 1 label" in said


def test_labels_that_this_model_cannot_tell_apart(here: Path, model: Path) -> None:
    (here / "clash.toml").write_text('kind = "choose"\ndescription = "d"\nlabels = ["1", "10", "2", "3", "4", "5"]\n')
    said = refused(here, *EVAL, "--prompt", "choose", "--verbalizer", "clash.toml", "--model", str(model))
    assert "' 1'" in said
    assert "' 10'" in said


def test_models_that_are_not_there_or_pickles(here: Path, model: Path) -> None:
    assert "no model './nope': not a folder here" in refused(here, *EVAL, "--model", "./nope")
    (here / "half").mkdir()
    (here / "half" / "config.json").write_text("{}")
    assert "half: tokenizer.json is missing" in refused(here, *EVAL, "--model", "half")
    (here / "half" / "tokenizer.json").write_text("{}")
    (here / "half" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "half: only pytorch_model.bin, which may run code when loaded" in refused(here, *EVAL, "--model", "half")


def test_output_folders_that_hold_something(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").touch()
    assert "out: not empty and not an unfinished run" in refused(here, *EVAL)


def test_an_unfinished_run_of_another_command(here: Path, model: Path) -> None:
    assert fewrec(*EVAL, "--model", str(model), "--prompt", "complete").code == 0
    (here / "out" / "run.json").unlink()
    said = refused(here, *EVAL, "--model", str(model), "--prompt", "complete", "--seed", "3")
    assert "out: holds an unfinished run with another header: settings.seed was 0, now 3" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval",), "Missing argument"),
        (("eval", "mien.toml"), "mien.toml: no such file"),
        (("eval", "tinny"), "Did you mean 'tiny'?"),
        (("eval", "."), "no task named '.'"),
        ((*EVAL, "--users", "4"), "4 users were asked, but there are 3"),
        ((*EVAL, "--users", "0"), "Invalid value for '--users'"),
        ((*EVAL, "--split", "tset"), "Invalid value for '--split'"),
        ((*EVAL, "--split", "selection"), "has no 'selection' split"),
        ((*EVAL, "--alpha", "0.6", "--calibrate", "none"), "add --calibrate pmi"),
        ((*EVAL, "--calibrate", "pmy"), "--calibrate pmy: no such calibration"),
        ((*EVAL, "--length", "median"), "Invalid value for '--length'"),
        ((*EVAL, "--prompt", "complte"), "no template named 'complte'"),
        ((*EVAL, "--prompt", "complete", "--verbalizer", "yes-no"), "needs a verbalizer of that kind"),
        ((*EVAL, "--metric", "nDGC@10"), "nDCG"),
        ((*EVAL, "--metric", "./gain"), "no such script or folder here"),
        ((*EVAL, "--candidates", "gone.parquet"), "gone.parquet"),
        ((*EVAL, "--bogus"), "No such option: --bogus"),
        (("search", "mine.toml"), 'selection = "FILE" below [data]'),
        (("search", "tiny", "--alpha", "1", "--calibrate", "none"), "add --calibrate pmi"),
        (("search", "tiny", "--alpha", "1", "--alpha-range", "0", "1"), "give one of them"),
        (("search", "tiny", "--alpha-range", "1", "0"), "is no range"),
        (
            ("search", "tiny", "--calibrate", "pmy"),
            "unknown calibration 'pmy'; known: batch, contextual, none, pmi, position. Did you mean 'pmi'?",
        ),
        (("search", "tiny", "--metric", "coverage@10"), "choose by another metric"),
        (("search", "tiny", "--verbalizer", "letters"), "none of the prompts fits verbalizer 'letters'"),
        (("rank", "--candidates", "a"), "Missing option '--history'"),
        (("rank", "--history", "--candidates", "a"), "Missing option '--history'"),
        (("rank", "--history", "a", "--candidates", "b", "b"), "candidate 'b' is given more than once"),
        (("rank", "--task", "mine.toml", "--history", "Hate", "--candidates", "Up"), "did you mean 'Heat'?"),
        (("rank", "--task", "mine.toml", "--history", "Heat", "--candidates", "Up"), "is the title of 2 items; give"),
        (("rank", "--task", "mine.toml", "--history", "c", "--candidates", "Up", "f"), "item 'f' (Up) is given more"),
        ((*EVAL, "--unit", "big"), "unknown unit 'big'; known: auto, canonical, throughput"),
        ((*EVAL, "--precision", "bf16", "--int8-threshold", "6"), "an int8 threshold says nothing about bf16"),
        (("rank", "--history", "a", "--candidates", "b", "--token-budget", "0"), "token budget 0: give a whole number"),
        (("bench", "precision", "fp32", "int9", "--task", "mine.toml"), "unknown precision 'int9'"),
        (("bench", "precision", "--task", "mine.toml"), "has no 'selection' split"),
        (("bench", "precision", "--task", "mine.toml", "--split", "test", "--model", "./nope"), "no model './nope'"),
        (("bench", "precision", "--task", "mine.toml", "--calibrate", "pmo"), "--calibrate pmo: no such calibration"),
        (("bench", "precision", "--users", "0"), "Invalid value for '--users'"),
        (("prompts", "show", "nope"), "no template named 'nope'"),
        (("prompts", "render", "complete", "--task", "mine.toml", "--user", "u9"), "user 'u9' is not among the 3"),
    ],
)
def test_words_that_make_no_sense(here: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(here, *words)


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
