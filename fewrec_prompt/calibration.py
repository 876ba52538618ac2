"""Take out of a score what the model would have said without knowing the person, or whatever comes to the same place.

| name | what is subtracted, alpha times | source |
|---|---|---|
| `none` | nothing | |
| `pmi` | the score of the twin: the same query without history | Holtzman et al. 2021, arXiv 2104.08315 |
| `contextual` | the mean score of several twins whose history says nothing | Zhao et al. 2021, arXiv 2102.09690 |
| `batch` | how the item does with the other users of the run | Zhou et al. 2024, arXiv 2309.17249 |
| `position` | how the place in the prompt does with the other users | Zheng et al. 2024, arXiv 2309.03882 |

All of it works on logged log-probabilities: another alpha asks the model nothing, another name at most the twins that
are not there yet. `batch` and `position` are transductive: a user's scores depend on which others are in the run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import VerbalizerError, did_you_mean
from fewrec_prompt.types import Interaction, Item, Query
from fewrec_prompt.verbalizers import AnyVerbalizer, Choose

CalibrationName = Literal["none", "pmi", "contextual", "batch", "position"]
NAMES: tuple[CalibrationName, ...] = get_args(CalibrationName)
WEIGHED = NAMES[1:]
"""The calibrations that have an alpha."""

NEUTRAL: Mapping[str, tuple[str, ...]] = {"pmi": ("",), "contextual": ("", "N/A", "[MASK]")}
"""What stands for the history in the twins of a calibration ("": nothing). Two that name the same share its answers."""

TRANSDUCTIVE = ("batch", "position")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which calibration, and how much of what it subtracts. "none" asks no twin."""

    name: CalibrationName = "none"
    alpha: float = 0.0

    @classmethod
    def named(cls, name: str, alpha: float | None, verbalizer: AnyVerbalizer | None = None) -> Calibration:
        """Without an alpha: the verbalizer's own for twins, else 1.

        Raises VerbalizerError for an unknown name, an alpha that is no number, or a verbalizer it means nothing for.
        """
        if name not in NAMES:
            raise VerbalizerError(f"unknown calibration {name!r}; {did_you_mean(name, NAMES)}")
        if alpha is None:
            alpha = verbalizer.alpha if verbalizer is not None and name in NEUTRAL else 1.0
        if not math.isfinite(alpha):
            raise VerbalizerError(f"alpha is {alpha}; it must be a finite number")
        made = cls(name, alpha) if name != "none" else cls()
        if verbalizer is not None:
            made.check(verbalizer)
        return made

    def check(self, verbalizer: AnyVerbalizer) -> None:
        """Raises VerbalizerError where this calibration has nothing to work on."""
        if reason := self._problem(verbalizer):
            raise VerbalizerError(f"calibration {self.name!r} {reason}; take another calibration, or none")

    def fits(self, verbalizer: AnyVerbalizer) -> bool:
        """Whether `check` has nothing against it."""
        return not self._problem(verbalizer)

    def _problem(self, verbalizer: AnyVerbalizer) -> str:
        if self.needs_twin and verbalizer.kind == "channel":
            return "asks without history, and the history is what kind 'channel' asks for"
        if self.needs_twin and verbalizer.many_rounds:
            return f"asks a twin of every question, and {verbalizer.kind!r} here asks by what was answered before"
        if self.name == "position" and not (isinstance(verbalizer, Choose) and verbalizer.orders == 1):
            return "is for prompts of kind 'choose' in one order, where a candidate is scored in one place"
        return ""

    @property
    def neutral(self) -> tuple[str, ...]:
        """What stands for the history in each twin that is asked."""
        return NEUTRAL.get(self.name, ())

    @property
    def needs_twin(self) -> bool:
        return bool(self.neutral)

    @property
    def transductive(self) -> bool:
        """Whether a user's scores depend on the other users that are ranked. Nothing can be trained through it."""
        return self.name in TRANSDUCTIVE

    def apply(self, scores: Any, prior: Any) -> Any:
        """Calibrated scores, of the type and shape of `scores`; `prior` is what is expected without the person."""
        return scores if self.name == "none" else scores - self.alpha * prior


def twin(query: Query, neutral: str = "") -> Query:
    """The same query without content: nothing known of the person or the moment, no history, or one neutral item.

    That item has the fields of the latest one, so that a template finds them: words are replaced, numbers stay.
    """
    bare = replace(query.recent(0), user=(), context=())
    if not neutral:
        return bare
    fields = query.history[-1].item.fields if query.history else ()
    said = tuple((name, neutral if isinstance(value, str) else value) for name, value in fields)
    return replace(bare, history=(Interaction(Item(neutral, neutral, said)),))


def priors(name: CalibrationName, scores: Sequence[Floats], queries: Sequence[Query]) -> list[Floats]:
    """What a transductive calibration subtracts of each user's scores (n_candidates,).

    Scores are looked at as differences from the mean of their list. An item ("batch") or a place in the prompt
    ("position") is expected to do as it does on the mean of all other users, and of one more to whom it is worth 0: so
    what few users share moves little, what nobody shares nothing, and nobody's own answer is taken from itself.
    """
    keys = [_keys(name, query) for query in queries]
    centred = [row - row.mean() for row in scores]
    total: dict[Hashable, float] = defaultdict(float)
    count: dict[Hashable, int] = defaultdict(int)
    for own, row in zip(keys, centred, strict=True):
        for key, score in zip(own, row.tolist(), strict=True):
            total[key] += score
            count[key] += 1
    return [
        np.array([(total[key] - score) / count[key] for key, score in zip(own, row.tolist(), strict=True)])
        for own, row in zip(keys, centred, strict=True)
    ]


def _keys(name: CalibrationName, query: Query) -> list[Hashable]:
    """What the scores of a list are compared by between users."""
    return [item.id for item in query.candidates] if name == "batch" else list(range(len(query.candidates)))
