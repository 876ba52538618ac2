"""`fewrec curve`: zero against few shots, method by method, on the same users, candidates and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewrec_prompt.cli.model_options import Device, Model, Precision
from fewrec_prompt.cli.tuning_options import (
    Batch,
    Epochs,
    HeldOut,
    LearningRate,
    Negatives,
    Prompt,
    Questions,
    Rank,
    Targets,
    WarmUp,
)


def register(app: typer.Typer) -> None:
    """Add the command. Click takes one value an option, so `main` spreads the two lists before it parses."""
    app.command("curve")(curve)


def curve(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    methods: Annotated[
        list[str], typer.Option(help="zero, a baseline, demos, mix, a method of fewrec tune, or METHOD-mix; several.")
    ],
    shots: Annotated[list[int], typer.Option(help="Numbers of people to learn from; several after one flag.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds draw people, weights and order.")] = 1,
    metric: Annotated[
        list[str], typer.Option(help="What the curve shows; of a question, pooled-AUC or user-AUC; several.")
    ] = ["nDCG@10"],  # noqa: B006  # typer reads it, nobody changes it
    against: Annotated[
        str, typer.Option(help="Which row differences are to: zero, or a baseline among them.")
    ] = "zero",
    epochs: Epochs = None,
    questions: Questions = 1,
    warm_up: WarmUp = 0,
    targets: Targets = "attention",
    rank: Rank = 8,
    learning_rate: LearningRate = None,
    batch: Batch = 4,
    negatives: Negatives = None,
    held_out: HeldOut = 0.25,
    prompt: Prompt = None,
    users: Annotated[int | None, typer.Option(min=1, help="How many test users.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; cells in it are not run again.")] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
) -> None:
    """Every method with every number of people: one table, one picture, and a file for each cell.

    --methods zero mix lora --shots 4 16 64
    """
    from fewrec_prompt import Numerics, Options, tasks
    from fewrec_prompt.cli.console import print_lines, resumable, say
    from fewrec_prompt.curve import PICTURE
    from fewrec_prompt.curve import curve as run
    from fewrec_prompt.curve_table import heads, remarks, shown
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tuning.settings import Settings

    found = Options(users=users, model=model).applied(tasks.load_task(task))
    folder = out or Path("curves") / found.name
    tuning: dict[str, Any] = {"epochs": epochs, "negatives": negatives, "held_out": held_out}
    later: dict[str, Any] = {"questions": questions, "warm_up": warm_up, "targets": targets, "rank": rank}
    later |= {"batch": batch, "learning_rate": learning_rate}
    usual = Settings()  # studies from before these could be said go on
    tuning |= {name: value for name, value in later.items() if value != getattr(usual, name)}
    row = None if prompt is None else RowSettings(prompt=prompt)
    about: dict[str, Any] = {"row": row, "metrics": metric, "against": against, "settings": tuning}
    with resumable():
        lines = run(found, methods, shots, seeds, folder, **about, numerics=Numerics(precision, device), say=say)
    print_lines([heads(against), *(shown(line, against) for line in lines)])
    for remark in remarks(lines):
        typer.echo(remark)
    typer.echo(f"\npicture  {folder / PICTURE}")
