"""What is measured: one user's scores beside what was relevant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewrec_prompt.errors import DataError, NumericError
from fewrec_prompt.metrics.ranking import Bools, Floats


@dataclass(frozen=True, slots=True, eq=False)
class UserScores:
    """What one user's candidates scored, and which of them are relevant: here ranking and qrels meet.

    `n_relevant` counts all relevant items of the user; those that are no candidates count as never found.
    """

    user_id: str
    scores: Floats  # (n_candidates,), higher is better; infinite is an order too, NaN is none
    relevant: Bools  # (n_candidates,)
    n_relevant: int

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.shape != self.relevant.shape:
            raise DataError(
                f"user {self.user_id}: scores of shape {self.scores.shape} and relevance of shape "
                f"{self.relevant.shape}; give one of each per candidate"
            )
        if self.relevant.dtype != np.bool_:
            raise DataError(f"user {self.user_id}: relevance is {self.relevant.dtype}; give true or false")
        if np.isnan(self.scores).any():
            raise NumericError(f"user {self.user_id}: {np.isnan(self.scores).sum()} scores are not a number (NaN)")
        if self.n_relevant < self.relevant.sum():
            raise DataError(
                f"user {self.user_id}: {self.relevant.sum()} relevant candidates, but n_relevant is {self.n_relevant}"
            )

    @classmethod
    def from_lists(cls, user_id: str, scores: Sequence[float], relevant: Sequence[int], n_relevant: int) -> UserScores:
        """From plain lists, relevance as 0 and 1."""
        if not set(relevant) <= {0, 1}:
            raise DataError(f"user {user_id}: relevance holds {sorted(set(relevant) - {0, 1})}; give 0 or 1")
        return cls(user_id, np.array(scores, dtype=np.float64), np.array(relevant, dtype=np.bool_), n_relevant)
