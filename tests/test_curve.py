"""A study of cells: what one costs whoever asked first, what stops it before it begins, what is told on the way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _tiny import save_model
from test_layouts import OTHERS
from typer.testing import CliRunner

import fewrec_prompt.curve as of_cells
from fewrec_prompt import assets, scoring, tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cells import ZERO, read_cell
from fewrec_prompt.cli import app
from fewrec_prompt.curve import curve
from fewrec_prompt.errors import ArtifactError, DataError, FewrecError, ModelError
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.settings import METHODS, Settings

PMI = RowSettings(prompt="complete", calibrate="pmi")
ONCE = {"epochs": 1, "held_out": 0.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "scores"))


def backend(model: Path, precision: Any = "fp32") -> causal.CausalBackend:
    return causal.load(str(model), Numerics(precision, "cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the model moves: by a second, whatever it is asked."""
    now = [0.0]
    for name in ("logprobs", "hidden"):
        real = getattr(causal.CausalBackend, name)

        def slow(self: Any, *asked: Any, _real: Any = real, **how: Any) -> Any:
            now[0] += 1.0
            return _real(self, *asked, **how)

        monkeypatch.setattr(causal.CausalBackend, name, slow)
    still = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("fewrec_prompt.study.time", still)
    monkeypatch.setattr(scoring, "time", still)


def cost(folder: Path) -> dict[str, float]:
    """Milliseconds a person, by cell."""
    return {path.stem: read_cell(path).ms_per_user for path in (folder / "cells").iterdir()}


@pytest.mark.usefixtures("clock")
def test_a_cell_costs_the_same_whoever_asked_first(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """Questions and twins are two seconds of this model; those of the mix were asked for zero shots before."""
    methods = [ZERO, "random", "mix", "demos", "lora"]
    expected = {ZERO: 2000, "random": 0, "mix-2-0": 2000, "demos-2-0": 2000, "lora-2-0": 2000}
    for _ in range(2):  # with all answers asked now, then with all of them kept
        curve(task, methods, [2], 1, tmp_path / "out", row=PMI, settings=ONCE, backend=backend(model))
        assert cost(tmp_path / "out") == expected
        for path in (tmp_path / "out" / "cells").iterdir():
            path.unlink()


@pytest.mark.usefixtures("clock")
def test_a_classifier_costs_what_its_states_cost(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    row = RowSettings(prompt="judge")
    curve(
        task,
        [ZERO, "prototypes"],
        [4],
        1,
        tmp_path / "out",
        row=row,
        settings={"held_out": 0.0},
        backend=backend(model),
    )
    assert cost(tmp_path / "out") == {ZERO: 1000, "prototypes-4-0": 1000}


# --- before the first cell


@pytest.mark.parametrize(
    ("methods", "shots", "how", "error", "says"),
    [
        (["mix"], [2, 9], {}, DataError, "9 shots were asked, but there are 8 people"),
        (["lora"], [2], {"epoch": 1}, FewrecError, r"unknown tuning setting 'epoch'.*epochs"),
        (["lora"], [2], {"rank": 0}, FewrecError, "rank is 0"),
        (["adalora"], [2], ONCE, ModelError, "adalora plans its ranks over 1 steps, and needs 4"),
        (["full"], [2], ONCE, ModelError, "'full'.*--precision fp32"),
        (["lora"], [2], {"questions": 2, "negatives": "given"}, DataError, "2 questions of a person"),
    ],
)
def test_what_would_stop_a_later_cell_stops_the_study_before_the_first(
    methods: list[str],
    shots: list[int],
    how: dict[str, Any],
    error: type[Exception],
    says: str,
    task: tasks.Task,
    model: Path,
    tmp_path: Path,
) -> None:
    base = backend(model, "bf16" if "full" in methods else "fp32")
    with pytest.raises(error, match=says):
        curve(task, [ZERO, *methods], shots, 1, tmp_path / "out", row=PMI, settings=how, backend=base)
    assert not (tmp_path / "out").exists(), "other settings may still be given"


def test_a_setting_that_no_method_reads_is_refused_by_name(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """But not in a study that goes on: there it is what the others were told."""
    how: dict[str, Any] = {"row": PMI, "settings": ONCE | {"warm_up": 1}, "backend": backend(model)}
    with pytest.raises(FewrecError, match=r"none of zero, demos, mix makes use of epochs, warm-up, held-out; leave"):
        curve(task, [ZERO, "demos", "mix"], [2], 1, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FewrecError, match=r"none of zero, head makes use of warm-up"):
        curve(task, [ZERO, "head"], [2], 1, tmp_path / "out", **how)
    curve(task, [ZERO, "mix", "lora"], [2], 1, tmp_path / "out", **how)
    curve(task, [ZERO, "mix"], [3], 1, tmp_path / "out", **how)
    assert {"mix-2-0", "mix-3-0", "lora-2-0"} <= {path.stem for path in (tmp_path / "out" / "cells").iterdir()}


def test_flags_of_the_command_reach_the_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A study says those that were given; of the others nothing, so that earlier studies go on."""
    monkeypatch.chdir(tmp_path)
    plainly = ["--model", str(model), "--precision", "fp32", "--device", "cpu", "--shots", "2", "--epochs", "1"]
    given = {"targets": "all", "rank": 2, "learning_rate": 0.002, "batch": 1, "tokens": 3, "init": "vocabulary"}
    given |= {"dropout": 0.1, "weight_decay": 0.01, "loss": "pairwise", "patience": 3}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    read = ["--calibrate", "pmi", "--alpha", "0.5", "--length", "mean"]
    words = ["curve", "tiny", "--methods", "lora", "--methods", "soft-prompt", "--prompt", "complete", *plainly]
    for out, more in (("plain", []), ("told", [*flags, *read])):
        done = CliRunner().invoke(app, [*words, *more, "--out", out])
        assert done.exit_code == 0, done.output
    assert not [one for one in recwarn if "PEFT" in str(one.message)], "of two methods that learn in one model"
    told, plain = (json.loads((tmp_path / out / "study.json").read_text()) for out in ("told", "plain"))
    assert told["tuning"] == plain["tuning"] | given
    assert set(plain["tuning"]) == {"epochs", "negatives", "held_out"}
    changed = {name: value for name, value in told["row"].items() if value != plain["row"][name]}
    assert changed == {"calibrate": "pmi", "alpha": 0.5, "length": "mean"}
    for method in ("lora", "soft-prompt"):
        sizes = [read_cell(tmp_path / out / "cells" / f"{method}-2-0.json").n_weights for out in ("told", "plain")]
        assert sizes[0] != sizes[1]
        learnt = adapters.read(tmp_path / "told" / "adapters" / f"{method}-2-0").about["settings"]
        assert {name: learnt[name] for name in given if name in METHODS[method].reads} == {
            name: value for name, value in given.items() if name in METHODS[method].reads
        }


def test_a_template_that_shows_no_examples_stops_it_too(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    row = RowSettings(prompt="films-complete")
    with pytest.raises(ArtifactError, match="films-complete-demos"):
        curve(task, [ZERO, "demos"], [2], 1, tmp_path / "out", row=row, backend=backend(model))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "family", "precision"),
    [
        (Settings("full", held_out=0.0), "llama", "bf16"),
        (Settings("adalora", epochs=1, held_out=0.0), "llama", "fp32"),
        (Settings("prefix", held_out=0.0), "mamba", "fp32"),
    ],
)
def test_what_is_refused_ahead_is_what_a_training_refuses(
    settings: Settings, family: str, precision: str, task: tasks.Task, tmp_path: Path
) -> None:
    from fewrec_prompt.tuning.ahead import check_ahead

    small = OTHERS.get(family, {}) | {"max_position_embeddings": 512}
    base = backend(save_model(tmp_path / "model", family, **small), precision)
    with pytest.raises(ModelError) as trained:
        tune_task(task, settings, 2, tmp_path / "x", row=PMI, backend=base)
    with pytest.raises(ModelError) as ahead:
        check_ahead(settings, base, settings.complete().n_steps(2))
    assert str(ahead.value) == str(trained.value)


# --- on the way


def test_cells_that_are_done_are_shown_where_a_later_one_fails(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise DataError("this one fails")

    monkeypatch.setattr(of_cells, "WAYS", {**of_cells.WAYS, "lora": fails})
    with pytest.raises(DataError, match="this one fails"):
        curve(task, [ZERO, "lora", "mix"], [2, 3], 1, tmp_path, row=PMI, settings=ONCE, backend=backend(model))
    assert [line["method"] for line in json.loads((tmp_path / "curve.json").read_text())["lines"]] == [ZERO]
    monkeypatch.undo()
    curve(task, [ZERO, "lora", "mix"], [2], 1, tmp_path, row=PMI, settings=ONCE, backend=backend(model))
    (tmp_path / "cells" / "lora-2-0.json").unlink()
    monkeypatch.setattr(of_cells, "WAYS", {**of_cells.WAYS, "lora": fails})
    with pytest.raises(DataError, match="this one fails"):
        curve(task, [ZERO, "lora", "mix"], [2], 1, tmp_path, row=PMI, settings=ONCE, backend=backend(model))
    lines = json.loads((tmp_path / "curve.json").read_text())["lines"]
    assert [line["method"] for line in lines] == [ZERO, "mix"], "also those that stand behind it"
    assert "<svg" in (tmp_path / "curve.html").read_text()


def test_a_study_whose_first_cell_fails_has_no_table(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ModelError("no model answers")

    monkeypatch.setattr(of_cells, "still", fails)
    with pytest.raises(ModelError, match="no model answers"):
        curve(task, [ZERO], [2], 1, tmp_path, row=PMI, backend=backend(model))
    assert not (tmp_path / "curve.json").exists()


def test_every_cell_says_how_far_it_is(
    task: tasks.Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "EVERY", 3)
    said: list[str] = []
    curve(task, [ZERO, "demos", "mix"], [4], 1, tmp_path, row=PMI, backend=backend(model), say=said.append)
    for name in (ZERO, "demos-4-0", "mix-4-0"):
        assert [f"{name}: {n} of 6 people" for n in (3, 6) if f"{name}: {n} of 6 people" in said], name
    assert "mix-4-0, to learn from: 3 of 4 people" in said


def test_a_method_or_a_number_named_twice_is_one(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    lines = curve(task, [ZERO, "mix", "mix"], [2, 2], 1, tmp_path, row=PMI, backend=backend(model))
    assert [(line.method, line.n_seeds) for line in lines] == [(ZERO, 1), ("mix", 1)]
