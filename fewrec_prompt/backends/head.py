"""From hidden states to log-probabilities, without a table of all words for all tokens.

The LM head is applied to a slice of the vocabulary at a time; of each slice only its normalizer and the words asked for
are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

ROWS = 1024  # hidden states that go through the head at a time
WORDS = 4096  # words of a slice: 16 MB of fp32 logits with ROWS, less than a table of all words by far
WORDS_GPU = 32768  # 128 MB: every slice costs a GPU a dozen kernels, whatever its size

Apply = Callable[[torch.Tensor], torch.Tensor]


def token_logprobs(model: Any, hidden: torch.Tensor, nodes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability (n,), fp32 nats, of each target after its node; `hidden` is (n_nodes, width).

    A node goes through the head once, however many targets are asked after it.
    """
    unique, place = torch.unique(nodes, return_inverse=True)
    done = torch.zeros(len(targets), device=hidden.device)
    for begin in range(0, len(unique), ROWS):
        rows = ((place >= begin) & (place < begin + ROWS)).nonzero()[:, 0]
        states = hidden[unique[begin : begin + ROWS]]
        done = done.index_put((rows,), _logprobs(model, states, place[rows] - begin, targets[rows]))
    return done


def next_token_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of all words: LM head in the model's precision, then fp32, scaled and capped as the family does."""
    return _adjusted(model, model.get_output_embeddings()(hidden).float())


def _logprobs(model: Any, states: torch.Tensor, place: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Targets after states[place], all slices of the vocabulary put together."""
    wanted = torch.zeros(len(targets), device=states.device)
    norms = []
    for first, end, apply in _slices(model.get_output_embeddings()):
        asked = ((targets >= first) & (targets < end)).nonzero()[:, 0]
        arguments = (model, apply, states, place[asked], targets[asked] - first)
        # With gradients the logits of a slice are made again in the backward pass instead of kept.
        found, norm = (
            checkpoint(_read, *arguments, use_reentrant=False) if torch.is_grad_enabled() else _read(*arguments)
        )
        wanted = wanted.index_put((asked,), found)
        norms.append(norm)
    return wanted - torch.stack(norms).logsumexp(0)[place]


def _read(
    model: Any, apply: Apply, states: torch.Tensor, place: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the words of this slice that are asked for, and the slice's normalizer for every state."""
    logits = _adjusted(model, apply(states).float())
    return logits[place, words], logits.logsumexp(-1)


def _slices(head: torch.nn.Module) -> Iterator[tuple[int, int, Apply]]:
    """First word, end and logits of each slice. A head that is more than one matrix (8-bit, LoRA) is one slice."""
    if type(head) is not torch.nn.Linear:
        yield 0, sys.maxsize, head
        return
    n_words = WORDS if head.weight.device.type == "cpu" else WORDS_GPU
    for first in range(0, len(head.weight), n_words):
        words = slice(first, first + n_words)
        bias = None if head.bias is None else head.bias[words]
        yield first, first + n_words, _Slice(head.weight[words], bias)


class _Slice:
    """Some rows of an LM head."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, self._weight, self._bias)


def _adjusted(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """With the scaling and soft cap that some families put after the head."""
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits
