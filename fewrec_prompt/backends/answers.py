"""From rows of log-probabilities, one a continuation, to the answers that a backend gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from fewrec_prompt.errors import NumericError
from fewrec_prompt.types import TokenLogprobs


def as_answers(rows: Sequence[torch.Tensor], sizes: Sequence[int], *, grad: bool) -> list[TokenLogprobs]:
    """Rows of all continuations, in order, as one tuple a question, which has as many continuations as `sizes` says.

    float64 arrays, or torch rows that gradients flow through. Raises NumericError if a number is not finite.
    """
    if not rows:
        return [() for _ in sizes]
    whole = torch.cat(list(rows)).detach()  # a GPU is waited for once, not once a row
    if not bool(torch.isfinite(whole).all()):
        raise NumericError("the model returned log-probabilities that are not finite; try --precision fp32")
    given: list[Any] = list(rows)
    if not grad:
        given = [row.numpy() for row in torch.split(whole.double().cpu(), [len(row) for row in rows])]
    return [tuple(given[end - size : end]) for size, end in zip(sizes, accumulate(sizes), strict=True)]
