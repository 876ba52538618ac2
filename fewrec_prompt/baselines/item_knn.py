"""Who took this also took that: cosine of items over the people of the training part."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.training import Training
from fewrec_prompt.types import Query, Ranking

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ItemKnn:
    """Sum over the history of the cosine of two items' sets of takers (Deshpande & Karypis 2004), of all items."""

    training: Training
    user_starts: Codes  # distinct items of user u: items[user_starts[u] : user_starts[u + 1]]
    items: Codes
    item_starts: Codes  # distinct takers of item i, likewise
    takers: Codes
    _cosines: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def rank(self, query: Query) -> Ranking:
        place = self.training.place
        taken = [place[seen.item.id] for seen in query.history]
        scores = sum((self._cosine(item) for item in taken), np.zeros(len(self.training.item_ids)))
        return Ranking.from_scores(query, scores[[place[item.id] for item in query.candidates]].tolist())

    def _cosine(self, item: int) -> npt.NDArray[np.float64]:
        """With every item of the catalogue; 0 where either has no takers."""
        if item not in self._cosines:
            people = self.takers[self.item_starts[item] : self.item_starts[item + 1]]
            lists = [self.items[self.user_starts[one] : self.user_starts[one + 1]] for one in people]
            common = np.bincount(np.concatenate([*lists, self.items[:0]]), minlength=len(self.item_starts) - 1)
            sizes = np.diff(self.item_starts)
            self._cosines[item] = common / np.sqrt(np.maximum(sizes * max(1, len(people)), 1))
        return self._cosines[item]


def item_knn(training: Training, _seed: int) -> ItemKnn:
    """Repeated interactions count once."""
    n_users, n_items = len(training.user_ids), len(training.item_ids)
    pairs = np.unique(training.users.astype(np.int64) * n_items + training.codes)
    users, items = pairs // n_items, pairs % n_items
    by_item = np.argsort(items, kind="stable")
    user_starts = np.searchsorted(users, np.arange(n_users + 1))
    item_starts = np.searchsorted(items[by_item], np.arange(n_items + 1))
    return ItemKnn(training, user_starts, items, item_starts, users[by_item])
