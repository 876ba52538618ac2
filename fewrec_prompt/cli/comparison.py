"""`fewrec compare`: is one run better than another, for whom, and what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewrec_prompt.comparison import Change, Pair

HEADS = ("metric", "A", "B", "B − A", "95 %", "p", "p Holm", "B is")
N_USERS = 5  # shown of those who gained, and of those who lost


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Run folder: what the others are compared with.")],
    others: Annotated[list[Path], typer.Argument(metavar="B [C…]", help="Run folders.")],
    row: Annotated[
        list[str] | None, typer.Option(help="NAME, or 'NAME IN A=NAME IN B'; repeat. By default prompts of one name.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeat for more.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file as well.")] = None,
) -> None:
    """Paired differences of the same users, users gained and lost, templates, cost.

    "better" is said where the 95 % interval of the difference excludes 0 and p, adjusted for everything in the table
    (Holm), is at most 0.05.
    """
    from fewrec_prompt import comparison
    from fewrec_prompt.files import write_text

    found = comparison.compare(a, *others, rows=row or (), metrics=metric or ())
    typer.echo(f"{found.n_users} users; values in per cent, differences in points; metrics of other units as they are")
    for pair in found.pairs:
        _print(pair)
    if json_file is not None:
        write_text(json_file, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")


def _print(pair: Pair) -> None:
    from fewrec_prompt.cli.console import print_lines
    from fewrec_prompt.comparison import lines
    from fewrec_prompt.display import milliseconds

    typer.echo(f"\nA  {pair.a}: {pair.row_a}\nB  {pair.b}: {pair.row_b}\n")
    print_lines([HEADS, *map(lines, pair.differences)], last_left=True)
    typer.echo(f"\ncost     {milliseconds(pair.ms_a)} and {milliseconds(pair.ms_b)} ms/user")
    if pair.metric:
        typer.echo(f"users    {pair.n_gained} gained and {pair.n_lost} lost by {pair.metric}")
        _print_users("gained", pair.gained)
        _print_users("lost", pair.lost)
    for what, before, now in pair.changed:
        typer.echo(f"changed  {what}: {_short(before)} → {_short(now)}")
    if pair.template_diff:
        typer.echo(f"\n{pair.template_diff}")


def _print_users(word: str, changes: Sequence[Change]) -> None:
    shown = ", ".join(f"{one.user_id} (place {one.rank_a or '–'} → {one.rank_b or '–'})" for one in changes[:N_USERS])
    if shown:
        typer.echo(f"{word:<9}{shown}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
