"""`fewrec candidates`: freeze what a task asks, so that every run ranks the same, and see where such a file is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from fewrec_prompt.errors import DataError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Candidate files: build one from a task, show where one is from.", no_args_is_help=True)
    group.command("build")(build)
    group.command("show")(show)
    app.add_typer(group, name="candidates")


def build(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    out: Annotated[Path, typer.Option(help="The parquet file to write.")],
    split: Annotated[Literal["test", "selection", "train"], typer.Option(help="Whose queries.")] = "test",
    users: Annotated[int | None, typer.Option(min=1, help="How many test users.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws users, candidates and their order.")] = None,
) -> None:
    """Draw histories and candidates once, and keep them with task, checksums of the data, sampler, seed and version.

    Rank them with: fewrec eval TASK --candidates FILE
    """
    from fewrec_prompt import tasks
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.evaluation import Options

    found = Options(users=users, seed=seed).applied(tasks.load_task(task))
    queries = tasks.freeze(found, out, split, say)
    for kind, count in queries.problems.items():
        if count:
            say(f"{count} {kind.replace('_', ' ')}")
    typer.echo(f"{out}: {len(queries.queries)} queries")


def show(file: Annotated[Path, typer.Argument(metavar="FILE", help="A candidate file.")]) -> None:
    """Print where a candidate file is from, as JSON."""
    from fewrec_prompt.data.parquet_files import note

    found = note(file)
    if not found:
        raise DataError(f"{file}: does not say where it is from; files of `fewrec candidates build` do")
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
