"""`fewrec runs`: which runs there are, what one of them is, a copy to give away, and what could be deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fewrec_prompt.collection import Listed

HEADS = ("folder", "task", "model", "rows", "users", "best row", "", "written", "state", "size")
SHOWN = ("task", "split", "model", "numerics", "settings", "data", "call", "versions")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="List, show, export and clear away runs.", no_args_is_help=True)
    group.command("list")(list_runs)
    group.command("show")(show)
    group.command("export")(export)
    group.command("gc")(gc)
    app.add_typer(group, name="runs")


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where runs lie.")] = Path("runs"),
) -> None:
    """Every run in a folder, the latest last: task, model, rows, users, the best row, date, state and size."""
    from fewrec_prompt import collection
    from fewrec_prompt.cli.console import print_lines, say

    found = collection.listed(folder)
    if not found:
        say(f"{folder}: no runs yet; fewrec eval makes them")
        return
    print_lines([HEADS, *map(_line, found)], left=(0, 1, 2, 5, 7, 8))


def _line(one: Listed) -> tuple[str, ...]:
    from fewrec_prompt.display import figure, size

    record, best = one.record, one.best
    rows = str(len(record["rows"])) if "rows" in record else "–"
    value = f"{best[1]} {figure(best[1], best[2])}" if best else "–"
    words = (str(one.folder), record.get("task", "–"), record.get("model", {}).get("name", "–"), rows)
    users = str(record.get("n_users", "–"))
    return (*words, users, best[0] if best else "–", value, _date(one), one.state, size(one.n_bytes))


def _date(one: Listed) -> str:
    return datetime.fromtimestamp(one.written_at).astimezone().strftime("%Y-%m-%d %H:%M")


def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")]) -> None:
    """What a run is: settings, numerics, data, versions, and its table."""
    from fewrec_prompt import collection
    from fewrec_prompt.cli.console import print_table
    from fewrec_prompt.display import size
    from fewrec_prompt.errors import RunError

    one = collection.look(run)
    if one.state == "damaged":
        raise RunError(f"{run}: damaged, its record cannot be read; run the task again with a new --out")
    typer.echo(f"{run}  {one.state}  {_date(one)}  {size(one.n_bytes)}")
    for key in SHOWN:
        for name, value in _leaves(one.record.get(key), key):
            typer.echo(f"{name}  {value}")
    for name, template in one.record["templates"].items():
        typer.echo(f"templates.{name}  sha256 {template['sha256']}")
    if one.state == "finished":
        typer.echo("")
        print_table(one.record)
    else:
        typer.echo("\nrepeat its command, or name this folder with --out, to go on")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Dotted names and what they are, lists of plain values on one line; nothing for what is not set."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    elif value not in (None, "", []):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[Path, typer.Option(help="A new folder, or a file called *.zip.")],
    share: Annotated[
        bool, typer.Option("--share", help="Without prompts, titles, histories and paths; ids as salted hashes.")
    ] = False,
) -> None:
    """Copy a run, whole or not at all; says what is in it."""
    from fewrec_prompt import sharing

    done = sharing.export(run, out, share=share)
    typer.echo(f"{out}: {', '.join(done.files)}")
    for line in done.kept:
        typer.echo(f"kept     {line}")
    for line in done.dropped:
        typer.echo(f"dropped  {line}")


def gc(
    named: Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Runs to delete, finished or not.")] = None,
    folder: Annotated[Path, typer.Option("--in", help="Where runs lie.")] = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete; otherwise it is only said what would go.")] = False,
    answers: Annotated[
        int | None, typer.Option("--answers", min=0, metavar="MB", help="Shrink the answers kept for other runs, too.")
    ] = None,
) -> None:
    """Delete unfinished runs and those that are named. Says first what would go; nothing goes without --yes.

    A finished run goes only if it is named, also where another is the same; a run that is being written never goes. Of
    the kept answers those go that were not used for longest, until so many MB are left.
    """
    if answers is not None:
        _shrink_answers(answers * 1_000_000, yes=yes)
    from fewrec_prompt import collection
    from fewrec_prompt.cli.console import print_lines
    from fewrec_prompt.display import size
    from fewrec_prompt.errors import RunError

    found = collection.leftovers(folder, named or ())
    if not found:
        typer.echo("nothing to delete")
        return
    if not yes:
        lines = [("goes" if one.goes else "stays", str(one.folder), size(one.n_bytes), one.why) for one in found]
        print_lines([("", "folder", "size", "why"), *lines], left=(0, 1), last_left=True)
        if any(one.goes for one in found):
            typer.echo("nothing is deleted yet; repeat with --yes")
        return
    failed = []
    for left, problem in collection.clear(found, named or ()):
        typer.echo(f"{'kept' if problem else 'deleted'}  {left.folder}")
        failed += [problem] if problem else []
    if failed:
        raise RunError("; ".join(failed))


def _shrink_answers(max_bytes: int, *, yes: bool) -> None:
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.display import size
    from fewrec_prompt.score_cache import score_cache

    with score_cache(say) as cache:
        _, n_bytes = cache.size()
        if n_bytes <= max_bytes:
            typer.echo(f"answers kept for other runs: {size(n_bytes)}, stay")
        elif yes:
            typer.echo(f"answers kept for other runs: {size(cache.gc(max_bytes))} of {size(n_bytes)} deleted")
        else:
            typer.echo(f"answers kept for other runs: {size(n_bytes - max_bytes)} of {size(n_bytes)} go with --yes")
