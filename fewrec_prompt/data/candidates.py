"""Which items a target has to compete with: drawn from what the user has not taken, never by anybody's scores."""

from __future__ import annotations

import numpy as np

from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.errors import DataError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Item


def with_unseen(dataset: Dataset, user: int, target: int, n_candidates: int, seed: int) -> tuple[Item, ...]:
    """The target and n_candidates - 1 items without any interaction of this user, uniformly drawn, in a random order.

    `user` and `target` are positions in `user_ids` and `item_ids`. The draw depends on seed, user id and data alone.
    Raises DataError if the user has left too few items unseen.
    """
    user_id = dataset.user_ids[user]
    unseen = np.ones(len(dataset.item_ids), dtype=bool)
    unseen[dataset.codes[dataset.of(user)]] = False
    pool = np.flatnonzero(unseen)
    if len(pool) < n_candidates - 1:
        raise DataError(
            f"{dataset.name}, user {user_id!r}: {n_candidates} candidates were asked, but only {len(pool)} items are "
            f"unseen; ask for {len(pool) + 1} or fewer"
        )
    others = rng_for(seed, "candidates", user_id).choice(pool, n_candidates - 1, replace=False)
    # A second address: the place of the target is independent of what else was drawn.
    order = rng_for(seed, "order", user_id).permutation([target, *others])
    return tuple(dataset.item(int(code)) for code in order)
