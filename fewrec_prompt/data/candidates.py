"""Which items a target has to compete with: drawn from what the user has not taken, never by anybody's scores.

| sampler | the other candidates |
|---|---|
| uniform | any unseen items |
| popularity | unseen items taken about as often: the target's rank by popularity among them is uniform |
| category | unseen items that share a category with the target, then any others |
| bm25 | the unseen items whose titles and fields are nearest to the target's (Robertson & Zaragoza 2009) |
| full | all unseen items |
| file | the first of a list for each user, such as what a retriever found |

All but `uniform` and `full` look at the target, so what the candidates have in common may point to it: compare rows
on the same candidates only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.data.bm25 import Index
from fewrec_prompt.data.columns import Column
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.tables import read_table
from fewrec_prompt.errors import DataError, did_you_mean
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Item

SamplerName = Literal["uniform", "popularity", "category", "bm25", "full", "file"]
Codes: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a sampler is asked: `n` of the `free` items, which the user has not taken and the target is not among."""

    dataset: Dataset
    user: int
    target: int
    free: Codes
    n: int
    counts: Counts  # how often every item was taken, answers left out
    rng: np.random.Generator


Sampler: TypeAlias = Callable[[Asked], Codes]
CATEGORIES = ("genres", "category", "categories", "subcategory", "brand", "store", "author")


def with_negatives(
    dataset: Dataset,
    user: int,
    target: int,
    n_candidates: int | None,
    seed: int,
    sampler: Sampler,
    counts: Counts,
    pool: npt.NDArray[np.int32] | None = None,
) -> tuple[Item, ...]:
    """The target and the sampler's choice among what the user has not taken (of `pool`), in a random order.

    n_candidates None: as many as there are. Raises DataError if too few are unseen.
    """
    user_id = dataset.user_ids[user]
    unseen = np.zeros(len(dataset.item_ids), dtype=bool)
    unseen[slice(None) if pool is None else pool] = True
    unseen[dataset.codes[dataset.of(user)]] = False
    unseen[target] = False
    free = np.flatnonzero(unseen)
    n_others = len(free) if n_candidates is None else n_candidates - 1
    if len(free) < n_others:
        raise DataError(
            f"{dataset.name}, user {user_id!r}: {n_candidates} candidates were asked, but only {len(free)} items are "
            f"unseen; ask for {len(free) + 1} or fewer"
        )
    others = sampler(Asked(dataset, user, target, free, n_others, counts, rng_for(seed, "candidates", user_id)))
    # A second address: the place of the target is independent of what else was drawn.
    order = rng_for(seed, "order", user_id).permutation([target, *others])
    return tuple(dataset.item(int(code)) for code in order)


def sampler_of(name: SamplerName, *, category: str | None = None, lists: Path | None = None) -> Sampler:
    """The sampler of this name. `category` is a field of items, `lists` a file with user_id and candidates."""
    if name == "file":
        if lists is None:
            raise DataError('the sampler "file" needs `lists`, a file with the columns user_id and candidates')
        return listed(lists)
    plain: Mapping[str, Sampler] = {
        "uniform": uniform,
        "full": uniform,
        "popularity": as_popular,
        "category": of_category(category),
        "bm25": nearest,
    }
    return plain[name]


def uniform(asked: Asked) -> Codes:
    """Any of them."""
    return asked.rng.choice(asked.free, asked.n, replace=False)


def as_popular(asked: Asked) -> Codes:
    """The neighbours of the target by popularity, so many below and the rest above: how many, chance decides.

    Were there always as many above as below, the middle would give the target away.
    """
    free, counts, rng = asked.free, asked.counts, asked.rng
    ranked = free[np.lexsort((rng.permutation(len(free)), counts[free]))]
    low, high = (int(np.searchsorted(counts[ranked], counts[asked.target], side)) for side in ("left", "right"))
    place = int(rng.integers(low, high + 1))  # among those taken exactly as often
    first = int(np.clip(place - rng.integers(0, asked.n + 1), 0, len(ranked) - asked.n))
    return ranked[first : first + asked.n]


def of_category(field: str | None = None) -> Sampler:
    """Items that share a value of this field with the target; without a name, of the first usual one that they have."""

    def sample(asked: Asked) -> Codes:
        categories = _categories(asked.dataset, field)
        shuffled = asked.rng.permutation(asked.free)
        alike = [not categories[asked.target].isdisjoint(categories[code]) for code in shuffled]
        return shuffled[np.argsort(~np.array(alike, dtype=bool), kind="stable")][: asked.n]

    return sample


def nearest(asked: Asked) -> Codes:
    """The best by BM25 when the target's own text is the query; equal ones in an order that chance decides."""
    scores = _index(asked.dataset).scores(_text(asked.dataset.item(asked.target)))
    order = np.lexsort((asked.rng.permutation(len(asked.free)), -scores[asked.free]))
    return asked.free[order[: asked.n]]


def listed(path: Path) -> Sampler:
    """The first of each user's list that are unseen, best first. Raises DataError where a list is too short."""
    table = read_table(path, [Column("user_id", "id"), Column("candidates", "ids")])
    lists = dict(zip(table["user_id"], table["candidates"], strict=True))

    def sample(asked: Asked) -> Codes:
        user_id, n = asked.dataset.user_ids[asked.user], asked.n
        codes = {asked.dataset.item_ids[code]: int(code) for code in asked.free}
        known = [codes[item_id] for item_id in dict.fromkeys(lists.get(user_id, ())) if item_id in codes]
        if len(known) < n:
            raise DataError(
                f"{path}, user {user_id!r}: {len(known)} unseen items are listed, and {n} beside the target were asked"
            )
        return np.array(known[:n], dtype=np.int64)

    return sample


@lru_cache(maxsize=2)
def _categories(dataset: Dataset, field: str | None) -> list[frozenset[str]]:
    """The values of the field of every item, by code."""
    known = [dict(dataset.item(code).fields) for code in range(len(dataset.item_ids))]
    names = set().union(*known)
    name = field or next((name for name in CATEGORIES if name in names), None)
    if name not in names:
        wanted = f"`category` = {field!r}" if field else f"any of {', '.join(CATEGORIES)}"
        raise DataError(f"{dataset.name}: no item has {wanted} among its fields; {did_you_mean(str(name), names)}")
    return [frozenset(str(fields[name]).split(", ")) if name in fields else frozenset() for fields in known]


def _text(item: Item) -> str:
    return " ".join([item.title, *(str(value) for _, value in item.fields if isinstance(value, str))])


@lru_cache(maxsize=2)
def _index(dataset: Dataset) -> Index:
    return Index(_text(dataset.item(code)) for code in range(len(dataset.item_ids)))
