"""The model's side of catalogue search: log-probabilities of a trie node's children, each node computed once.

The prompt and every computed node stay in the key-value cache; a node sees the prompt and its own path, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fewrec_prompt.backends.head import next_token_logits
from fewrec_prompt.catalogue import Trie


class TrieReader:
    """Answers `catalogue.Expand` for one prompt. `stem` are the prompt's token ids, the trie's root."""

    def __init__(self, model: Any, stem: Sequence[int], trie: Trie) -> None:
        from transformers import DynamicCache

        self._model = model
        self._trie = trie
        self._n_stem = len(stem)
        self._cache = DynamicCache(config=model.config)
        self._slots: dict[int, list[int]] = {0: []}  # columns of the cache that hold a node's path
        self._n_nodes = 0
        ids = torch.tensor([list(stem)], device=model.device)
        with torch.inference_mode():
            hidden = model.base_model(input_ids=ids, past_key_values=self._cache, use_cache=True).last_hidden_state
        self._root = hidden[0, -1:]

    def __call__(self, nodes: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities (nats) of each node's children, in the trie's order."""
        with torch.inference_mode():
            hidden = self._root if list(nodes) == [0] else self._compute(nodes)
            logits = next_token_logits(self._model, hidden)
            norms = logits.logsumexp(-1)
            rows = [self._children(node, logits[place], norms[place]) for place, node in enumerate(nodes)]
        return [row.double().cpu().numpy() for row in rows]

    def _children(self, node: int, logits: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        tokens = [self._trie.tokens[child] for child in self._trie.children[node]]
        return logits[torch.tensor(tokens, device=logits.device)] - norm

    def _compute(self, nodes: Sequence[int]) -> torch.Tensor:
        """Last hidden states (n_nodes, width) of new nodes, which join the cache."""
        device = self._model.device
        output = self._model.base_model(
            input_ids=torch.tensor([[self._trie.tokens[node] for node in nodes]], device=device),
            position_ids=torch.tensor([[self._n_stem - 1 + self._trie.depths[node] for node in nodes]], device=device),
            attention_mask=self._mask(nodes),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._n_nodes += len(nodes)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _mask(self, nodes: Sequence[int]) -> torch.Tensor:
        first = self._n_stem + self._n_nodes
        visible = np.zeros((len(nodes), first + len(nodes)), dtype=bool)
        visible[:, : self._n_stem] = True
        for place, node in enumerate(nodes):
            self._slots[node] = [*self._slots[self._trie.parents[node]], first + place]
            visible[place, self._slots[node]] = True
        mask = torch.full(visible.shape, torch.finfo(self._model.dtype).min, dtype=self._model.dtype)
        return mask.masked_fill_(torch.from_numpy(visible), 0.0).to(self._model.device)[None, None]
