"""A small network that guesses the next item of a sequence, and the loop that trains it. Items are numbers from 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fewrec_prompt.seeds import rng_for

N_DIMENSIONS, N_BLOCKS, DROPOUT = 64, 2, 0.2
BATCH, RATE, MAX_EPOCHS, PATIENCE = 64, 2e-3, 40, 4
N_RIVALS = 4000  # items in the softmax of a batch; all of them where the catalogue has no more


class SequenceModel(nn.Module):
    """Causal self-attention over item and place vectors; an item scores by its vector's product with the last state."""

    def __init__(self, n_items: int, length: int) -> None:
        super().__init__()
        self.n_items, self.length = n_items, length
        self.items = nn.Embedding(n_items + 1, N_DIMENSIONS, padding_idx=n_items)
        self.places = nn.Embedding(length, N_DIMENSIONS)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)
        block = nn.TransformerEncoderLayer(
            N_DIMENSIONS, 1, 4 * N_DIMENSIONS, DROPOUT, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(block, N_BLOCKS, nn.LayerNorm(N_DIMENSIONS), enable_nested_tensor=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """States (n, length, dimensions) of sequences (n, length), padded at the end, where nothing looks back from."""
        n = sequences.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        vectors = self.items(sequences) * N_DIMENSIONS**0.5 + self.places(torch.arange(n))
        states: torch.Tensor = self.blocks(self.dropout(vectors), mask=mask, is_causal=True)
        return states

    @torch.no_grad()
    def scores(self, taken: Sequence[int]) -> npt.NDArray[np.float64]:
        """Scores (n_items,) of the next item after these, oldest first."""
        self.eval()
        last = self(torch.tensor([list(taken)[-self.length :]]))[0, -1]
        found: npt.NDArray[np.float64] = (self.items.weight[: self.n_items] @ last).double().numpy()
        return found


def fit(
    learned: Sequence[list[int]], held_out: Sequence[list[int]], n_items: int, length: int, seed: int
) -> SequenceModel:
    """Train on each next item of `learned`; keep what finds the last one of `held_out` best (mean reciprocal rank).

    The same seed gives the same model on the same machine and threads. torch's own generator is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SequenceModel(n_items, length)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
        best, kept, waited = -1.0, deepcopy(model.state_dict()), 0
        for epoch in range(MAX_EPOCHS):
            _epoch(model, optimizer, learned, rng_for(seed, "sasrec", epoch))
            found = _mean_reciprocal_rank(model, held_out) if held_out else float(epoch)
            best, kept, waited = (found, deepcopy(model.state_dict()), 0) if found > best else (best, kept, waited + 1)
            if waited == PATIENCE:
                break
        model.load_state_dict(kept)
    return model.eval()


def _epoch(
    model: SequenceModel, optimizer: torch.optim.Optimizer, learned: Sequence[list[int]], rng: np.random.Generator
) -> None:
    model.train()
    for batch in _batches(learned, model, rng):
        inputs, targets = batch[:, :-1], batch[:, 1:]
        wanted = targets != model.n_items
        if not wanted.any():
            continue
        rivals, answers = _rivals(targets[wanted], model.n_items, rng)
        logits = model(inputs)[wanted] @ model.items(rivals).T
        loss = nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _batches(learned: Sequence[list[int]], model: SequenceModel, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Sequences (n, length + 1) in a random order, padded at the end."""
    order = rng.permutation(len(learned))
    for at in range(0, len(order), BATCH):
        rows = [learned[place] for place in order[at : at + BATCH]]
        longest = max(map(len, rows))
        yield torch.tensor([row + [model.n_items] * (longest - len(row)) for row in rows])


def _rivals(targets: torch.Tensor, n_items: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The items that a batch is told apart among, and the position in them of each target."""
    if n_items <= N_RIVALS:
        return torch.arange(n_items), targets
    drawn = torch.from_numpy(rng.integers(0, n_items, N_RIVALS))
    rivals = torch.unique(torch.cat([targets, drawn]))
    return rivals, torch.searchsorted(rivals, targets)


def _mean_reciprocal_rank(model: SequenceModel, held_out: Sequence[list[int]]) -> float:
    found = []
    for *taken, target in held_out:
        scores = model.scores(taken)
        found.append(1 / (1 + (scores > scores[target]).sum()))
    return float(np.mean(found))
