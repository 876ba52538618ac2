"""Attention for trees of tokens: a stem that needs no mask, then branches with a mask of their own.

Registered with transformers under NAME. What a pass is, is told by its mask alone: a mask with fewer rows than there
are queries belongs to the last queries, the branches; those before them are the stem, each seeing all that is before
it. Any other call is passed on to transformers' own `sdpa`. So nothing has to be handed down through a model's layers,
and a layer that is computed again in a backward pass sees the same tree.

Against one square mask this leaves out half of the stem's scores and makes no mask of its square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "fewrec_tree"
BLOCK = 128  # queries of a stem that are scored at a time


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (n_rows, n_heads, n_tokens, head_dim) in, tokens before heads out.

    `attention_mask` (n_rows or 1, 1, n_branches, n_keys) is additive. `dropout` is the share of
    attention's weights that a model which learns leaves out.
    """
    n_queries = query.shape[-2]
    if attention_mask is None or attention_mask.shape[-2] >= n_queries:
        done: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return done
    n_stem = n_queries - attention_mask.shape[-2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _attend_in_blocks if _blocks_pay(query) else _attend
    n_branches = n_queries - n_stem
    stem = attend(query[:, :, :n_stem], key[:, :, :-n_branches], value[:, :, :-n_branches], None, scale, dropout)
    branches = attend(query[:, :, n_stem:], key, value, attention_mask, scale, dropout)
    return torch.cat([stem, branches], dim=2).transpose(1, 2).contiguous(), None


def _blocks_pay(query: Tensor) -> bool:
    """On a CPU torch's fused kernel is no faster in bf16 than in fp32; matrix products are."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """By torch's fused kernel; without a mask each query sees the keys up to its own, the last of them."""
    causal = mask is None and query.shape[-2] == key.shape[-2]
    if mask is None and not causal:
        mask = _lower_right(query, key)
    grouped = key.shape[1] != query.shape[1]
    if grouped and (mask is not None or not _heads_can_share(query)):
        key, value = (_repeated(states, query.shape[1]) for states in (key, value))
        grouped = False
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _heads_can_share(query: Tensor) -> bool:
    """Whether a fused kernel takes fewer heads of keys than of queries, without a mask: on a GPU in 16 bits alone."""
    return query.device.type == "cpu" or query.dtype != torch.float32


def _lower_right(query: Tensor, key: Tensor) -> Tensor:
    shape, lowest = (query.shape[-2], key.shape[-2]), torch.finfo(query.dtype).min
    later = torch.full(shape, lowest, dtype=query.dtype, device=query.device)
    return later.triu(1 + key.shape[-2] - query.shape[-2])


def _repeated(states: Tensor, n_heads: int) -> Tensor:
    return states.repeat_interleave(n_heads // states.shape[1], dim=1)


def _attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """By matrix products over the heads that share keys. Without a mask, a block of queries sees no later keys."""
    query = query * scale
    if mask is not None:
        if len(mask) == 1:  # a tree by itself: its branches see all of its stem
            mask = mask[..., -query.shape[-2] :]
        return _block(query, key, value, mask, dropout)
    n_before = key.shape[-2] - query.shape[-2]
    done = []
    for begin in range(0, query.shape[-2], BLOCK):
        rows = query[:, :, begin : begin + BLOCK]
        end = n_before + begin + rows.shape[-2]
        done.append(_block(rows, key[:, :, :end], value[:, :, :end], _lower_right(rows, rows)[None, None], dropout))
    return torch.cat(done, dim=2)


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """The mask is that of the last keys; all see the keys before them."""
    n_rows, n_heads, n_queries, width = query.shape
    shape = (n_rows, key.shape[1], n_heads // key.shape[1] * n_queries)
    scores = query.reshape(*shape, width) @ key.transpose(-1, -2)
    by_head = scores.view(n_rows, n_heads, n_queries, -1)
    by_head[..., -mask.shape[-1] :] += mask
    weights = torch.dropout(by_head.softmax(-1), dropout, train=dropout > 0).view(scores.shape)
    return (weights @ value).view(query.shape[:-1] + value.shape[-1:])


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
