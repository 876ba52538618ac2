"""A catalogue and who took what of it, when: interactions as arrays, sorted by person and time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.catalogue import Catalogue, OnProblem
from fewrec_prompt.data.columns import Coded, Table
from fewrec_prompt.errors import DataError, did_you_mean
from fewrec_prompt.types import Fields, Interaction, Item

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
T = TypeVar("T", bound=np.generic)
LONG_AGO = 1e8  # seconds: 1973; nothing that is recommended was logged before
FAR = 1e11  # seconds: the year 5138; as milliseconds, 1973


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Items, and interactions sorted by (user id, time, row of the file).

    User u (a position in `user_ids`) has the interactions starts[u] to starts[u + 1], and interaction i is with
    item_ids[codes[i]]. Ids are sorted, so that nothing depends on the order of a file but ties in time.
    """

    name: str
    items: Mapping[str, Item]
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    codes: Codes
    ratings: Floats | None  # NaN where one is missing; None if there are none
    times: Floats | None  # seconds since 1970, likewise
    empty_titles: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)  # sha256 by file name
    users: Mapping[str, Fields] = field(default_factory=dict)  # what is known of the people, if anything
    unknown_items: int = 0  # interactions that were dropped, for their items are not in the catalogue
    repeated_ids: int = 0  # rows of the catalogue that were dropped, for their id stands above

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many users, items and interactions there are."""
        return len(self.user_ids), len(self.item_ids), len(self.codes)

    @property
    def user_of(self) -> Codes:
        """The user, as a position in `user_ids`, of every interaction."""
        return np.repeat(np.arange(len(self.user_ids), dtype=np.int32), np.diff(self.starts))

    @property
    def has_order(self) -> bool:
        """Whether times tell what came first, for one user at least."""
        if self.times is None:
            return False
        later = np.diff(self.times) > 0
        later[self.starts[1:-1] - 1] = False  # from one user to the next
        return bool(later.any())

    @property
    def has_calendar(self) -> bool:
        """Whether times are those of a clock, and not positions in a list."""
        return self.times is not None and bool(np.nanmax(self.times) >= LONG_AGO)

    def user(self, user_id: str) -> int:
        """The person's position in `user_ids`. Raises DataError if there is no such person."""
        position = bisect_left(self.user_ids, user_id)
        if position == len(self.user_ids) or self.user_ids[position] != user_id:
            near = did_you_mean(user_id, self.user_ids[max(0, position - 5) : position + 5])
            raise DataError(f"{self.name}: no user {user_id!r} has interactions; near it in the list are {near}")
        return position

    def of(self, user: int) -> slice:
        """The interactions of the user at this position, oldest first, as a slice of the arrays."""
        return slice(int(self.starts[user]), int(self.starts[user + 1]))

    def interactions(self, user_id: str) -> tuple[Interaction, ...]:
        """All interactions of this person, oldest first."""
        mine = self.of(self.user(user_id))
        return self.at(range(mine.start, mine.stop))

    def at(self, positions: Iterable[int]) -> tuple[Interaction, ...]:
        """The interactions at these positions of the arrays."""
        return tuple(
            Interaction(self.item(int(self.codes[i])), value_at(self.ratings, i), value_at(self.times, i))
            for i in positions
        )

    def item(self, code: int) -> Item:
        """The item that this code stands for."""
        return self.items[self.item_ids[code]]


def dataset(
    name: str,
    catalogue: Catalogue,
    table: Table,
    *,
    user: str,
    item: str,
    rating: str,
    time: str,
    on_problem: OnProblem = "error",
) -> Dataset:
    """A Dataset of a catalogue and a table of interactions, given the names of its columns; rating, time may be absent.

    With on_problem = "count", interactions with items that are not in the catalogue are left out and counted. Raises
    DataError if none are left, and else with the place of such an item.
    """
    if not table.n_rows:
        raise DataError(f"{table.path}: holds no interactions")
    item_ids = tuple(sorted(catalogue.items))
    codes = _item_codes(table, item, item_ids, on_problem)
    user_ids, users = _sorted_codes(table[user])
    times, ratings = table.get(time), table.get(rating)
    times = None if times is None else in_seconds(times)
    ratings = None if ratings is None or np.isnan(ratings).all() else ratings  # a column of nothing is none
    order = np.lexsort((users,) if times is None else (times, users))  # stable: ties keep the order of the file
    if n_unknown := int((codes < 0).sum()):
        order = order[codes[order] >= 0]
        user_ids, users = _still_there(user_ids, users, order)
    if not len(order):
        raise DataError(f"{table.path}: none of its items is in the catalogue")
    starts = np.searchsorted(users[order], np.arange(len(user_ids) + 1))
    return Dataset(
        name,
        catalogue.items,
        user_ids,
        item_ids,
        starts=_frozen(starts),
        codes=_frozen(codes[order]),
        ratings=None if ratings is None else _frozen(ratings[order]),
        times=None if times is None else _frozen(times[order]),
        empty_titles=catalogue.empty_titles,
        unknown_items=n_unknown,
        repeated_ids=catalogue.repeated_ids,
    )


def in_seconds(times: Floats) -> Floats:
    """Times in seconds since 1970, from seconds, milli-, micro- or nanoseconds: the one that is no far future."""
    latest = np.nanmax(times) if len(times) and not np.isnan(times).all() else 0.0
    power = next((power for power in (9, 6, 3) if latest >= FAR * 10.0 ** (power - 3)), 0)
    return times / 10.0**power if power else times


def _item_codes(table: Table, column: str, item_ids: tuple[str, ...], on_problem: OnProblem) -> Codes:
    """Positions in `item_ids` of the items in the column, -1 for those that are not there but counted."""
    coded: Coded = table[column]
    position = {item_id: code for code, item_id in enumerate(item_ids)}
    for code, item_id in enumerate(coded.values):
        if item_id not in position and on_problem == "error":
            row = int(np.argmax(coded.codes == code))
            raise DataError(f"{table.place(row, column)}: item {item_id!r} is not in the catalogue")
    return np.array([position.get(item_id, -1) for item_id in coded.values], dtype=np.int32)[coded.codes]


def _still_there(user_ids: tuple[str, ...], users: Codes, kept: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], Codes]:
    """People who have interactions left, and all interactions as positions among them."""
    alive = np.bincount(users[kept], minlength=len(user_ids)) > 0
    position = np.cumsum(alive, dtype=np.int32) - np.int32(1)
    return tuple(user_id for user_id, is_there in zip(user_ids, alive, strict=True) if is_there), position[users]


def _sorted_codes(coded: Coded) -> tuple[tuple[str, ...], Codes]:
    """The distinct ids in order, and the column as positions in them."""
    order = sorted(range(len(coded.values)), key=coded.values.__getitem__)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return tuple(coded.values[code] for code in order), rank[coded.codes]


def _frozen(values: npt.NDArray[T]) -> npt.NDArray[T]:
    values.setflags(write=False)
    return values


def value_at(values: Floats | None, position: int) -> float | None:
    """The value at a position of an array such as `ratings`; None where it is unknown."""
    return None if values is None or np.isnan(values[position]) else float(values[position])
