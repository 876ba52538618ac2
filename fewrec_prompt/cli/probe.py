"""`fewrec probe`: what a row goes by, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewrec_prompt.cli.evaluation import row_settings
from fewrec_prompt.cli.model_options import (
    CALIBRATIONS,
    Cache,
    Device,
    Int8Threshold,
    Model,
    Precision,
    TokenBudget,
    Unit,
)

if TYPE_CHECKING:
    from fewrec_prompt.probes import Probe, Probed
    from fewrec_prompt.significance import Interval


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("probe")(probe)


def probe(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    prompt: Annotated[str | None, typer.Option(help="Template; that of the task's first row by default.")] = None,
    verbalizer: Annotated[str | None, typer.Option(help="The template's own where none is given.")] = None,
    calibrate: Annotated[str | None, typer.Option(help=f"{CALIBRATIONS}.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the calibration.")] = None,
    orders: Annotated[str | None, typer.Option(help="Orders of the candidates: how many, or balanced.")] = None,
    users: Annotated[int, typer.Option(min=1, help="How many users at most.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Draws users, candidates and what is changed.")] = None,
    split: Annotated[
        Literal["test", "selection"], typer.Option(help="selection: users that no reported number uses.")
    ] = "selection",
    metric: Annotated[str | None, typer.Option(help="What is measured; nDCG@10, else the task's first.")] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers here, as JSON.")] = None,
    cache: Cache = True,
) -> None:
    """Ask the same users again with one thing changed: history, its order, its owner, place of the target, words.

    Says how much the main metric moves, how much of the ranking is left (Kendall's tau), and what that means.
    """
    from fewrec_prompt import Numerics, Options, probes, tasks
    from fewrec_prompt.cli.console import progress_bar, say
    from fewrec_prompt.files import check_writable, write_text

    if out is not None:
        check_writable(out)
    found = tasks.load_task(task)
    rows = row_settings(
        found,
        [prompt] if prompt else [],
        [verbalizer] if verbalizer else [],
        [calibrate] if calibrate else [],
        [] if alpha is None else [alpha],
        None,
        orders,
    )
    options = Options(
        rows=rows,
        metrics=(metric,) if metric else None,
        model=model,
        seed=seed,
        split=split,
        numerics=Numerics(precision, device, int8_threshold, unit, token_budget),
    )
    with progress_bar() as progress:
        probed = probes.probe(found, options, n_users=users, cache=cache, say=say, progress=progress)
    _print(probed)
    if out is not None:
        write_text(out, json.dumps(probed.to_dict(), indent=1, ensure_ascii=False) + "\n")
        typer.echo(f"\nprobes  {out}")


def _print(probed: Probed) -> None:
    from fewrec_prompt.cli.console import print_lines
    from fewrec_prompt.display import figure, span

    of = probed.metric
    own = (
        f"; {of} {figure(of, probed.value.value)} ({span(of, probed.value.low, probed.value.high)})"
        if probed.value and of
        else ""
    )
    typer.echo(f"{probed.row}, {probed.n_users} users{own}\n")
    heads = ("probe", f"Δ {of}" if of else "Δ", "95 %", "tau", "95 %", "what it means")
    print_lines([heads, *(_cells(one) for one in probed.probes)], last_left=True)


def _cells(one: Probe) -> tuple[str, ...]:
    """A difference in points, a tau with two digits, each with its interval; a dash where there is none."""
    moved = ("–", "–") if one.difference is None or one.metric is None else _moved(one.metric, one.difference)
    found = one.tau
    rank = ("–", "–") if found.value != found.value else (_two(found.value), f"{_two(found.low)} to {_two(found.high)}")
    return (one.name, *moved, *rank, one.meaning)


def _moved(metric: str, found: Interval) -> tuple[str, str]:
    from fewrec_prompt.display import points

    value, low, high = (points(metric, number, signed=True) for number in (found.value, found.low, found.high))
    return value, f"{low} to {high}"


def _two(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
