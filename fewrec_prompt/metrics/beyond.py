"""Which items come up, whoever they are for: coverage, concentration, novelty, diversity, popularity; place in prompt.

No metric here looks at what is relevant. Where scores are tied, an item stands on the first k places
with a chance (ranking.chance_in_top), and a value is the expectation over all orders of tied items; Gini and
popularity-lift take the expected places. More is not better by itself: a random order covers most and is newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fewrec_prompt.metrics.naming import Codes, Floats, Statistic, metric
from fewrec_prompt.metrics.ranking import chance_in_top, exposure
from fewrec_prompt.metrics.users import Shelf, UserScores

_NEVER = -1e3  # stands for the logarithm of 0: exp of it is 0, and 0 times it is not NaN


@metric("novelty", "required", kind="user", unit="bits", better="neither")
def novelty(user: UserScores, shelf: Shelf, k: int) -> float:
    """Mean self-information of the first k items, in bits (Zhou et al. 2010, arXiv 0808.2670)."""
    chance = chance_in_top(user.scores, k)
    bits = np.array([shelf.information[item_id] for item_id in user.item_ids])
    return float((chance * bits).sum() / chance.sum())


@metric("diversity", "required", kind="user", better="neither")
def diversity(user: UserScores, shelf: Shelf, k: int) -> float:
    """Mean distance between two of the first k items (Ziegler et al. 2005): 1 - Jaccard index of their genres.

    Items without genres are compared by the words of their titles. NaN for less than two items.
    """
    chance = chance_in_top(user.scores, k)
    shown = np.flatnonzero(chance)
    both = _chance_of_pairs(chance[shown], len(shown), k)
    total = both.sum()
    if not total:
        return float("nan")
    return float((both * _distances([user.item_ids[place] for place in shown], shelf)).sum() / total)


def _chance_of_pairs(chance: Floats, n_shown: int, k: int) -> Floats:
    """Chance that two items both stand on the first k places; 0 on the diagonal. Only one tie group can be cut."""
    cut = chance < 1
    n_sure, n_cut = n_shown - int(cut.sum()), int(cut.sum())
    places = min(k, n_shown) - n_sure
    both = np.outer(chance, chance)
    both[np.ix_(cut, cut)] = places * (places - 1) / max(n_cut * (n_cut - 1), 1)
    np.fill_diagonal(both, 0.0)
    return both


def _distances(item_ids: Sequence[str], shelf: Shelf) -> Floats:
    has = np.zeros((len(item_ids), len(shelf.trait_places)))
    for row, item_id in enumerate(item_ids):
        has[row, [shelf.trait_places[trait] for trait in shelf.traits[item_id]]] = 1.0
    common, size = has @ has.T, has.sum(axis=1)
    return np.asarray(1 - common / np.maximum(size[:, None] + size - common, 1.0))


@metric("position-bias", "none", kind="user", better="neither")
def position_bias(user: UserScores, _shelf: Shelf, _k: None) -> float:
    """Spearman correlation of place in the prompt and place in the ranking, from -1 to 1.

    Above 0: what is shown first is ranked first. Around 0 where candidates are not shown together. Tied scores count as
    the mean over their orders, so a scorer that says nothing has 0. NaN for one candidate.
    """
    return order_correlation(user.scores)


def order_correlation(scores: Floats) -> float:
    """Spearman correlation of the order of these scores with their order by size, largest first; NaN for one score."""
    n = len(scores)
    if n < 2:
        return float("nan")
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    place = (np.cumsum(size) - (size + 1) / 2)[group] - (n - 1) / 2
    shown = np.arange(n) - (n - 1) / 2
    return float((place * shown).sum() / (shown * shown).sum())


@metric("exposure-gap", "required", kind="items", better="neither")
def exposure_gap(user: UserScores, shelf: Shelf, k: int) -> dict[str, float]:
    """For each group of items: its share of the exposure on the first k places minus its share of the candidates.

    0: looked at as much as it is offered (the demographic parity of Singh & Joachims 2018, arXiv 1802.07281). A user
    who is offered nothing of a group has 0.
    """
    share = exposure(user.scores, k)
    share = share / share.sum() - 1 / len(share)
    inside = {label: [item_id in items for item_id in user.item_ids] for label, items in shelf.groups.items()}
    return {label: float(share[mask].sum()) for label, mask in inside.items()}


@metric("coverage", "required", kind="run", better="neither")
def coverage(users: Sequence[UserScores], shelf: Shelf, groups: Codes, k: int) -> Statistic:
    """Share of the catalogue that stands on the first k places of at least one user (Herlocker et al. 2004)."""
    with np.errstate(divide="ignore"):
        missed = _by_item(users, shelf, groups, lambda user: np.log1p(-chance_in_top(user.scores, k)).clip(_NEVER))
    return lambda weights: float((1 - np.exp(weights @ missed)).sum() / len(shelf.popularity))


@metric("Gini", "required", kind="run", better="neither")
def gini(users: Sequence[UserScores], shelf: Shelf, groups: Codes, k: int) -> Statistic:
    """Gini index of how often each item of the catalogue stands on the first k places, in [0, 1).

    0: all items equally often; near 1: always the same few (Fleder & Hosanagar 2009).
    """
    exposure = _by_item(users, shelf, groups, lambda user: chance_in_top(user.scores, k))
    return lambda weights: _gini(weights @ exposure)


def _gini(amounts: Floats) -> float:
    n = len(amounts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(amounts)).sum() / (n * amounts.sum()))


@metric("popularity-lift", "required", kind="run", unit="number", better="neither")
def popularity_lift(users: Sequence[UserScores], shelf: Shelf, groups: Codes, k: int) -> Statistic:
    """How much more popular the first k items are than the users' own histories, as a share of the latter.

    0: as popular as what people took; 1: twice as popular (Abdollahpouri et al. 2019, arXiv 1907.13286).
    """
    sums = np.zeros((int(groups.max()) + 1, 2))
    np.add.at(sums, groups, np.array([_popularities(user, shelf, k) for user in users]))

    def value(weights: Floats) -> float:
        shown, taken = weights @ sums
        return float(shown / taken - 1) if taken else float("nan")

    return value


def _popularities(user: UserScores, shelf: Shelf, k: int) -> tuple[float, float]:
    """Mean popularity of the first k items and of the history; a user without history counts in neither."""
    if not user.history_ids:
        return 0.0, 0.0
    chance = chance_in_top(user.scores, k)
    counts = np.array([shelf.popularity[item_id] for item_id in user.item_ids])
    taken = np.mean([shelf.popularity[item_id] for item_id in user.history_ids])
    return float((chance * counts).sum() / chance.sum()), float(taken)


def _by_item(
    users: Sequence[UserScores], shelf: Shelf, groups: Codes, amount: Callable[[UserScores], Floats]
) -> Floats:
    """Sum by group and item of what each user's candidates amount to; (n_groups, n_items)."""
    sums = np.zeros((int(groups.max()) + 1, len(shelf.popularity)))
    for user, group in zip(users, groups, strict=True):
        np.add.at(sums[group], [shelf.places[item_id] for item_id in user.item_ids], amount(user))
    return sums
