"""Flags that the commands which train share: for which row a method learns, and how. Declared once, as those in
model_options.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fewrec_prompt.errors import FewrecError

if TYPE_CHECKING:
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tasks import Task

Prompt = Annotated[
    str | None,
    typer.Option(
        help="Template; by default the task's first calibrated row, of classifiers the first that judges or rates."
    ),
]
Verbalizer = Annotated[str | None, typer.Option(help="The template's own where none is given.")]
Calibrate = Annotated[str | None, typer.Option(help="What is subtracted from scores; with --prompt.")]
Alpha = Annotated[float | None, typer.Option(help="Weight of the calibration.")]
Length = Annotated[Literal["sum", "mean"] | None, typer.Option(help="How whole titles are scored.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the people; the method's own by default.")]
LearningRate = Annotated[float | None, typer.Option(help="The method's own by default.")]
WeightDecay = Annotated[float, typer.Option(help="Pull of all weights towards zero.")]
Dropout = Annotated[float, typer.Option(help="Share of a low-rank layer's inputs left out at random.")]
Batch = Annotated[int, typer.Option(help="People a step.")]
Tokens = Annotated[int, typer.Option(help="Virtual tokens.")]
Init = Annotated[str, typer.Option(help="What virtual tokens begin as: instruction, vocabulary or random.")]
Rank = Annotated[int, typer.Option(help="Rank of the low-rank methods.")]
Targets = Annotated[str, typer.Option(help="Layers that low-rank methods change: attention or all.")]
Loss = Annotated[str | None, typer.Option(help="listwise, pairwise or binary; by default what the data asks.")]
Questions = Annotated[
    int, typer.Option(help="About how many of each person's latest things to ask, another one every pass.")
]
Negatives = Annotated[
    str | None,
    typer.Option(
        help="given, uniform, shared, popularity, in-batch or hard; by default new uniform ones for every pass."
    ),
]
WarmUp = Annotated[int, typer.Option(help="Passes over histories without answers, before; with --epochs 0 instead.")]
HeldOut = Annotated[float, typer.Option(help="Share of the people that early stopping looks at.")]
Patience = Annotated[int, typer.Option(help="Passes without a better one before it stops.")]
Checkpointing = Annotated[bool, typer.Option(help="Compute more, hold less: for long prompts.")]


def settings_asked(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters of a command say of how to learn, by the names of Settings; method and seed aside."""
    from fewrec_prompt.tuning.settings import Settings

    names = [one.name for one in fields(Settings) if one.name not in ("method", "seed")]
    return {name: params[name] for name in names if name in params}


def row_asked(
    task: Task,
    prompt: str | None,
    verbalizer: str | None,
    calibrate: str | None,
    alpha: float | None,
    length: Literal["sum", "mean"] | None,
) -> RowSettings | None:
    """The row that the flags describe, as of `fewrec eval`; None: the task's own."""
    from fewrec_prompt.cli.evaluation import row_settings

    verbalizers, calibrations = ([] if one is None else [one] for one in (verbalizer, calibrate))
    alphas = [] if alpha is None else [alpha]
    if prompt is None:
        if verbalizers or calibrations or alphas or length:
            raise FewrecError("these flags say how a prompt is read; name it with --prompt")
        return None
    rows = row_settings(task, [prompt], verbalizers, calibrations, alphas, length)
    assert rows is not None, "a prompt was named"
    return rows[0]
