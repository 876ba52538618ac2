"""Flags that the commands which train share: how a method learns. Declared once, as those in model_options.py."""

from __future__ import annotations

from typing import Annotated

import typer

Prompt = Annotated[
    str | None,
    typer.Option(
        help="Template; by default the task's first calibrated row, of classifiers the first that judges or rates."
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the people; the method's own by default.")]
LearningRate = Annotated[float | None, typer.Option(help="The method's own by default.")]
Batch = Annotated[int, typer.Option(help="People a step.")]
Rank = Annotated[int, typer.Option(help="Rank of the low-rank methods.")]
Targets = Annotated[str, typer.Option(help="Layers that low-rank methods change: attention or all.")]
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
