"""What an answer is learnt against: the candidates it came with, or others for every pass.

| name | the other candidates |
|---|---|
| given | those of the question |
| uniform | any items that the person has not taken, drawn anew for every pass |
| shared | the same, from one order of the items for all people of a step, so that they have most of them in common |
| popularity | the same, drawn in proportion to how often they were taken |
| in-batch | the question's own, and the answers of the others of a step |
| hard | the best of four times as many uniform ones, as the model ranks them now (ANCE: arXiv 2007.00808) |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import DataError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.settings import NegativesName
from fewrec_prompt.types import Item, Query, Ranking

HARDER = 4  # times as many candidates, of which the best stay
Rank: TypeAlias = Callable[[Query], Ranking]


@dataclass(frozen=True, slots=True)
class Negatives:
    """Draws candidates for examples; `training` says what there is and what a person has taken."""

    name: NegativesName
    training: Training | None
    seed: int

    def __post_init__(self) -> None:
        if self.training is None and self.name not in ("given", "in-batch"):
            raise DataError(
                f"negatives {self.name!r} are drawn from a catalogue, and these queries come without one; take 'given'"
            )

    def __call__(self, batch: Sequence[Example], epoch: int, rank: Rank) -> list[Example]:
        """The examples of one step with the candidates of this pass; `rank` is the model as it is now."""
        match self.name:
            case "given":
                return list(batch)
            case "in-batch":
                return [self._with_answers(example, batch) for example in batch]
            case "hard":
                return [self._hardest(example, epoch, rank) for example in batch]
            case "shared":
                return self._shared(batch, epoch)
            case _:
                return [self._drawn(example, epoch, len(example.query.candidates)) for example in batch]

    def _with_answers(self, example: Example, batch: Sequence[Example]) -> Example:
        own = {item.id for item in example.query.candidates} | self._taken(example)
        others = {item.id: item for one in batch for item in _answers(one) if item.id not in own}
        query = replace(example.query, candidates=(*example.query.candidates, *others.values()))
        return replace(example, query=query)

    def _hardest(self, example: Example, epoch: int, rank: Rank) -> Example:
        n = len(example.query.candidates)
        many = self._drawn(example, epoch, HARDER * n)
        answers = {item.id for item in _answers(many)}
        ranked = rank(many.query).items
        best = [item for item in ranked if item.id not in answers][: n - len(answers)]
        return _shuffled(example, [*_answers(example), *best], rng_for(self.seed, "hard", epoch, example.query.user_id))

    def _shared(self, batch: Sequence[Example], epoch: int) -> list[Example]:
        """For each person the first that they have not taken: uniform for each, and nearly the same for all.

        What a title scores by itself is then computed once a step (common random numbers).
        """
        rng = rng_for(self.seed, "shared", epoch, *(one.query.user_id for one in batch))
        order = rng.permutation(len(self._catalogue.item_ids))
        found = []
        for example in batch:
            n_others = len(example.query.candidates) - len(example.relevant)
            first = sorted(self._free(example), key=order.__getitem__)[:n_others]
            own = rng_for(self.seed, "negatives", epoch, example.query.user_id)
            found.append(self._among(example, first, own))
        return found

    def _drawn(self, example: Example, epoch: int, n: int) -> Example:
        rng = rng_for(self.seed, "negatives", epoch, example.query.user_id)
        free = self._free(example)
        n_others = min(n - len(example.relevant), len(free))
        chosen = rng.choice(free, n_others, replace=False, p=self._shares(free, n_others))
        return self._among(example, chosen.tolist(), rng)

    @property
    def _catalogue(self) -> Training:
        assert self.training is not None, "checked at the start"
        return self.training

    def _free(self, example: Example) -> list[int]:
        """The codes of all items that the person has not taken."""
        taken = self._taken(example) | {item.id for item in _answers(example)}
        free = [code for code, item_id in enumerate(self._catalogue.item_ids) if item_id not in taken]
        if not free:
            raise DataError(
                f"user {example.query.user_id!r} has taken all {len(self._catalogue.item_ids)} items of the catalogue, "
                "so there is none to learn against; leave this user out, or take negatives 'given'"
            )
        return free

    def _among(self, example: Example, codes: Sequence[int], rng: np.random.Generator) -> Example:
        """The same question, its answers among these items."""
        others = [self._catalogue.items[self._catalogue.item_ids[code]] for code in codes]
        return _shuffled(example, [*_answers(example), *others], rng)

    def _shares(self, free: Sequence[int], n: int) -> np.ndarray | None:
        if self.name != "popularity":
            return None
        counts = np.array([self._catalogue.popularity[self._catalogue.item_ids[code]] for code in free], dtype=float)
        counts += 1.0 if np.count_nonzero(counts) < n else 0.0  # items nobody took, where the others do not suffice
        shares: np.ndarray = counts / counts.sum()
        return shares

    def _taken(self, example: Example) -> set[str]:
        known = () if self.training is None else self.training.interactions(example.query.person)
        return {seen.item.id for seen in (*example.query.history, *known)}


def _answers(example: Example) -> list[Item]:
    return [example.query.candidates[place] for place in example.relevant]


def _shuffled(example: Example, items: Sequence[Item], rng: np.random.Generator) -> Example:
    """The same question about these items in a random order; the first of them are the answers."""
    order = rng.permutation(len(items)).tolist()
    places = tuple(sorted(order.index(at) for at in range(len(example.relevant))))
    return Example(replace(example.query, candidates=tuple(items[at] for at in order)), places)
