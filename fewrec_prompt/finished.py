"""A finished run as it lies on disk, read when asked and by columns: no object per user and metric."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewrec_prompt import runs
from fewrec_prompt.data import parquet_files
from fewrec_prompt.errors import RunError
from fewrec_prompt.significance import Floats, Jackknifed


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for one user, by ids."""

    history: tuple[str, ...]  # oldest first
    candidates: tuple[str, ...]  # in the order of the prompt
    target: frozenset[str]  # empty: there is no answer


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """The candidates of one row, user by user in the order of `FinishedRun.asked`, each list as the prompt has it.

    All arrays are (n_pairs,), a pair being a user and a candidate.
    """

    user: npt.NDArray[np.intp]
    place: npt.NDArray[np.intp]  # in the prompt, from 0
    n_candidates: npt.NDArray[np.intp]  # of the user
    relevant: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]  # whether the user has an answer
    score: Floats
    rank: npt.NDArray[np.intp]  # from 1


@dataclass(frozen=True)
class FinishedRun:
    """What a run wrote. Raises RunError, naming the folder, where there is no finished run.

    `at_hand` is the record of a run whose run.json is about to be written.
    """

    folder: Path
    at_hand: Mapping[str, Any] | None = None

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """run.json: header and results."""
        found = self.at_hand or runs.finished(self.folder)
        if found is None:
            raise RunError(f"{self.folder}: holds no finished run (no run.json); give a folder that fewrec eval wrote")
        return found

    @property
    def header(self) -> dict[str, Any]:
        """The part of the record that decides the result."""
        return runs.header_of(self.record)

    @cached_property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The rows of run.json by name."""
        return {row["name"]: row for row in self.record["rows"]}

    @property
    def prompt_rows(self) -> list[str]:
        """The rows that are no baselines."""
        return [name for name, row in self.rows.items() if row["prompt"] is not None]

    def has(self, name: str) -> bool:
        """Whether the run wrote this file."""
        return (self.folder / name).is_file()

    def kind(self, row: str) -> str | None:
        """The kind of the row's verbalizer; None of a baseline."""
        verbalizer = self.rows[row]["verbalizer"]
        return None if verbalizer is None else str(self.record["verbalizers"][verbalizer]["kind"])

    @cached_property
    def asked(self) -> dict[str, Asked]:
        """What was asked for each user, in the order of the run."""
        with parquet_files.opened(self.folder / "candidates.parquet") as file:
            columns = file.read().to_pydict()
        none: list[Sequence[str]] = [()] * len(columns["user_id"])
        lists = (columns.get(name, none) for name in ("history", "candidates", "target"))
        cells = zip(columns["user_id"], *lists, strict=True)
        return {user: Asked(tuple(seen), tuple(listed), frozenset(right)) for user, seen, listed, right in cells}

    @cached_property
    def questions(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        """Candidates and targets of each user."""
        return {user_id: (frozenset(asked.candidates), asked.target) for user_id, asked in self.asked.items()}

    @cached_property
    def examples(self) -> Mapping[str, Any]:
        """examples.json: some users with the prompts that were asked, and titles; {} where the run keeps none."""
        path = self.folder / "examples.json"
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    @cached_property
    def slices(self) -> list[dict[str, Any]]:
        """slices.parquet, a line a group, row and metric; none where the run keeps none."""
        if not self.has("slices.parquet"):
            return []
        with parquet_files.opened(self.folder / "slices.parquet") as file:
            return list(file.read().to_pylist())

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
        (names, codes), (users, user_codes), (items, item_codes), ranks, _ = self._rankings
        inside = (codes == names.index(row)) & (user_codes == users.index(user_id))
        places = zip(item_codes[inside], ranks[inside], strict=True)
        return min((int(rank) for item, rank in places if items[item] in item_ids), default=None)

    def placed(self, row: str) -> Placed:
        """Scores and places of every candidate of every user. Raises RunError where the run's files do not agree."""
        users, places, sizes, items, judged, relevant = self._pairs
        (names, codes), (own_users, user_codes), (own_items, item_codes), ranks, scores = self._rankings
        inside = codes == names.index(row)
        user_at = {user_id: at for at, user_id in enumerate(self.asked)}
        item_at = {item_id: at for at, item_id in enumerate(self._item_ids)}
        try:
            to_user = np.array([user_at[user_id] for user_id in own_users], dtype=np.intp)
            to_item = np.array([item_at[item_id] for item_id in own_items], dtype=np.intp)
        except KeyError as error:
            raise self._disagree(error.args[0]) from None
        ranked = to_user[user_codes[inside]] * len(item_at) + to_item[item_codes[inside]]
        listed = users * len(item_at) + items
        from_ranked, to_listed = np.argsort(ranked, kind="stable"), np.argsort(listed, kind="stable")
        if not np.array_equal(ranked[from_ranked], listed[to_listed]):
            raise self._disagree(row)
        back = np.empty(len(listed), dtype=np.intp)
        back[to_listed] = from_ranked
        return Placed(users, places, sizes, relevant, judged, scores[inside][back], ranks[inside][back])

    def _disagree(self, what: str) -> RunError:
        return RunError(
            f"{self.folder}: rankings.parquet and candidates.parquet do not belong together ({what!r}); "
            "run the task again with a new --out"
        )

    @cached_property
    def _item_ids(self) -> list[str]:
        return list(dict.fromkeys(chain.from_iterable(asked.candidates for asked in self.asked.values())))

    @cached_property
    def _pairs(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        """candidates.parquet as arrays (n_pairs,): user, place, length of the list, item, answer known, is relevant."""
        at = {item_id: number for number, item_id in enumerate(self._item_ids)}
        lists = list(self.asked.values())
        sizes = np.array([len(asked.candidates) for asked in lists], dtype=np.intp)
        users = np.repeat(np.arange(len(lists)), sizes)
        places = np.arange(len(users)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        pairs = [(at[item_id], item_id in asked.target) for asked in lists for item_id in asked.candidates]
        items, relevant = (np.array(column) for column in zip(*pairs, strict=True))
        judged = np.repeat(np.array([bool(asked.target) for asked in lists]), sizes)
        return users, places, np.repeat(sizes, sizes), items, judged, relevant.astype(np.bool_)

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
    def _rankings(self) -> tuple[Any, Any, Any, Any, Any]:
        """rankings.parquet: (names, codes) of rows, users and items, the ranks and the scores."""
        with parquet_files.opened(self.folder / "rankings.parquet") as file:
            table = file.read()
        return (
            *(_coded(table[name]) for name in ("row", "user_id", "item_id")),
            table["rank"].to_numpy(),
            table["score"].to_numpy(),
        )


def _coded(column: Any) -> tuple[list[str], npt.NDArray[np.int32]]:
    codes, names, _ = parquet_files.coded(column)
    return names, codes
