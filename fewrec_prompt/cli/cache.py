"""`fewrec cache`: what models answered, kept for other runs: how much of it there is, and away with it."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the `cache` commands."""
    group = typer.Typer(no_args_is_help=True, help="Answers of models that are kept for other runs: show, clear.")
    group.command("show")(show)
    group.command("clear")(clear)
    app.add_typer(group, name="cache")


def show() -> None:
    """Print how many units are kept, how large they are, and where."""
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.score_cache import MAX_BYTES, score_cache

    with score_cache(say) as cache:
        n_units, n_bytes = cache.size()
    typer.echo(f"{n_units} units of computation, {n_bytes / 1e6:.1f} MB of at most {MAX_BYTES / 1e6:.0f} MB")
    typer.echo(cache.path)


def clear() -> None:
    """Drop all that is kept. Runs keep their own answers; another run asks the model again."""
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.score_cache import score_cache

    with score_cache(say) as cache:
        n_units, _ = cache.size()
        n_bytes = cache.gc(0) if n_units else 0
    typer.echo(f"{n_units} units of computation dropped, {n_bytes / 1e6:.1f} MB freed")
