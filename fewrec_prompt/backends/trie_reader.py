"""The model's side of catalogue search: log-probabilities of a trie node's children, each node computed once.

Keys and values of the prompt and of every computed node are kept. A pass attends to the prompt and to the paths of its
own nodes, so that it costs the same however many nodes came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.head import next_token_logits
from fewrec_prompt.catalogue import Trie
from fewrec_prompt.errors import NumericError


class TrieReader:
    """Answers `catalogue.Expand` for one prompt. `stem` are the prompt's token ids, the trie's root."""

    def __init__(self, body: Body, stem: Sequence[int], trie: Trie) -> None:
        self._body, self._trie, self._stem = body, trie, len(stem)
        self._columns = np.full(len(trie.tokens), -1, dtype=np.int32)  # where a node's keys and values are kept
        self._cache = Cache(layer_class_to_replicate=_Branches)
        with torch.inference_mode():
            self._root = body.hidden(np.array([stem]), cache=self._cache)[0, -1:]

    def __call__(self, nodes: np.ndarray) -> np.ndarray:
        """Log-probabilities (nats) of the nodes' children, those of the first node first.

        The root is asked alone. Raises NumericError if one is not finite.
        """
        counts = self._body.tensor(self._trie.n_children(nodes))
        tokens = self._body.tensor(self._trie.tokens[self._trie.children(nodes)])
        with torch.inference_mode():
            logits = next_token_logits(self._body.model, self._compute(nodes) if nodes[0] else self._root)
            rows = torch.repeat_interleave(torch.arange(len(nodes), device=logits.device), counts)
            logprobs: np.ndarray = (logits[rows, tokens.long()] - logits.logsumexp(-1)[rows]).double().cpu().numpy()
        if not np.isfinite(logprobs).all():
            raise NumericError("the model returned log-probabilities that are not finite; try --precision fp32")
        return logprobs

    def _compute(self, nodes: np.ndarray) -> torch.Tensor:
        """Last hidden states (n_nodes, width) of new nodes, whose keys and values are kept."""
        first = self._cache.layers[0].n
        self._columns[nodes] = np.arange(first, first + len(nodes))
        above, visible = self._visible(nodes)
        shown = np.concatenate([np.arange(self._stem), self._columns[above], self._columns[nodes]])
        for layer in self._cache.layers:
            layer.shown = self._body.tensor(shown)
        return self._body.hidden(
            self._trie.tokens[nodes].astype(np.int64)[None],
            positions=(self._stem - 1 + self._trie.depths[nodes]).astype(np.int64)[None],
            mask=self._mask(visible),
            cache=self._cache,
        )[0]

    def _visible(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nodes above these, and what each of these sees: boolean (n_nodes, n_stem + n_above + n_nodes)."""
        pairs, places, at = [], np.arange(len(nodes)), self._trie.parents[nodes]
        while (inside := at > 0).any():
            places, at = places[inside], at[inside]
            pairs.append((places, at))
            at = self._trie.parents[at]
        seen = [np.concatenate(part) for part in zip(*pairs, strict=True)] or [np.zeros(0, dtype=np.int64)] * 2
        above, column = np.unique(seen[1], return_inverse=True)
        visible = np.concatenate(
            [np.ones((len(nodes), self._stem)), np.zeros((len(nodes), len(above))), np.eye(len(nodes))], axis=1
        ).astype(bool)
        visible[seen[0], self._stem + column] = True
        return above, visible

    def _mask(self, visible: np.ndarray) -> torch.Tensor:
        # Additive, as in engine.py: a boolean mask is silently wrong under eager attention.
        dtype = self._body.model.dtype
        mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=self._body.device)
        return mask.masked_fill_(self._body.tensor(visible), 0.0)[None, None]


class _Branches(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one layer for everything computed so far, (1, n_heads, n, width) with room to grow.

    A pass appends its own and attends to the columns in `shown`. transformers' own layer copies all of them every time.
    """

    _layer_type = None  # transformers registers subclasses by this name, in place of its own
    shown: torch.Tensor
    n = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.n = key_states, value_states, key_states.shape[2]
            return key_states, value_states
        start, self.n = self.n, self.n + key_states.shape[2]
        while self.n > self.keys.shape[2]:
            self.keys, self.values = (torch.cat([kept, torch.empty_like(kept)], 2) for kept in (self.keys, self.values))
        self.keys[:, :, start : self.n], self.values[:, :, start : self.n] = key_states, value_states
        return self.keys.index_select(2, self.shown), self.values.index_select(2, self.shown)

    def get_seq_length(self) -> int:
        return self.n
