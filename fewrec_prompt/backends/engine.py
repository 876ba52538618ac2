"""Score token sequences with a causal language model: a tree per forward pass, or one sequence at a time.

The plain path is the reference that the packed one is tested against, and what runs where probe.py does not find the
packed one right. Token ids in, log-probabilities out; no text here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fewrec_prompt.backends.plan import TokenSequence, Tree, plan

HEAD_ROWS = 512  # positions that go through the LM head at a time: 100 MB of fp32 logits at 49,152 words


def packed_logprobs(model: Any, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """Log-probability (fp32, nats) of each scored token of each sequence; shared beginnings are computed once."""
    rows: dict[int, torch.Tensor] = {}
    for tree in plan(sequences).trees:
        rows |= _tree_logprobs(model, tree)
    return [rows[index] for index in range(len(sequences))]


def plain_logprobs(model: Any, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """The same, one sequence a forward pass through the model as transformers runs it."""
    return [_sequence_logprobs(model, sequence) for sequence in sequences]


def _tree_logprobs(model: Any, tree: Tree) -> dict[int, torch.Tensor]:
    hidden = model.base_model(
        input_ids=torch.tensor([tree.tokens], device=model.device),
        position_ids=torch.tensor([tree.depths], device=model.device),
        attention_mask=None if tree.is_chain else _float_mask(tree, model),
        use_cache=False,
    ).last_hidden_state[0]
    pairs = [pair for reads in tree.reads.values() for pair in reads]
    scored = torch.cat([_read(model, hidden, pairs[at : at + HEAD_ROWS]) for at in range(0, len(pairs), HEAD_ROWS)])
    rows = torch.split(scored, [len(reads) for reads in tree.reads.values()])
    return dict(zip(tree.reads, rows, strict=True))


def _float_mask(tree: Tree, model: Any) -> torch.Tensor:
    # A boolean mask of this shape is silently wrong under eager attention; an additive one is right everywhere.
    visible = torch.from_numpy(tree.visible()).to(model.device)
    mask = torch.full(visible.shape, torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
    return mask.masked_fill_(visible, 0.0)[None, None]


def _read(model: Any, hidden: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Log-probabilities (n_pairs,) of the targets after the nodes; each node goes through the head once."""
    nodes, targets = zip(*pairs, strict=True)
    unique, place = torch.unique(torch.tensor(nodes, device=hidden.device), return_inverse=True)
    logits = next_token_logits(model, hidden[unique])
    wanted = logits[place, torch.tensor(targets, device=hidden.device)]
    scored: torch.Tensor = wanted - logits.logsumexp(-1)[place]
    return scored


def next_token_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """LM head in the model's precision, then fp32, with the scaling and soft cap that some families put after it."""
    head = model.get_output_embeddings()
    logits: torch.Tensor = head(hidden).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def _sequence_logprobs(model: Any, sequence: TokenSequence) -> torch.Tensor:
    ids = torch.tensor([sequence.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    predicted: torch.Tensor = logits[sequence.scored_from - 1 : -1].log_softmax(-1)
    return predicted.gather(-1, ids[0, sequence.scored_from :, None])[:, 0]
