"""A transformers model without its head: token ids, virtual ones too, to hidden states.

Knows how to call a model with positions, a mask and a cache; what they should be is decided in engine.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fewrec_prompt.backends.prefix import KeyValues, Soft, inputs


class Body:
    """One model and the learned prefix, if any, that stands before every sequence."""

    def __init__(self, model: Any, soft: Soft = None) -> None:
        self.model, self.soft = model, soft
        self.device = model.device

    @property
    def learned(self) -> KeyValues | None:
        """The learned prefix if it is one of keys and values."""
        return self.soft if isinstance(self.soft, KeyValues) else None

    def new_cache(self) -> Any:
        """A cache for one row, with the learned keys and values in it."""
        from transformers import DynamicCache

        return self.learned.cache(1) if self.learned else DynamicCache(config=self.model.config)

    def hidden(
        self,
        ids: np.ndarray,
        *,
        positions: np.ndarray | None = None,
        mask: torch.Tensor | None = None,
        cache: Any = None,
    ) -> torch.Tensor:
        """Last hidden states (n_rows, n_columns, width). Without positions and mask, rows go on from the cache."""
        more = {} if positions is None else {"position_ids": self.tensor(positions)}
        output = self.model.base_model(
            **self._inputs(ids), **more, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        )
        states: torch.Tensor = output.last_hidden_state
        return states

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """Logits (n_rows, n_columns, n_words) in fp32, as transformers computes them."""
        cache = self.learned.cache(len(ids)) if self.learned else None
        output = self.model(**self._inputs(ids), past_key_values=cache, use_cache=cache is not None)
        logits: torch.Tensor = output.logits.float()
        return logits

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """On the model's device."""
        return torch.from_numpy(array).to(self.device)

    def _inputs(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        return inputs(self.soft, self.tensor(ids), self.model.get_input_embeddings())
