"""Leave out what there is too little of: the k-core of a data set, and interactions that were not liked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.errors import DataError


def k_core(dataset: Dataset, k: int) -> Dataset:
    """The largest part in which every user and every item has k interactions at least; other items go too.

    Raises DataError if nothing is left.
    """
    users, items = dataset.user_of, dataset.codes
    kept = np.ones(len(items), dtype=bool)
    while True:
        often = np.bincount(users[kept], minlength=len(dataset.user_ids)) >= k
        wanted = np.bincount(items[kept], minlength=len(dataset.item_ids)) >= k
        still = kept & often[users] & wanted[items]
        if (still == kept).all():
            return _part(dataset, kept, f"its {k}-core", used_items_only=True)
        kept = still


def liked(dataset: Dataset, min_rating: float) -> Dataset:
    """Interactions rated `min_rating` at least. Raises DataError if there are no ratings, or none so high."""
    if dataset.ratings is None:
        raise DataError(f"{dataset.name}: has no ratings, so `min_rating` cannot be applied; leave it out")
    return _part(dataset, dataset.ratings >= min_rating, f"what is rated {min_rating:g} or higher")


def _part(dataset: Dataset, kept: npt.NDArray[np.bool_], what: str, *, used_items_only: bool = False) -> Dataset:
    """The kept interactions, their users, and all items or only theirs."""
    if not kept.any():
        raise DataError(f"{dataset.name}: {what} is empty; ask for less")
    users = dataset.user_of[kept]
    codes: npt.NDArray[np.integer] = dataset.codes[kept]
    alive, user_codes = np.unique(users, return_inverse=True)
    item_ids = dataset.item_ids
    if used_items_only:
        used, codes = np.unique(codes, return_inverse=True)
        item_ids = tuple(item_ids[code] for code in used.tolist())
    return replace(
        dataset,
        items={item_id: dataset.items[item_id] for item_id in item_ids},
        item_ids=item_ids,
        user_ids=tuple(dataset.user_ids[user] for user in alive.tolist()),
        starts=np.searchsorted(user_codes, np.arange(len(alive) + 1)),
        codes=codes.astype(np.int32),
        ratings=None if dataset.ratings is None else dataset.ratings[kept],
        times=None if dataset.times is None else dataset.times[kept],
    )
