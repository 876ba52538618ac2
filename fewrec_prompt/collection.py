"""The runs of a folder: what there is, and what could go. Nothing here reads a result beyond run.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewrec_prompt import runs
from fewrec_prompt.display import main_metric, metric_names
from fewrec_prompt.errors import LockedError, RunError

State = Literal["finished", "unfinished", "damaged"]
RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class Listed:
    """A run in a folder. `record` is its run.json, its header where it is unfinished, {} where neither can be read."""

    folder: Path
    state: State
    record: Mapping[str, Any]
    written_at: float  # seconds since 1970
    n_bytes: int

    @property
    def header(self) -> dict[str, Any]:
        """The part that decides the result."""
        return runs.header_of(self.record)

    @property
    def best(self) -> tuple[str, str, float] | None:
        """Row, metric and value of the highest main metric; None where nothing was measured."""
        rows = self.record.get("rows", ())
        metric = main_metric(metric_names(rows))
        known = [row for row in rows if metric in row["metrics"] and row["metrics"][metric]["value"] is not None]
        if metric is None or not known:
            return None
        top = max(known, key=lambda row: float(row["metrics"][metric]["value"]))
        return top["name"], metric, float(top["metrics"][metric]["value"])


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that could be deleted: why, how large it is, and whether `clear` deletes it."""

    folder: Path
    why: str
    n_bytes: int
    goes: bool


def listed(parent: Path = RUNS) -> list[Listed]:
    """Every run in this folder, the latest last. Raises RunError where there is no such folder."""
    if not parent.is_dir():
        raise RunError(f"{parent}: no such folder; runs of fewrec eval lie in {RUNS}/, or name another")
    found = [look(folder) for folder in sorted(parent.iterdir()) if folder.is_dir() and runs.is_run(folder)]
    return sorted(found, key=lambda one: one.written_at)


def look(folder: Path) -> Listed:
    """The run in this folder, finished or not. Raises RunError where there is none."""
    if not runs.is_run(folder):
        raise RunError(f"{folder}: holds no run; name a folder that fewrec eval wrote")
    whole = (folder / "run.json").is_file()
    path = folder / ("run.json" if whole else "header.json")
    state: State = "finished" if whole else "unfinished"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        state = state if isinstance(record, dict) else "damaged"
    except ValueError:
        state = "damaged"
    n_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Listed(folder, state, {} if state == "damaged" else record, path.stat().st_mtime, n_bytes)


def leftovers(parent: Path = RUNS, named: Sequence[Path] = ()) -> list[Leftover]:
    """Unfinished runs, runs that are there twice, and the named ones. A finished run goes only if it is named.

    What a process is writing never goes. Raises RunError for a named folder that holds no run.
    """
    there = listed(parent) if parent.is_dir() or not named else []
    whole = [*there, *(look(folder) for folder in named)]
    by_place = {one.folder.resolve(): one for one in whole}
    wanted = {folder.resolve() for folder in named}
    return [left for place, one in by_place.items() for left in _left(one, list(by_place.values()), place in wanted)]


def _left(one: Listed, all_runs: Sequence[Listed], is_named: bool) -> Iterator[Leftover]:
    if runs.is_locked(one.folder):
        yield Leftover(one.folder, "a process is writing it: stays", one.n_bytes, False)
        return
    earlier = all_runs[: all_runs.index(one)] if one.state == "finished" else all_runs
    same = (other for other in earlier if other.state == "finished" and runs.same_result(other.header, one.header))
    twin = next(same, None) if one.state != "damaged" else None
    if is_named:
        yield Leftover(one.folder, f"{one.state}, named", one.n_bytes, True)
    elif one.state == "finished" and twin is not None:
        yield Leftover(one.folder, f"finished, the same as {twin.folder}: stays unless named", one.n_bytes, False)
    elif one.state == "damaged":
        yield Leftover(one.folder, "damaged: stays unless named", one.n_bytes, False)
    elif one.state == "unfinished":
        why = "unfinished" if twin is None else f"unfinished, and {twin.folder} is the same run, finished"
        yield Leftover(one.folder, why, one.n_bytes, True)


def clear(found: Sequence[Leftover], named: Sequence[Path] = ()) -> Iterator[tuple[Leftover, str]]:
    """Delete what goes, and say of each that could not be deleted why; "" where it is gone."""
    wanted = {folder.resolve() for folder in named}
    for left in found:
        if left.goes:
            try:
                runs.delete(left.folder, even_finished=left.folder.resolve() in wanted)
                yield left, ""
            except (RunError, LockedError) as error:
                yield left, str(error)
