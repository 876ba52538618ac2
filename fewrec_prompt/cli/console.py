"""What the commands share in talking to a person: lines of progress, a bar with the time left, and the table of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fewrec_prompt.evaluation import Progress
from fewrec_prompt.report import metric_names, milliseconds, percent


def say(line: str) -> None:
    """A line for the person who waits, on standard error."""
    typer.echo(line, err=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error that knows how long it still takes; a line every tenth where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())
    with Bar(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _lines() -> Progress:
    shown = -1

    def show(what: str, done: float, total: float) -> None:
        nonlocal shown
        tenth = int(10 * done / total) if total else 10
        if tenth > shown:
            shown = tenth
            say(f"{10 * tenth:3d} %  {what}")

    return show


def print_table(record: Mapping[str, Any]) -> None:
    """The rows of a run: metrics in per cent, the interval of the first nDCG@10 (or first metric), ms per user."""
    rows = record["rows"]
    names = metric_names(rows)
    main = "nDCG@10" if "nDCG@10" in names else next(iter(names), None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        if name == main:
            table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("ms/user", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *_cells(row, names, main), milliseconds(row["ms_per_user"]))
    console = Console()
    console.print(table if console.is_terminal else table, soft_wrap=True)


def _cells(row: Mapping[str, Any], names: list[str], main: str | None) -> Iterator[str]:
    for name in names:
        metric = row["metrics"][name]
        yield percent(metric["value"])
        if name == main:
            yield f"{percent(metric['low'])}–{percent(metric['high'])}"
