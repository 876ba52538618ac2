"""Rows of token ids that share a pass: padded at the right, shortest first, no more tokens a pass than the budget.

For models whose continuations make no tree. What a row holds, and what comes of it, is for who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from fewrec_prompt.backends.engine import BUDGET
from fewrec_prompt.backends.memory import out_of_memory
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.errors import BudgetError, ModelError

Row = TypeVar("Row")
Made = TypeVar("Made")


class Passes:
    """Computes rows a pass at a time. The token budget is halved where memory runs out, and stays so.

    A canonical unit is not computed anew in smaller passes, for they decide its bits.
    """

    def __init__(self, mode: NumericMode) -> None:
        self.token_budget = mode.token_budget or BUDGET.get(mode.device.partition(":")[0], BUDGET["cpu"])
        self._canonical = mode.unit == "canonical"

    def __call__(
        self, rows: Iterable[Row], size: Callable[[Row], int], compute: Callable[[list[Row]], Sequence[Made]]
    ) -> dict[Row, Made]:
        """What `compute` makes of each row; `size` is in tokens. Equal rows are computed once.

        Rows go in the order of their size and content, so passes are the same whatever order they are given in. Raises
        BudgetError where not even one row fits the memory.
        """
        left = sorted(set(rows), key=lambda row: (size(row), row))
        done: dict[Row, Made] = {}
        while left:
            taken = self._first(left, size)
            try:
                done |= zip(taken, compute(taken), strict=True)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(len(taken), len(taken) * size(taken[-1]), error)
            else:
                left = left[len(taken) :]
        return done

    def _first(self, rows: list[Row], size: Callable[[Row], int]) -> list[Row]:
        n = 1
        while n < len(rows) and (n + 1) * size(rows[n]) <= self.token_budget:
            n += 1
        return rows[:n]

    def _halve(self, n_rows: int, area: int, error: Exception) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if n_rows == 1:
            raise BudgetError(
                f"{area} tokens do not fit the memory; use a shorter history or a smaller model"
            ) from error
        if self._canonical:
            raise BudgetError(
                f"a pass of {area} tokens does not fit the memory; give a smaller --token-budget"
            ) from error
        self.token_budget = max(1, min(self.token_budget, area) // 2)


def pad(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (n_rows, longest), and a mask of the same shape that is 1 where a token is."""
    longest = max(map(len, rows))
    ids = [[*row, *[filler] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means (n_rows, width), in fp32, of hidden states over the tokens of each row."""
    weights = mask[..., None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)


@contextmanager
def head_sees(model: Any, rows: Sequence[int], columns: Sequence[int]) -> Iterator[None]:
    """Within, the matrix of all words is applied at these places alone: the model's logits are (n_places, n_words).

    What stands before it in the head (BERT's transform, T5's scale) is the model's own.
    """
    matrix = model.get_output_embeddings()
    if matrix is None:
        raise ModelError(f"{type(model).__name__} has no matrix of output words that is known to transformers")
    handle = matrix.register_forward_pre_hook(lambda _, states: (states[0][list(rows), list(columns)],))
    try:
        yield
    finally:
        handle.remove()


def read_words(
    logits: torch.Tensor, places: Sequence[int], words: Sequence[int], sizes: Sequence[int]
) -> list[torch.Tensor]:
    """Log-probabilities (fp32, nats) of `words` at these places of `logits` (n_places, n_words), parted by `sizes`."""
    if logits.ndim != 2:
        raise ModelError(f"the model's head gave logits of shape {tuple(logits.shape)} for {len(logits)} places")
    logits = logits.float()
    at = torch.tensor(places, device=logits.device)
    found = logits[at, torch.tensor(words, device=logits.device)] - logits.logsumexp(-1)[at]
    return list(torch.split(found, list(sizes)))
