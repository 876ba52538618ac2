"""Experiment trackers that are told how a training goes, pass by pass, through accelerate. None by default.

They are told numbers, settings, names of tasks and what the training is called: no text, no id of a person, no path.
What a tracker records by itself (host, program, git commit) is that tracker's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from fewrec_prompt.errors import FewrecError, did_you_mean
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.outcome import Pass, metrics_of
from fewrec_prompt.tuning.settings import Settings

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
Tracker: TypeAlias = TrackerName | GeneralTracker
PROJECT = "fewrec-prompt"


@dataclass(frozen=True, slots=True)
class Tracking:
    """Who is told, the name they know the training by, and the folder of those that write files of their own.

    A tracker is one of accelerate's by its name, or any `accelerate.tracking.GeneralTracker`. Raises FewrecError for an
    unknown name, and for one that is not installed.
    """

    trackers: Sequence[Tracker] = ()
    name: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        for tracker in self.trackers:
            if isinstance(tracker, str):
                _check(tracker)

    def telling(self, settings: Settings, lessons: Sequence[Lesson]) -> AbstractContextManager[Accelerator]:
        """The accelerator of a training, whose trackers know how it learns and what from."""
        about = settings.to_dict() | {"metric": metrics_of(lessons), "tasks": ", ".join(one.name for one in lessons)}
        return self.to_them(about, cpu=lessons[0].recommender.backend.mode.device == "cpu")

    @contextmanager
    def to_them(self, about: Mapping[str, Any], *, cpu: bool) -> Iterator[Accelerator]:
        """An accelerator whose `log` tells them; they are done when the block ends, however it does."""
        accelerator = _accelerator(cpu=cpu, log_with=list(self.trackers) or None, project_dir=self.folder)
        own = {"wandb": {"name": self.name}, "mlflow": {"run_name": self.name}}
        settings = {key: value for key, value in about.items() if value is not None}
        try:
            accelerator.init_trackers(PROJECT, settings, own)
        except Exception as error:  # each tracker has errors of its own: no server, no login, no folder
            told = str(error).strip().partition("\n")[0]
            raise FewrecError(
                f"a tracker of {', '.join(map(str, self.trackers))} could not be started: {told}; set it up, or leave "
                "--track out"
            ) from error
        try:
            yield accelerator
        finally:
            for tracker in accelerator.trackers:  # `end_training` would end the processes' group, too
                tracker.finish()


def _accelerator(**how: Any) -> Accelerator:
    try:
        return Accelerator(**how)
    except ValueError as error:  # its state is the process's: what was begun on a GPU stays there
        raise FewrecError(
            f"accelerate cannot begin here: {error}. In one process train on a GPU or on the CPU, not on both"
        ) from error


def _check(name: str) -> None:
    known = get_args(TrackerName)
    if name not in known:
        raise FewrecError(f"unknown tracker {name!r}; {did_you_mean(name, known)}")
    if name not in [str(one) for one in get_available_trackers()]:
        raise FewrecError(f"the tracker {name!r} is not installed: pip install {name}, or leave --track out")


def numbers_of(done: Pass) -> Mapping[str, float]:
    """What trackers are told of a pass: numbers under the names of tasks, and nothing of a person."""
    held = {} if done.metric is None else {"held_out": done.metric}
    losses = {f"loss/{name}": loss for name, loss in done.losses.items() if len(done.losses) > 1}
    metrics = {f"held_out/{name}": metric for name, metric in done.metrics.items() if len(done.losses) > 1}
    told = {"loss": done.loss, **held, "tokens_per_second": done.tokens_per_second, **losses, **metrics}
    return told | {f"held_out/{name}": value for name, value in done.classes.items()}
