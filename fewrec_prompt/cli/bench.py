"""`fewrec bench`: what a choice costs on this machine. `precision` compares number formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewrec_prompt.cli.evaluation import row_settings
from fewrec_prompt.cli.model_options import Device, Int8Threshold, Model, TokenBudget, Unit

if TYPE_CHECKING:
    from fewrec_prompt.parity import Line, Moved
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tasks import Task

PRECISIONS = ("fp32", "bf16", "int8", "int4")
HEADS = (
    "precision",
    "max |Δ log p|",
    "other top 1",
    "other top 10",
    "nDCG@10",
    "Δ nDCG@10 (95 %)",
    "ms/user",
    "peak MB",
)


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="What a choice costs on this machine.", no_args_is_help=True)
    group.callback()(lambda: None)  # a group of one command would be that command
    group.command("precision")(precision)
    app.add_typer(group, name="bench")


def precision(
    precisions: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRECISION", help="fp32, bf16, int8, int8:6, int4, auto; the first is the reference."),
    ] = None,
    task: Annotated[str, typer.Option(help="Whose users and which row: its first one.")] = "movielens-100k",
    users: Annotated[int, typer.Option(min=1, help="How many users at most.")] = 100,
    split: Annotated[
        Literal["selection", "test"], typer.Option(help="selection: users that no reported number uses.")
    ] = "selection",
    prompt: Annotated[str | None, typer.Option(help="Template; that of the task's first row by default.")] = None,
    calibrate: Annotated[str | None, typer.Option(help="none, pmi, …; as the task's first row by default.")] = None,
    model: Model = None,
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here.")] = None,
) -> None:
    """Score the same users under several number formats: what moves against the first, and what each costs."""
    from fewrec_prompt import Numerics, parity, tasks
    from fewrec_prompt.cli.console import print_lines, progress_bar, say
    from fewrec_prompt.files import check_writable, write_text

    if json_file is not None:
        check_writable(json_file)
    asked = Numerics("auto", device, int8_threshold, unit, token_budget)
    requests = parity.requests(precisions or PRECISIONS, asked)
    found = tasks.load_task(task)
    work, answers = parity.prepare(found, _row(found, prompt, calibrate), split, users, model, say)
    with progress_bar() as progress:
        lines = parity.compare(work, requests, answers, seed=found.settings.seed, say=say, progress=progress)
    print_lines([HEADS, *(_cells(line) for line in lines if not line.problem)])
    for line in lines:
        if line.problem:
            typer.echo(f"{line.name}: {line.problem}")
    if json_file is not None:
        record = parity.record(found.name, split, work, lines)
        write_text(json_file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _row(task: Task, prompt: str | None, calibrate: str | None) -> RowSettings:
    """The task's first row, or what the flags make of it; another prompt brings its own verbalizer."""
    first = task.settings.rows[0]
    if not (prompt or calibrate):
        return first
    verbalizers = [first.verbalizer] if first.verbalizer and not prompt else []
    length = None if prompt else first.length
    rows = row_settings(task, [prompt or first.prompt], verbalizers, [calibrate or "none"], [], length)
    assert rows, "flags were given"
    return rows[0]


def _cells(line: Line) -> list[str]:
    """A line as people read it: nats, per cent, points of nDCG, milliseconds, megabytes."""
    from fewrec_prompt.display import milliseconds, percent

    assert line.trial is not None, "a line without a problem has a trial"
    ndcg = "–" if line.ndcg is None else percent(line.ndcg)
    ms, peak = milliseconds(line.trial.ms_per_user), f"{line.trial.peak_bytes / 1e6:.0f}"
    return [line.name, *_moved(line.moved), ndcg, _delta(line.moved), ms, peak]


def _moved(moved: Moved | None) -> list[str]:
    if moved is None:
        return ["–", "–", "–"]
    return [f"{moved.max_dlogp:.2g}", f"{100 * moved.top1:.0f} %", f"{100 * moved.top10:.0f} %"]


def _delta(moved: Moved | None) -> str:
    if moved is None or moved.ndcg is None:
        return "–"
    delta = moved.ndcg
    return f"{100 * delta.value:+.1f} ({100 * delta.low:+.1f} to {100 * delta.high:+.1f})"
