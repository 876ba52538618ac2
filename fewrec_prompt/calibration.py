"""Take out of a score what the model would have said without knowing the person.

The twin of a query is the same query without history; its scores are subtracted, alpha times. For labels this is
contextual calibration (Zhao et al. 2021, arXiv 2102.09690), for titles domain-conditional PMI (Holtzman et al. 2021,
arXiv 2104.08315) with a weight. It works on logged log-probabilities: another alpha asks the model nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fewrec_prompt.errors import VerbalizerError, did_you_mean
from fewrec_prompt.types import Query

CalibrationName = Literal["none", "pmi"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which calibration, and how much of the twin's score is subtracted. "none" asks no twin."""

    name: CalibrationName = "none"
    alpha: float = 0.0

    @classmethod
    def named(cls, name: str, alpha: float) -> Calibration:
        """Raises VerbalizerError for an unknown name or an alpha that is no number."""
        if name not in get_args(CalibrationName):
            raise VerbalizerError(f"unknown calibration {name!r}; {did_you_mean(name, get_args(CalibrationName))}")
        if not math.isfinite(alpha):
            raise VerbalizerError(f"alpha is {alpha}; it must be a finite number")
        return cls(name, alpha) if name != "none" else cls()  # type: ignore[arg-type]  # checked above

    @property
    def needs_twin(self) -> bool:
        return self.name != "none"

    def apply(self, scores: Any, twin_scores: Any) -> Any:
        """Calibrated scores, of the type and shape of `scores`."""
        return scores - self.alpha * twin_scores if self.needs_twin else scores


def twin(query: Query) -> Query:
    """The same query without content: no history, and nothing known of the person or the moment."""
    return replace(query.recent(0), user=(), context=())
