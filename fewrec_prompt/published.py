"""What others published on the protocols of shipped tasks, to stand beside a run that followed the same protocol.

A run did so if its task is the shipped one and nothing of its data, metrics aside, was changed by the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, PositiveInt

from fewrec_prompt import artifacts, tasks
from fewrec_prompt.artifacts import Settings

FILE = "published.toml"


class PublishedRow(Settings):
    """A line of a published table; metrics in per cent, as they are printed there."""

    name: str
    metrics: Mapping[str, FiniteFloat]
    users: PositiveInt | None = None
    note: str = ""


class PublishedTable(Settings):
    """Rows of one source, on the protocol of one shipped task."""

    task: str
    protocol: str
    source: str
    note: str = ""
    rows: Annotated[tuple[PublishedRow, ...], Field(min_length=1, strict=False)]


class Published(Settings):
    """The whole file."""

    tables: Annotated[tuple[PublishedTable, ...], Field(strict=False)]


def read() -> tuple[PublishedTable, ...]:
    """All published tables that ship. Raises ArtifactError with file and line where the file is not as it should be."""
    return artifacts.read_toml(artifacts.shipped_folder("eval") / FILE, Published).tables


def beside(record: Mapping[str, Any]) -> tuple[PublishedTable, ...]:
    """The tables that may stand beside this run (run.json as data): those of its task, if it followed the protocol."""
    found = tuple(table for table in read() if table.task == record["task"])
    return found if found and _same(record) else ()


def lines(tables: tuple[PublishedTable, ...]) -> list[str]:
    """The tables as text, for a terminal."""
    shown = []
    for table in tables:
        shown += ["", f"published, {table.protocol}: {table.source}"] + ([table.note] if table.note else [])
        width = max(len(row.name) for row in table.rows)
        for row in table.rows:
            cells = "  ".join(f"{name} {value:g}" for name, value in row.metrics.items())
            shown.append(f"  {row.name:<{width}}  {cells}{f'  (n = {row.users})' if row.users else ''}")
    return shown


def _same(record: Mapping[str, Any]) -> bool:
    path = artifacts.shipped_folder("eval") / f"{record['task']}.toml"
    if not path.is_file() or record["split"] != "test" or "control" in record:
        return False
    shipped = tasks.load_task(path).settings.model_dump(mode="json")
    return bool(record["settings"]["data"] == shipped["data"])
