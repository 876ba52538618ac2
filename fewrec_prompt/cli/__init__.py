"""The `fewrec` command: one file a sub-command. Nothing heavy is imported before a command needs it.

Every FewrecError becomes one message on standard error and its exit code. Ctrl-C and SIGTERM end with 130, and what
was finished is saved.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from fewrec_prompt.cli import (
    adapters,
    assets,
    bench,
    cache,
    candidates,
    comparison,
    curve,
    data,
    evaluation,
    probe,
    prompts,
    ranking,
    report,
    runs,
    searching,
    tuning,
)
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.redaction import without_secrets

app = typer.Typer(
    name="fewrec",
    help="Rank items for people with language models, with little or no interaction data, and measure how well.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(evaluation, searching, tuning, curve, adapters, comparison, probe, report, runs, ranking),
    *(prompts, data, candidates, assets, cache, bench),
)
for command in COMMANDS:
    command.register(app)


def main() -> None:
    """Run the command line and exit."""
    # Threads that spin while they wait take the cores from each other: beside two other processes on two cores a user
    # took 320 to 5,000 ms, and 130 ms with threads that sleep. Read once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(ranking.spread_lists(sys.argv[1:]))
    except FewrecError as error:
        typer.echo(f"fewrec: {without_secrets(str(error))}", err=True)
        sys.exit(error.exit_code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # typer ends with 130 on it
