"""Trackers are told of every pass, of nothing else, and by nobody who did not ask."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker, get_available_trackers
from test_few_shot import LORA, backend
from test_together import lessons
from test_tuning import settings
from typer.testing import CliRunner

from fewrec_prompt import tasks
from fewrec_prompt.cli import app
from fewrec_prompt.errors import FewrecError, NumericError
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.tuning import lessons as measures
from fewrec_prompt.tuning.loop import tune_together
from fewrec_prompt.tuning.losses import LOSSES
from fewrec_prompt.tuning.tracking import Tracking


class Notes(GeneralTracker):  # type: ignore[misc]  # accelerate ships no types
    """Keeps what it is told."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.about: dict[str, Any] = {}
        self.told: list[tuple[int, dict[str, float]]] = []
        self.done = False

    @property
    def tracker(self) -> Notes:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.about = values

    def log(self, values: dict[str, float], step: int, **_: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.done = True


def test_a_tracker_is_told_of_every_pass_and_every_task() -> None:
    notes = Notes()
    tuned = tune_together(lessons(2), settings("lora", epochs=2, patience=9), track=Tracking([notes]))
    assert [step for step, _ in notes.told] == [0, 1, 2]
    for (_, values), done in zip(notes.told, tuned.passes, strict=True):
        assert values == {
            "loss": done.loss,
            "held_out": done.metric,
            "tokens_per_second": done.tokens_per_second,
            "loss/films": done.losses["films"],
            "loss/books": done.losses["books"],
            "held_out/films": done.metrics["films"],
            "held_out/books": done.metrics["books"],
        }
    assert notes.about["tasks"] == "films, books"
    assert notes.about["learning_rate"] == 1e-2
    assert notes.done


def test_a_tracker_learns_numbers_and_settings_alone(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    """No title, no id of a person, no path and nothing of the environment."""
    notes = Notes()
    tune_task(task, LORA, 3, tmp_path / "x", backend=backend(model), track=[notes])
    assert all(isinstance(value, float) for _, values in notes.told for value in values.values())
    words = {name: value for name, value in notes.about.items() if isinstance(value, str)}
    assert words == {
        "method": "lora",
        "targets": "attention",
        "init": "instruction",
        "metric": "nDCG@10",
        "tasks": "tiny",
    }
    assert all(isinstance(value, str | int | float) for value in notes.about.values())


def test_a_tracker_is_done_after_a_training_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "listwise", lambda scores, relevant: scores.sum() * float("nan"))
    monkeypatch.setattr(measures, "best_scale", lambda *_: (0.0, 1.0))
    notes = Notes()
    with pytest.raises(NumericError):
        tune_together(lessons(), settings("lora"), track=Tracking([notes]))
    assert notes.done


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_missing_is_named_before_anything_is_trained(
    name: str,
    task: tasks.Task,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(FewrecError, match=f"'{name}' is not installed: pip install {name}"):
        tune_task(task, LORA, 3, tmp_path / "x", backend=backend(model), track=[name])  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())
    flags = ["--model", str(model), "--method", "lora", "--shots", "3", "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(app, ["tune", "tiny", *flags, "--track", name])
    assert "pip install" in str(done.exception)


def test_a_tracker_that_does_not_start_is_an_error_of_its_own() -> None:
    class Unreachable(Notes):
        def store_init_configuration(self, values: dict[str, Any]) -> None:
            raise ConnectionError("no server at this address\nand a page of more")

    with pytest.raises(
        FewrecError, match=r"could not be started: no server at this address; set it up, or leave --track"
    ):
        tune_together(lessons(), settings("lora"), track=Tracking([Unreachable()]))


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(FewrecError, match=r"unknown tracker 'wandbb'.*wandb"):
        Tracking(["wandbb"])  # type: ignore[list-item]


def test_tensorboard_is_written_beside_the_adapter(task: tasks.Task, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    assert "tensorboard" in [str(one) for one in get_available_trackers()]
    tuned = tune_task(task, LORA, 3, tmp_path / "x", backend=backend(model), track=["tensorboard"])
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.tracked"}
    found = [point for path in tmp_path.rglob("*tfevents*") for point in points(path)]
    losses = [value for tag, _, value in sorted(found, key=lambda one: one[1]) if tag == "loss"]
    assert losses == pytest.approx([done.loss for done in tuned.passes])


def points(path: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) in a file of events: each a length, its checksum, a message, its checksum (TFRecord)."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        found += [(one.tag, event.step, one.simple_value) for one in event.summary.value]
        at += 16 + length
    return found
