"""The fallback for models that take no tree mask, such as those with sliding windows: a shared beginning once, its
cache repeated for a padded batch of what follows.

What follows is padded on the right, so nothing real ever sees it, whatever the layers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.head import token_logprobs
from fewrec_prompt.backends.plan import TokenSequence


def expanded_logprobs(
    body: Body, sequences: Sequence[TokenSequence], n_stem: int, budget: int
) -> Iterator[torch.Tensor]:
    """Log-probabilities of each sequence; all share their first `n_stem` tokens, at least one and none of them scored.

    A pass has as many rows as the budget (tokens, those of the cache counted) holds.
    """
    cache = body.new_cache()
    last = body.hidden(np.array([sequences[0].ids[:n_stem]]), cache=cache)[:, -1:]
    width = max(len(sequence.ids) for sequence in sequences) - 1 - n_stem
    n_rows = max(1, budget // (n_stem + width))
    for begin in range(0, len(sequences), n_rows):
        yield from _rows(body, sequences[begin : begin + n_rows], n_stem, width, last, cache)


def _rows(
    body: Body, sequences: Sequence[TokenSequence], n_stem: int, width: int, last: torch.Tensor, cache: Any
) -> Sequence[torch.Tensor]:
    hidden = last.expand(len(sequences), -1, -1)
    if width:
        tails = [sequence.ids[n_stem:-1] for sequence in sequences]
        ids = np.array([[*tail, *[0] * (width - len(tail))] for tail in tails])
        hidden = torch.cat([hidden, body.hidden(ids, cache=_repeated(cache, len(sequences)))], dim=1)
    lengths = [len(sequence.ids) - sequence.scored_from for sequence in sequences]
    # Column 0 is the last token of the stem, so a token of depth d stands in column d + 1 − n_stem.
    nodes = [
        row * (1 + width) + column - n_stem
        for row, sequence in enumerate(sequences)
        for column in range(sequence.scored_from, len(sequence.ids))
    ]
    targets = [token for sequence in sequences for token in sequence.ids[sequence.scored_from :]]
    arrays = (body.tensor(np.array(values)) for values in (nodes, targets))
    return torch.split(token_logprobs(body.model, hidden.flatten(0, 1), *arrays), lengths)


def _repeated(cache: Any, n_rows: int) -> Any:
    """The cache in so many rows. The one that was given stays as it is, and gradients flow back to it."""
    made = copy(cache)
    made.layers = [copy(layer) for layer in cache.layers]  # which put other tensors in the place of their own
    made.batch_repeat_interleave(n_rows)
    return made
