"""`fewrec assets`: see, fetch and find the models and data sets that are known by name.

What is done is in assets.py. Here are words and columns: results go to stdout, what is going on goes to stderr.
"""

from pathlib import Path
from typing import Annotated

import typer

from fewrec_prompt import assets


def register(app: typer.Typer) -> None:
    """Add the `assets` commands to the main one. Errors pass through as FewrecError, for the main command to print."""
    group = typer.Typer(no_args_is_help=True, help="Models and data sets by name: list, fetch, find.")
    group.command("list")(list_assets)
    group.command("get")(get_assets)
    group.command("path")(show_path)
    group.command("add")(add_folder)
    app.add_typer(group, name="assets")


def list_assets() -> None:
    """Show what is known by name, what of it is here, and on what terms it may be used."""
    from fewrec_prompt.data.registered import registered

    known = [assets.describe(name) for name in assets.asset_names()]
    rows = [(asset.name, asset.kind, _state(asset), asset.licence) for asset in known]
    rows += [
        (name, "data", "added" if entry.present else "gone", f"{entry.folder} ({entry.layout})")
        for name, entry in sorted(registered().items())
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, licence in rows:
        columns = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        typer.echo(f"{columns}  {licence}")


def get_assets(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Names as `fewrec assets list` shows them.")],
    verify: Annotated[bool, typer.Option(help="Read every file again and compare its sha256.")] = False,
) -> None:
    """Fetch models and data sets that are not here yet. What is here already stays as it is."""
    for name in names:
        assets.describe(name)  # an unknown name is an error before the first download
    for name in names:
        folder = assets.get(name, _say, verify=verify)
        typer.echo(f"{name}: {folder}")


def show_path(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name as `fewrec assets list` shows it.")],
) -> None:
    """Print the folder of a model or data set that is here."""
    from fewrec_prompt.data.registered import registered

    added = registered().get(name)
    typer.echo(added.folder if added else assets.path(name))


def add_folder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What tasks call it: dataset = NAME.")],
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Where its files lie; or OWNER/NAME@COMMIT of the hub."),
    ],
    layout: Annotated[str | None, typer.Option(help="How its files are read; recognised where not given.")] = None,
) -> None:
    """Say where a data set lies. It is read once; every run checks that its files are still the same."""
    from fewrec_prompt.data import registered

    entry = registered.add(name, registered.from_hub(folder) or Path(folder), layout)
    users, items, interactions = entry.sizes
    _say(f"{name}: {users:,} users, {items:,} items, {interactions:,} interactions, layout {entry.layout}")
    typer.echo(f"{name}: {entry.folder}")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _state(asset: assets.Description) -> str:
    if asset.present:
        return f"present, {asset.n_bytes / 1e6:.0f} MB"
    return f"{asset.state}, {asset.download_mb} MB to fetch"
