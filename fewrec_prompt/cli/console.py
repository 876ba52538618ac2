"""What the commands share in talking to a person: lines, a bar with the time left, the table of a run."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from fewrec_prompt.comparison import Comparison, Pair, interval
from fewrec_prompt.display import LEFT_OUT, figure, main_metric, metric_names, milliseconds, points, span
from fewrec_prompt.redaction import without_secrets
from fewrec_prompt.scoring import Progress


def say(line: str) -> None:
    """A line for the person who waits, on standard error."""
    typer.echo(without_secrets(line), err=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error that knows how long it still takes; a line every tenth where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"fewrec: interrupted; what was finished is saved. To go on:\n  {shlex.join(['fewrec', *sys.argv[1:]])}")
        raise


def _lines() -> Progress:
    shown, start = -1, time.monotonic()

    def show(what: str, done: float, total: float) -> None:
        nonlocal shown
        tenth = int(10 * done / total) if total else 10
        if tenth > shown:
            shown = tenth
            left = (time.monotonic() - start) * (total - done) / done if done else 0.0
            told = f"  {int(left) // 60}:{int(left) % 60:02d} left" if tenth else ""  # the first one pays for loading
            say(f"{10 * tenth:3d} %{told}  {what}")

    return show


def print_table(record: Mapping[str, Any]) -> None:
    """The rows of a run: metrics in per cent, the interval of nDCG@10 (else of the first metric), ms per user."""
    names = metric_names(record["rows"])
    main = main_metric(names)
    heads = ["row"]
    for name in names:
        heads += [name, "95 %"] if name == main else [name]
    print_lines([[*heads, "ms/user"], *(_cells(row, names, main) for row in record["rows"])])
    _print_position_bias(record["rows"])
    for note, n in {note: n for row in record["rows"] for note, n in row.get("notes", {}).items()}.items():
        if note.startswith(LEFT_OUT):
            typer.echo(f"\n{note}, who are left out of it: {n:g}")


def _print_position_bias(rows: Sequence[Mapping[str, Any]]) -> None:
    """For rows that show candidates together: whether what stands first is ranked first."""
    biases = {row["name"]: row["notes"]["position_bias"] for row in rows if "position_bias" in row.get("notes", {})}
    if biases:
        typer.echo("\nplace in the prompt against place in the ranking (1: the first comes first, 0: no matter where)")
        print_lines([(f"  {name}", f"{bias:+.2f}".replace("-", "−")) for name, bias in biases.items()])


def print_differences(found: Comparison) -> None:
    """What each pair of rows differs by, a column a metric; the interval and the verdict of the table's metric."""
    names = list(dict.fromkeys(one.metric for pair in found.pairs for one in pair.differences))
    main = main_metric(names)
    heads = ["row"]
    for name in names:
        heads += [name, "95 %"] if name == main else [name]
    print_lines([[*heads, f"by {main}"], *(_differences(pair, names, main) for pair in found.pairs)], last_left=True)


def _differences(pair: Pair, names: list[str], main: str | None) -> list[str]:
    known = {one.metric: one for one in pair.differences}
    cells = [pair.row_b if pair.row_a == pair.row_b else f"{pair.row_a} → {pair.row_b}"]
    for name in names:
        one = known.get(name)
        cells.append("–" if one is None else points(name, one.difference.value, signed=True))
        if name == main:
            cells.append("–" if one is None else interval(one))
    return [*cells, known[main].verdict if main in known else "–"]


def print_lines(lines: Sequence[Sequence[str]], *, last_left: bool = False, left: Collection[int] = (0,)) -> None:
    """A table: the columns `left`, and the last if it holds sentences, at the left, the others at the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        pairs = enumerate(zip(line, widths, strict=True))
        cells = [f"{cell:<{width}}" if at in left else f"{cell:>{width}}" for at, (cell, width) in pairs]
        if last_left:
            cells[-1] = line[-1]
        typer.echo("  ".join(cells))


def _cells(row: Mapping[str, Any], names: list[str], main: str | None) -> list[str]:
    cells = [row["name"]]
    for name in names:
        metric = row["metrics"][name]
        cells.append(figure(name, metric["value"]))
        if name == main:
            cells.append(span(name, metric["low"], metric["high"]))
    return [*cells, milliseconds(row["ms_per_user"])]
