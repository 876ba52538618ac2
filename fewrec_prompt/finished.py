"""A finished run as it lies on disk, read when asked and by columns: no object per user and metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewrec_prompt import runs
from fewrec_prompt.data import parquet_files
from fewrec_prompt.errors import RunError
from fewrec_prompt.significance import Floats, Jackknifed


@dataclass(frozen=True)
class FinishedRun:
    """What a run wrote. Raises RunError, naming the folder, where there is no finished run."""

    folder: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """run.json: header and results."""
        found = runs.finished(self.folder)
        if found is None:
            raise RunError(f"{self.folder}: holds no finished run (no run.json); give a folder that fewrec eval wrote")
        return found

    @property
    def header(self) -> dict[str, Any]:
        """The part of the record that decides the result."""
        return {key: value for key, value in self.record.items() if key not in ("rows", "n_users", "problems")}

    @cached_property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The rows of run.json by name."""
        return {row["name"]: row for row in self.record["rows"]}

    @property
    def prompt_rows(self) -> list[str]:
        """The rows that are no baselines."""
        return [name for name, row in self.rows.items() if row["prompt"] is not None]

    @cached_property
    def questions(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        """Candidates and targets of each user."""
        with parquet_files.opened(self.folder / "candidates.parquet") as file:
            columns = file.read().to_pydict()
        targets = columns.get("target", [()] * len(columns["user_id"]))
        cells = zip(columns["user_id"], columns["candidates"], targets, strict=True)
        return {user_id: (frozenset(candidates), frozenset(target)) for user_id, candidates, target in cells}

    @cached_property
    def users(self) -> list[str]:
        """The users who have an answer, by id."""
        return self._cube[0]

    def has_users(self, row: str, metric: str) -> bool:
        """Whether this metric of this row has a value per user."""
        return (row, metric) in self._cube[1]

    def values(self, row: str, metric: str) -> Floats:
        """One value per user, in the order of `users`; NaN where a user has none."""
        return self._cube[1][row, metric]

    def of_run(self, row: str, metric: str) -> Jackknifed:
        """A metric of the whole run."""
        value = self.rows[row]["metrics"][metric]["value"]
        left_out = self._groups.get((row, metric), ())
        return Jackknifed(float("nan") if value is None else value, left_out, len(self.users))

    def best_rank(self, row: str, user_id: str, item_ids: Collection[str]) -> int | None:
        """The place, from 1, of the first of these items in the user's ranking; None if none is a candidate."""
        (names, codes), (users, user_codes), (items, item_codes), ranks = self._rankings
        inside = (codes == names.index(row)) & (user_codes == users.index(user_id))
        places = zip(item_codes[inside], ranks[inside], strict=True)
        return min((int(rank) for item, rank in places if items[item] in item_ids), default=None)

    @cached_property
    def _cube(self) -> tuple[list[str], dict[tuple[str, str], Floats]]:
        """The judged users by id, and their values by row and metric."""
        with parquet_files.opened(self.folder / "measurements.parquet") as file:
            table = file.read()
        (rows, row_at), (users, user_at), (metrics, metric_at) = (
            _coded(table[name]) for name in ("row", "user_id", "metric")
        )
        order = np.argsort(np.array(users, dtype=object), kind="stable")
        place = np.empty(len(users), dtype=np.intp)
        place[order] = np.arange(len(users))
        cube = np.full((len(rows), len(metrics), len(users)), np.nan)
        cube[row_at, metric_at, place[user_at]] = parquet_files.floats(table["value"])
        pairs = set(zip(row_at.tolist(), metric_at.tolist(), strict=True))
        values = {(rows[row], metrics[metric]): cube[row, metric] for row, metric in pairs}
        return [users[at] for at in order], values

    @cached_property
    def _groups(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """The values without each group of users, by row and metric of the whole run."""
        path = self.folder / "groups.parquet"
        if not path.is_file():
            return {}
        with parquet_files.opened(path) as file:
            columns = file.read().to_pydict()
        found: dict[tuple[str, str], list[float]] = {}
        for row, metric, value in zip(columns["row"], columns["metric"], columns["value_without"], strict=True):
            found.setdefault((row, metric), []).append(value)
        return {key: tuple(values) for key, values in found.items()}

    @cached_property
    def _rankings(self) -> tuple[Any, Any, Any, Any]:
        """rankings.parquet: (names, codes) of rows, users and items, and the ranks."""
        with parquet_files.opened(self.folder / "rankings.parquet") as file:
            table = file.read()
        return *(_coded(table[name]) for name in ("row", "user_id", "item_id")), table["rank"].to_numpy()


def _coded(column: Any) -> tuple[list[str], npt.NDArray[np.int32]]:
    codes, names, _ = parquet_files.coded(column)
    return names, codes
