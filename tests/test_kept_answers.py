"""Runs that share answers: what is scored, what is known, what a run says about it, and what ends no run."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation import FULL, PLAIN, PMI, WordyBackend, rankings_in, record_in, tiny

from fewrec_prompt import score_cache
from fewrec_prompt.backends import Identity
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.evaluation import Run, evaluate
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.types import Question, TokenLogprobs

JUDGE = RowSettings(prompt="judge")


class Named(WordyBackend):
    """A model without a model whose answers may be kept: it is called as it is, its questions by their text."""

    name = "first"

    def identity(self, questions: Sequence[Question]) -> Identity:
        said = [f"{question.prompt}\0{text}" for question in questions for text in question.continuations]
        order = tuple(sorted(range(len(said)), key=said.__getitem__))
        return Identity(sha256("\1".join([self.name, *sorted(said)]).encode()).hexdigest(), order)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of answers, of this test alone; the working directory is the project's."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores-1.sqlite"


def run_of(out: Path, *rows: RowSettings, backend: WordyBackend | None = None, **how: Any) -> Run:
    return evaluate(tiny(*rows), out=out, backend=backend or Named(), **how)


def units(run: Run) -> dict[str, int]:
    return record_in(run.folder)["units"]


def sqlite(path: Path, statement: str, *values: object) -> list[Any]:
    with sqlite3.connect(path) as database:
        return database.execute(statement, values).fetchall()


# --- what is scored ----------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first = run_of(tmp_path / "first", PLAIN, PMI, JUDGE)
    backend = Named()
    again = run_of(tmp_path / "again", PLAIN, PMI, JUDGE, backend=backend)

    assert backend.asked == []
    assert units(first) == {"scored": 18, "cached": 0, "damaged": 0}
    assert units(again) == {"scored": 0, "cached": 18, "damaged": 0}
    assert rankings_in(first.folder) == rankings_in(again.folder)


def test_without_the_cache_everything_is_asked_and_nothing_kept(tmp_path: Path, kept: Path) -> None:
    run_of(tmp_path / "first", PLAIN, cache=False)
    assert not kept.exists()
    run_of(tmp_path / "second", PLAIN)
    assert units(run_of(tmp_path / "third", PLAIN, cache=False)) == {"scored": 6, "cached": 0, "damaged": 0}


def test_what_only_reads_answers_asks_nothing(tmp_path: Path) -> None:
    run_of(tmp_path / "first", PMI)
    backend = Named()
    mean = RowSettings(prompt="complete", length="mean")
    for at, rows in enumerate([(FULL,), (mean,), (PLAIN,)]):
        run_of(tmp_path / str(at), *rows, backend=backend)
    evaluate(tiny(PMI, metrics=("MRR", "nDCG@3")), out=tmp_path / "metrics", backend=backend)
    assert backend.asked == []


def test_another_calibration_asks_the_twins_that_are_not_there(tmp_path: Path) -> None:
    run_of(tmp_path / "first", PLAIN)
    assert units(run_of(tmp_path / "second", PMI)) == {"scored": 6, "cached": 6, "damaged": 0}


def test_a_comment_in_one_template_of_two_scores_nothing_and_a_word_scores_that_template(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    text = Path("prompts/complete.jinja").read_text(encoding="utf-8")
    mine.write_text(text, encoding="utf-8")
    rows = (RowSettings(prompt=str(mine)), JUDGE)
    run_of(tmp_path / "first", *rows)

    mine.write_text(text.replace("Here is", "{# a note to myself #}Here is"), encoding="utf-8")
    assert units(run_of(tmp_path / "comment", *rows)) == {"scored": 0, "cached": 12, "damaged": 0}

    mine.write_text(text.replace("Here is", "This is"), encoding="utf-8")
    assert units(run_of(tmp_path / "word", *rows)) == {"scored": 6, "cached": 6, "damaged": 0}


def test_another_model_shares_nothing(tmp_path: Path) -> None:
    run_of(tmp_path / "first", PLAIN)
    other = Named()
    other.name = "second"
    assert units(run_of(tmp_path / "second", PLAIN, backend=other))["cached"] == 0


def test_a_backend_that_names_nothing_is_asked_every_time(tmp_path: Path, kept: Path) -> None:
    for name in ("first", "second"):
        run = run_of(tmp_path / name, PLAIN, backend=WordyBackend())
        assert units(run) == {"scored": 6, "cached": 0, "damaged": 0}
    assert not kept.exists()


def test_an_interrupted_run_counts_all_its_units_when_it_goes_on(tmp_path: Path) -> None:
    class Interrupted(Named):
        def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().logprobs(questions)

    Interrupted.__name__ = "Named"
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", PLAIN, backend=Interrupted())
    assert units(run_of(tmp_path / "run", PLAIN)) == {"scored": 6, "cached": 0, "damaged": 0}
    assert units(run_of(tmp_path / "other", PLAIN)) == {"scored": 0, "cached": 6, "damaged": 0}


def test_a_known_answer_costs_what_it_took_to_compute(tmp_path: Path, kept: Path) -> None:
    run_of(tmp_path / "first", PLAIN)
    sqlite(kept, "DELETE FROM units WHERE id > 5")
    cheap = sum(ms for (ms,) in sqlite(kept, "SELECT ms FROM units"))
    run = run_of(tmp_path / "again", PLAIN)
    assert units(run)["cached"] == 5
    assert run.rows[2]["ms_per_user"] >= cheap / 6


def test_an_answer_without_any_label_is_refused_from_the_cache_as_from_the_model(tmp_path: Path) -> None:
    class Elsewhere(Named):
        def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
            self.asked.extend(questions)
            return [tuple(np.array([-50.0]) for _ in question.continuations) for question in questions]

    for out in ("first", "again"):
        backend = Elsewhere()
        with pytest.raises(VerbalizerError, match="gives all labels together a probability"):
            run_of(tmp_path / out, JUDGE, backend=backend)
        assert len(backend.asked) == (6 if out == "first" else 0)


# --- what is wrong with the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_flips", [40, pytest.param(300, marks=pytest.mark.long)])
def test_no_flip_in_the_file_changes_a_result(tmp_path: Path, kept: Path, n_flips: int) -> None:
    """Half of them in what a model answered: that unit is asked again, and no other."""
    cold = rankings_in(run_of(tmp_path / "cold", PLAIN, PMI).folder)
    whole, rng = kept.read_bytes(), random.Random(0)
    answers = [blob for (blob,) in sqlite(kept, "SELECT logprobs FROM units")]
    assert len(answers) == 12
    for n in range(n_flips):
        at = rng.randrange(len(whole)) if n % 2 else _inside(rng.choice(answers), whole, rng)
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        run = run_of(tmp_path / f"run-{n}", PLAIN, PMI)
        assert rankings_in(run.folder) == cold
        if not n % 2:
            assert units(run) == {"scored": 1, "cached": 11, "damaged": 1}
        for tail in ("-wal", "-shm"):
            kept.with_name(kept.name + tail).unlink(missing_ok=True)


def _inside(blob: bytes, whole: bytes, rng: random.Random) -> int:
    """A place in these bytes, which the file holds once."""
    assert whole.count(blob) == 1
    return whole.index(blob) + rng.randrange(len(blob))


def test_a_damaged_answer_is_asked_again_and_counted(tmp_path: Path, kept: Path) -> None:
    run_of(tmp_path / "first", PLAIN)
    sqlite(kept, "UPDATE units SET logprobs = zeroblob(length(logprobs)) WHERE id = 2")
    run = run_of(tmp_path / "second", PLAIN)
    assert units(run) == {"scored": 1, "cached": 5, "damaged": 1}
    assert units(run_of(tmp_path / "third", PLAIN)) == {"scored": 0, "cached": 6, "damaged": 0}
    assert rankings_in(tmp_path / "first") == rankings_in(run.folder)


def test_a_cache_that_cannot_be_made_ends_no_run_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "file" / "below"))
    said: list[str] = []
    run = run_of(tmp_path / "run", PLAIN, PMI, say=said.append)
    assert units(run) == {"scored": 12, "cached": 0, "damaged": 0}
    assert len([line for line in said if "the run goes on, but keeps no answers" in line]) == 1


def test_a_disk_that_is_full_of_answers_ends_no_run(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(score_cache.ScoreCache, "_write", full)
        whole = run_of(tmp_path / "first", PLAIN, say=said.append)
    assert len([line for line in said if "database or disk is full" in line]) == 1
    assert rankings_in(whole.folder) == rankings_in(run_of(tmp_path / "second", PLAIN, cache=False).folder)
    assert units(run_of(tmp_path / "third", PLAIN)) == {"scored": 6, "cached": 0, "damaged": 0}
