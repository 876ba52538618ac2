"""What stands before the tokens of a question: keys and values kept from earlier tokens, and learned soft prompts.

Learned vectors take part in a plan as virtual tokens with ids below zero, so that they are shared like any other token
(prompt tuning, Lester et al. 2021, arXiv 2104.08691; P-tuning, Liu et al. 2021, arXiv 2103.10385). Learned keys and
values (prefix tuning, Li & Liang 2021, arXiv 2101.00190) are what a model keeps of tokens, without the tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeAlias

import torch

from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.errors import ModelError


@dataclass(frozen=True, slots=True)
class SoftTokens:
    """Learned vectors (n_tokens, width) in the place of token embeddings, before everything else."""

    vectors: torch.Tensor

    @property
    def n_tokens(self) -> int:
        return len(self.vectors)

    def embed(self, ids: torch.Tensor, embeddings: torch.nn.Module) -> torch.Tensor:
        """Vectors (…, width) of ids, virtual ones among them."""
        real = embeddings(ids.clamp(min=0))
        soft = self.vectors.to(real.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], soft, real)


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of `n_tokens` tokens: per layer two tensors (1, n_heads, n_tokens, head_dim)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def n_tokens(self) -> int:
        return int(self.layers[0][0].shape[-2])

    def cache(self, n_rows: int) -> Any:
        """A transformers cache that begins with them in each row."""
        from transformers import DynamicCache

        return DynamicCache(
            (keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1)) for keys, values in self.layers
        )

    @classmethod
    def of(cls, cache: Any) -> KeyValues:
        """What a transformers cache holds. Raises ModelError where not every layer keeps keys and values."""
        layers: Any = tuple((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)
        if not layers or any(half is None for layer in layers for half in layer):
            raise ModelError(
                "the layers of this model keep no keys and values, so none can be learnt or stand before a text; take "
                "soft-prompt or lora"
            )
        return cls(layers)


Soft: TypeAlias = SoftTokens | KeyValues | None
"""What is learned and stands before every prompt."""


def virtual_ids(soft: Soft) -> tuple[int, ...]:
    """Ids of the learned vectors: −1, −2, …; learned keys and values have none."""
    return tuple(range(-1, -soft.n_tokens - 1, -1)) if isinstance(soft, SoftTokens) else ()


def n_kept(soft: Soft) -> int:
    """Places that learned keys and values take before every text; no id stands for them."""
    return soft.n_tokens if isinstance(soft, KeyValues) else 0


def prefixed(soft: Soft, sequences: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
    """The sequences behind the virtual tokens of the learned prefix, if it has any."""
    if not (virtual := virtual_ids(soft)):
        return sequences
    n = len(virtual)
    return [
        replace(one, ids=virtual + one.ids, scored_from=n + one.scored_from, n_shared=n + one.n_shared)
        for one in sequences
    ]


def inputs(soft: Soft, ids: torch.Tensor, embeddings: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a transformers model is given for these ids (n_rows, n_columns), virtual ones among them."""
    if isinstance(soft, SoftTokens):
        return {"inputs_embeds": soft.embed(ids, embeddings)}
    return {"input_ids": ids}


def seeing_kept(soft: Soft, mask: torch.Tensor) -> torch.Tensor:
    """A mask (n_rows, n_columns) with what is learned before it, which every column sees."""
    return torch.cat([mask.new_ones(len(mask), n_kept(soft)), mask], dim=1)


def digest(soft: Soft) -> str | None:
    """sha256 of a learned prefix as it is now: kind, shapes, types and every number."""
    if soft is None:
        return None
    tensors = [soft.vectors] if isinstance(soft, SoftTokens) else [half for layer in soft.layers for half in layer]
    whole = sha256(type(soft).__name__.encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        whole.update(plain.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


class Kept:
    """Keys and values of beginnings that many questions share; the latest few of them."""

    def __init__(self, make: Callable[[tuple[int, ...]], KeyValues], most: int = 4) -> None:
        self._make, self._most = make, most
        self._known: OrderedDict[tuple[int, ...], KeyValues] = OrderedDict()

    def __call__(self, ids: tuple[int, ...]) -> KeyValues:
        if ids not in self._known:
            self._known[ids] = self._make(ids)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        self._known.move_to_end(ids)
        return self._known[ids]

    def forget(self) -> None:
        """Drop them all: after a change of weights, or to make room."""
        self._known.clear()
