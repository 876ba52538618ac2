"""Flags that the commands which train share: for which row a method learns, and how. Declared once, as those in
model_options.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from fewrec_prompt.errors import FewrecError

if TYPE_CHECKING:
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tasks import Task

Command = TypeVar("Command", bound=Callable[..., None])


def _flag(name: str, kind: Any, default: Any, told: str) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=typer.Option(default, help=told)
    )


FLAGS = (
    _flag("prompt", str | None, None, "Template; by default the task's first calibrated row, of classifiers that tune "
          "learns the first that judges or rates."),
    _flag("verbalizer", str | None, None, "The template's own where none is given."),
    _flag("calibrate", str | None, None, "What is subtracted from scores; with --prompt."),
    _flag("alpha", float | None, None, "Weight of the calibration."),
    _flag("length", Literal["sum", "mean"] | None, None, "How whole titles are scored."),
    _flag("epochs", int | None, None, "Passes over the people; the method's own by default."),
    _flag("learning_rate", float | None, None, "The method's own by default."),
    _flag("weight_decay", float, 0.0, "Pull of all weights towards zero."),
    _flag("dropout", float, 0.0, "Share of a low-rank layer's inputs left out at random."),
    _flag("batch", int, 4, "People a step."),
    _flag("tokens", int, 20, "Virtual tokens."),
    _flag("init", str, "instruction", "What virtual tokens begin as: instruction, vocabulary or random."),
    _flag("rank", int, 8, "Rank of the low-rank methods."),
    _flag("targets", str, "attention", "Layers that low-rank methods change: attention or all."),
    _flag("loss", str | None, None, "listwise, pairwise or binary; by default what the data asks."),
    _flag("questions", int, 1, "About how many of each person's latest things to ask, another one every pass."),
    _flag("negatives", str | None, None, "given, uniform, shared, popularity, in-batch or hard; by default new uniform "
          "ones for every pass."),
    _flag("warm_up", int, 0, "Passes over histories without answers, before; with --epochs 0 instead."),
    _flag("held_out", float, 0.25, "Share of the people that early stopping looks at."),
    _flag("patience", int, 2, "Passes without a better one before it stops."),
    _flag("checkpointing", bool, False, "Compute more, hold less: for long prompts."),
)  # fmt: skip


def with_flags(command: Command) -> Command:
    """The command with a parameter for each of FLAGS in the place of its last one, `**flags`."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    together = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    command.__signature__ = signature.replace(parameters=[*together, *FLAGS])  # type: ignore[attr-defined]  # typer reads it
    return command


def settings_asked(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What flags say of how to learn, by the names of Settings; method and seed aside."""
    from fewrec_prompt.tuning.settings import Settings

    names = [one.name for one in fields(Settings) if one.name not in ("method", "seed")]
    return {name: flags[name] for name in names if name in flags}


def row_asked(task: Task, flags: Mapping[str, Any]) -> RowSettings | None:
    """The row that flags describe, as of `fewrec eval`; None: the task's own."""
    from fewrec_prompt.cli.evaluation import row_settings

    prompt, length = flags["prompt"], flags["length"]
    verbalizers, calibrations, alphas = (
        [] if flags[name] is None else [flags[name]] for name in ("verbalizer", "calibrate", "alpha")
    )
    if prompt is None:
        if verbalizers or calibrations or alphas or length:
            raise FewrecError("these flags say how a prompt is read; name it with --prompt")
        return None
    rows = row_settings(task, [prompt], verbalizers, calibrations, alphas, length)
    assert rows is not None, "a prompt was named"
    return rows[0]
