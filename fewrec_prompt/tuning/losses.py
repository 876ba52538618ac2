"""What is made small: losses over the scores of one question's candidates, in nats.

| loss | of what | source |
|---|---|---|
| listwise | the answer against all candidates | softmax cross-entropy, ListNet's top-one (Cao et al. 2007) |
| pairwise | the answer against each other candidate | Rendle et al. 2009, arXiv 1205.2618 (BPR) |
| binary | each candidate by itself: yes or no | logistic regression on log-odds |

The scale of scores is learnt beside the weights, from where it suits the untrained scores best: a temperature changes a
loss but no ranking, and the wrong one drowns what is to be learnt (log-probabilities of titles differ by tens of nats).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from fewrec_prompt.errors import DataError

LossName = Literal["listwise", "pairwise", "binary"]
Loss: TypeAlias = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""From scores (n_candidates,) and the places of the answers to a number."""


def listwise(scores: torch.Tensor, relevant: Sequence[int]) -> torch.Tensor:
    """−log of the softmax of the answers' scores, the mean of several."""
    return -scores.log_softmax(-1)[list(relevant)].mean()


def pairwise(scores: torch.Tensor, relevant: Sequence[int]) -> torch.Tensor:
    """−log σ(answer − other), the mean over all pairs."""
    is_answer = _marks(scores, relevant)
    differences = scores[is_answer][:, None] - scores[~is_answer][None, :]
    return -logsigmoid(differences).mean()


def binary(scores: torch.Tensor, relevant: Sequence[int]) -> torch.Tensor:
    """Cross-entropy of scores taken as log-odds, the mean over the candidates."""
    return binary_cross_entropy_with_logits(scores, _marks(scores, relevant).to(scores.dtype))


LOSSES: dict[LossName, Loss] = {"listwise": listwise, "pairwise": pairwise, "binary": binary}


def check_answers(name: LossName, n_candidates: int, n_relevant: int, user_id: str) -> None:
    """Raises DataError where the loss has nothing to compare."""
    if name != "binary" and not 0 < n_relevant < n_candidates:
        raise DataError(
            f"user {user_id!r}: {n_relevant} of {n_candidates} candidates are answers, so there is nothing to compare "
            "them with; for likes and dislikes take the loss 'binary'"
        )


def best_scale(name: LossName, scores: Sequence[np.ndarray], answers: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(log of the scale that suits these scores best, mean loss at it): where learning starts, and has to beat."""
    rows = [torch.from_numpy(np.asarray(row, dtype=np.float64)) for row in scores]

    def mean(log_scale: float) -> float:
        losses = [LOSSES[name](row * np.exp(log_scale), places) for row, places in zip(rows, answers, strict=True)]
        return float(torch.stack(losses).mean())

    found = minimize_scalar(mean, bounds=(-6.0, 3.0), method="bounded")
    return float(found.x), float(found.fun)


def _marks(scores: torch.Tensor, relevant: Sequence[int]) -> torch.Tensor:
    marks = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    marks[list(relevant)] = True
    return marks
