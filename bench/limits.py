"""The arithmetic limit: the least work for these log-probabilities at the rate of this machine's matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from fewrec_prompt.backends.plan import TokenSequence

SIZES = (512, 1024, 2048, 4096)


def least_flop(model: Any, sequences: Sequence[TokenSequence]) -> float:
    """Floating-point operations nobody can avoid, over all sequences of a run together.

    Unique tokens (a token after the same tokens is one token, whoever asks) through the body; unique scored positions
    through the LM head; every token's attention to itself and what comes before it.
    """
    nodes = unique_tokens(sequences)
    scored = {one.ids[:end] for one in sequences for end in range(one.scored_from, len(one.ids))}
    config = model.config
    seen = sum(len(node) for node in nodes)
    body = 2 * n_body(model) * len(nodes)
    head = 2 * config.hidden_size * config.vocab_size * len(scored)
    return float(body + head + 4 * config.hidden_size * config.num_hidden_layers * seen)


def unique_tokens(sequences: Sequence[TokenSequence]) -> set[tuple[int, ...]]:
    """Every token that predicts one, as itself and all before it. The last token of a sequence predicts nothing."""
    return {one.ids[:end] for one in sequences for end in range(1, len(one.ids))}


def n_body(model: Any) -> int:
    """Parameters but for those of embeddings and LM head."""
    named = model.named_parameters()
    return sum(weights.numel() for name, weights in named if "embed" not in name and "lm_head" not in name)


def gemm_rate(dtype: torch.dtype, device: str = "cpu", sizes: Iterable[int] = SIZES, repeats: int = 5) -> float:
    """Best rate (FLOP/s) of square matrix products, in torch's present number of threads."""
    return max(_rate(size, dtype, device, repeats) for size in sizes)


def _rate(size: int, dtype: torch.dtype, device: str, repeats: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b  # the first product of a size sets up its kernel
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of a call, until the device is done."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device != "cpu":
        torch.cuda.synchronize(device)
