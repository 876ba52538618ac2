"""What a recommender may learn from: the interactions of the training part, and no answer.

Whoever cuts a data set says what is training; `without` then takes out whatever a user still had to do with the own
targets, however the cut was made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.dataset import Codes, Dataset, Floats, value_at
from fewrec_prompt.types import Fields, Interaction, Item


@dataclass(frozen=True, eq=False)
class Training:
    """Interactions sorted by user, oldest first where times are known, else in the order of the file.

    Interaction i is that of user_ids[users[i]] with item_ids[codes[i]]. Items nobody took in training are there too.
    """

    items: Mapping[str, Item]  # the whole catalogue
    item_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    users: Codes  # (n,) positions in user_ids
    codes: Codes  # (n,) positions in item_ids
    times: Floats | None = None  # (n,) seconds since 1970
    ratings: Floats | None = None  # (n,), NaN where unknown
    people: Mapping[str, Fields] = field(default_factory=dict)  # what is known of users, by id
    tested: frozenset[str] = frozenset()  # users under test: nothing is chosen by how well it does for them

    def __eq__(self, other: object) -> bool:
        """The same interactions of the same catalogue."""
        if not isinstance(other, Training):
            return NotImplemented
        arrays = (
            (self.users, other.users),
            (self.codes, other.codes),
            (self.times, other.times),
            (self.ratings, other.ratings),
        )
        ids = (self.items, self.item_ids, self.user_ids) == (other.items, other.item_ids, other.user_ids)
        return ids and all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in arrays)

    @cached_property
    def place(self) -> Mapping[str, int]:
        """The position in `item_ids` of each item."""
        return {item_id: code for code, item_id in enumerate(self.item_ids)}

    @cached_property
    def popularity(self) -> Mapping[str, int]:
        """How many training interactions each item of the catalogue has."""
        counts = np.bincount(self.codes, minlength=len(self.item_ids)).tolist()
        return dict(zip(self.item_ids, counts, strict=True))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """User u has the interactions starts[u] to starts[u + 1]."""
        return np.searchsorted(self.users, np.arange(len(self.user_ids) + 1)).astype(np.int64)

    @cached_property
    def user_place(self) -> Mapping[str, int]:
        """The position in `user_ids` of each user."""
        return {user_id: place for place, user_id in enumerate(self.user_ids)}

    def interactions(self, user_id: str) -> tuple[Interaction, ...]:
        """What this user took in training, oldest first; nothing if the user is not there."""
        if user_id not in self.user_place:
            return ()
        user = self.user_place[user_id]
        return tuple(
            Interaction(self.items[self.item_ids[self.codes[i]]], value_at(self.ratings, i), value_at(self.times, i))
            for i in range(int(self.starts[user]), int(self.starts[user + 1]))
        )

    @cached_property
    def activity(self) -> Mapping[str, int]:
        """How many training interactions each user has."""
        return dict(zip(self.user_ids, np.diff(self.starts).tolist(), strict=True))

    def without(self, targets: Mapping[str, Collection[str]]) -> Training:
        """The same without the interactions of these users, who are under test, with these items (ids by user id)."""
        pairs = [
            self.user_place[user_id] * len(self.item_ids) + self.place[item_id]
            for user_id, item_ids in targets.items()
            for item_id in item_ids
            if user_id in self.user_place and item_id in self.place
        ]
        taken = self.users.astype(np.int64) * len(self.item_ids) + self.codes
        kept = self._kept(~np.isin(taken, np.array(pairs, dtype=np.int64)))
        return replace(kept, tested=frozenset(targets))

    def _kept(self, kept: npt.NDArray[np.bool_]) -> Training:
        times, ratings = (None if values is None else values[kept] for values in (self.times, self.ratings))
        return replace(self, users=self.users[kept], codes=self.codes[kept], times=times, ratings=ratings)


def part_at(dataset: Dataset, positions: npt.NDArray[np.int64]) -> Training:
    """The interactions of a data set at these positions, which ascend."""
    whole = Training(
        dataset.items,
        dataset.item_ids,
        dataset.user_ids,
        dataset.user_of,
        dataset.codes,
        dataset.times,
        dataset.ratings,
        dataset.users,
    )
    kept = np.zeros(len(dataset.codes), dtype=np.bool_)
    kept[positions] = True
    return whole._kept(kept)


def from_pairs(items: Mapping[str, Item], pairs: Iterable[tuple[str, str]]) -> Training:
    """From (user id, item id) in the order of taking; items that are not in the catalogue are dropped."""
    known = [(user_id, item_id) for user_id, item_id in pairs if item_id in items]
    item_ids, user_ids = tuple(sorted(items)), tuple(sorted({user_id for user_id, _ in known}))
    item_place = {item_id: place for place, item_id in enumerate(item_ids)}
    user_place = {user_id: place for place, user_id in enumerate(user_ids)}
    users = np.array([user_place[user_id] for user_id, _ in known], dtype=np.int32)
    codes = np.array([item_place[item_id] for _, item_id in known], dtype=np.int32)
    order = np.argsort(users, kind="stable")
    return Training(items, item_ids, user_ids, users[order], codes[order])
