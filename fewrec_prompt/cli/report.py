"""`fewrec report`: one HTML page over one or several finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """One self-contained page: tables, paired differences, groups of users, reliability, place in the prompt, people.

    Runs that ranked the same candidates for the same users share a table; the first prompt of the first run is what the
    others are compared with. It needs no network and can be mailed; it shows titles and user ids.
    """
    from fewrec_prompt import report
    from fewrec_prompt.display import size
    from fewrec_prompt.files import check_writable
    from fewrec_prompt.finished import FinishedRun

    check_writable(out)
    report.write(out, [FinishedRun(folder) for folder in folders])
    typer.echo(f"{out}: {size(out.stat().st_size)}")
