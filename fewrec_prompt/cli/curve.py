"""`fewrec curve`: zero against few shots, method by method, on the same users, candidates and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewrec_prompt.cli.model_options import Device, Model, Precision
from fewrec_prompt.cli.tuning_options import row_asked, settings_asked, with_flags

_FIRST = ("epochs", "negatives", "held_out")  # studies name these; the others where they are not as usual


def register(app: typer.Typer) -> None:
    """Add the command. Click takes one value an option, so `main` spreads the two lists before it parses."""
    app.command("curve")(with_flags(curve))


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
    users: Annotated[int | None, typer.Option(min=1, help="How many test users.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; cells in it are not run again.")] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    **flags: Any,
) -> None:
    """Every method with every number of people: one table, one picture, and a file for each cell.

    --methods zero mix lora --shots 4 16 64
    """
    from fewrec_prompt import Numerics, Options, tasks
    from fewrec_prompt.cli.console import print_lines, resumable, say
    from fewrec_prompt.curve import PICTURE
    from fewrec_prompt.curve import curve as run
    from fewrec_prompt.curve_table import heads, remarks, shown
    from fewrec_prompt.tuning.settings import Settings

    found = Options(users=users, model=model).applied(tasks.load_task(task))
    folder = out or Path("curves") / found.name
    usual = Settings().to_dict()
    tuning = {name: value for name, value in settings_asked(flags).items() if name in _FIRST or value != usual[name]}
    row = row_asked(found, flags)
    about: dict[str, Any] = {"row": row, "metrics": metric, "against": against, "settings": tuning}
    with resumable():
        lines = run(found, methods, shots, seeds, folder, **about, numerics=Numerics(precision, device), say=say)
    print_lines([heads(against), *(shown(line, against) for line in lines)])
    for remark in remarks(lines):
        typer.echo(remark)
    typer.echo(f"\npicture  {folder / PICTURE}")
