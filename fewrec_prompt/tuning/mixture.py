"""Who is learnt from in a pass over several tasks: how many people of each, which ones, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from fewrec_prompt.seeds import rng_for


@dataclass(frozen=True, slots=True)
class Draw:
    """A person of a task, and the how manieth time it is that the task's people are gone through."""

    task: int
    place: int
    turn: int


def shares(sizes: Sequence[int], temperature: float) -> np.ndarray:
    """The share of each task in a pass, (n_tasks,), in proportion to n^(1/T) for n people.

    T = 1 is proportional to n, a large T equal for all (temperature-scaled mixing: Raffel et al. 2020, arXiv
    1910.10683, section 3.5.2).
    """
    weights = np.asarray(sizes, dtype=float) ** (1 / temperature)
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Mixture:
    """The passes of a training over tasks with so many people.

    A pass is as many draws as there are people in all tasks together. A task goes through its people in turns, each in
    a new order, and a pass goes on where the last one stopped: nobody is drawn again before all others of the task
    were. So with T = 1 every pass is everybody once. Which pass it is decides all, with the seed: nothing is kept.
    """

    sizes: tuple[int, ...]
    temperature: float
    seed: int

    def counts(self, epoch: int) -> list[int]:
        """How many draws of a pass (from 1) each task has: its share of them, rounded up or down, right on the mean.

        Systematic sampling (Madow 1949): one random offset, and the whole numbers between the ends of the shares.
        """
        n = sum(self.sizes)
        ends = np.cumsum(n * shares(self.sizes, self.temperature))
        ends[-1] = n  # which rounding may miss
        below = np.floor(ends + rng_for(self.seed, "counts", epoch).random()).astype(int)
        return [int(n) for n in np.diff(below, prepend=0)]

    def draws(self, epoch: int) -> list[Draw]:
        """All of a pass (from 1), in order."""
        counts = self.counts(epoch)
        before = [self.counts(earlier) for earlier in range(1, epoch)]
        people = [self._people(task, sum(one[task] for one in before)) for task in range(len(counts))]
        order = rng_for(self.seed, "tasks", epoch).permutation(np.repeat(np.arange(len(counts)), counts))
        return [next(people[task]) for task in order.tolist()]

    def _people(self, task: int, n_before: int) -> Iterator[Draw]:
        """The people of a task without end, after so many."""
        n_turns, skipped = divmod(n_before, self.sizes[task])
        for turn in count(n_turns + 1):
            order = rng_for(self.seed, "order", turn).permutation(self.sizes[task]).tolist()
            yield from (Draw(task, place, turn) for place in order[skipped:])
            skipped = 0
