"""What the command line refuses: with code 2, where and what, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from _commands import EVAL, PLAIN, TASK, fewrec, project, refused, save_letters
from test_tasks import QUERIES, queries_in


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_letters(tmp_path_factory.mktemp("models") / "my-model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return project(tmp_path)


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
