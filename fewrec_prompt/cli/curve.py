"""`fewrec curve`: zero against few shots, method by method, on the same users, candidates and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewrec_prompt.cli.model_options import Device, Model, Precision


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
    epochs: Annotated[int | None, typer.Option(help="Passes over the people; the method's own by default.")] = None,
    questions: Annotated[
        int, typer.Option(help="About how many of each person's latest things to ask, another one every pass.")
    ] = 1,
    warm_up: Annotated[int, typer.Option(help="Passes over histories without answers, before.")] = 0,
    targets: Annotated[str, typer.Option(help="Layers that low-rank methods change: attention or all.")] = "attention",
    rank: Annotated[int, typer.Option(help="Rank of the low-rank methods.")] = 8,
    learning_rate: Annotated[float | None, typer.Option(help="Of all methods; each method's own by default.")] = None,
    batch: Annotated[int, typer.Option(help="People a step.")] = 4,
    negatives: Annotated[str | None, typer.Option(help="What answers are learnt against; see fewrec tune.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the people that early stopping looks at.")] = 0.25,
    prompt: Annotated[str | None, typer.Option(help="Template; by default the task's first calibrated row.")] = None,
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
    from fewrec_prompt.curve_table import heads, left_out, shown
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tuning.settings import Settings

    found = Options(users=users, model=model).applied(tasks.load_task(task))
    folder = out or Path("curves") / found.name
    tuning: dict[str, Any] = {"epochs": epochs, "negatives": negatives, "held_out": held_out}
    later = {"questions": questions, "warm_up": warm_up, "targets": targets, "rank": rank, "batch": batch}
    later["learning_rate"] = learning_rate
    usual = Settings()  # studies from before these could be said go on
    tuning |= {name: value for name, value in later.items() if value != getattr(usual, name)}
    row = None if prompt is None else RowSettings(prompt=prompt)
    about: dict[str, Any] = {"row": row, "metrics": metric, "against": against, "settings": tuning}
    with resumable():
        lines = run(found, methods, shots, seeds, folder, **about, numerics=Numerics(precision, device), say=say)
    print_lines([heads(against), *(shown(line, against) for line in lines)])
    for line in left_out(lines):
        typer.echo(line)
    typer.echo(f"\npicture  {folder / PICTURE}")
