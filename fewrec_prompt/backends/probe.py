"""Which layout may an architecture take? Asked of its configuration, then of a small copy of it with random weights.

A tree of sequences in one pass is right only where attention takes any mask and positions are given from outside, a
repeated cache only where every layer keeps one. What is compared here is in engine.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fewrec_prompt.backends import attention
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence

TOLERANCE = 1e-4  # nats, in fp32
WINDOW, POSITIONS, WORDS, WIDTH = 8, 32, 64, 64  # of the small copy; the probe is longer than its window
WIDE = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")


def choose_layout(model: Any) -> tuple[str, str | None]:
    """The best layout this model takes, and why it is not the packed one.

    Where the model runs torch's fused attention and answers the same with attention that knows trees, it gets that.
    """
    if model.config._attn_implementation == "sdpa" and why_not_packed(model, attention.NAME) is None:
        model.set_attn_implementation(attention.NAME)
        return "packed", None
    if (reason := why_not_packed(model)) is None:
        return "packed", None
    return ("expanded" if why_not_expanded(model) is None else "plain"), reason


def why_not_packed(model: Any, implementation: str | None = None) -> str | None:
    """None if this model's questions can share one pass (under its own or the named attention), else the reason.

    Sliding windows and recurrent layers take no tree mask, lengths that change positions no tree. For the rest, a
    two-layer copy with random weights in fp32 has to give the same answers as its plain path, to 1e-4.
    """
    return _masked(model.config) or _stretched(model.config) or _differs(model, "packed", implementation)


def why_not_expanded(model: Any) -> str | None:
    """None if a beginning's cache can be repeated for several continuations, else the reason."""
    return _stretched(model.config) or _differs(model, "expanded")


def rounding(model: Any, layout: str) -> float:
    """How far (nats) this layout is from plain on a small copy in the model's own 16 bits: to be told, not to judge by.

    Every layout rounds in another order; the fp32 check has shown that nothing else differs.
    """
    return _distance(small_copy(model).to(model.dtype), layout)


def _masked(config: Any) -> str | None:
    text = config.get_text_config()
    if text is not config:
        return "it reads more than text"
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    # With layer types given, a window that no layer uses may still be written in the configuration (Qwen2).
    if not kinds and getattr(text, "sliding_window", None):
        return "its attention slides over a window"
    return None


def _stretched(config: Any) -> str | None:
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its positions depend on the length of the text ({rope['rope_type']})"
    return None


def _differs(model: Any, layout: str, implementation: str | None = None) -> str | None:
    try:
        distance = _distance(small_copy(model, implementation), layout)
    except Exception as error:  # an architecture this module has never met may fail in any way
        return f"the check of the {layout} pass failed ({type(error).__name__}: {error})"
    return None if distance <= TOLERANCE else f"{layout} and plain scores of a small copy differ by {distance:.2g} nats"


def _distance(small: Any, layout: str) -> float:
    """Largest difference, in nats, from the plain path, tree by tree and with trees side by side.

    Infinite if one is not a number.
    """
    with torch.inference_mode():
        plain = torch.cat(Engine(small, "plain").logprobs(PROBE))
        units = [Engine(small, layout, unit=unit).logprobs(PROBE) for unit in ("canonical", "throughput")]
        gaps = torch.stack([(torch.cat(rows) - plain).abs() for rows in units])
    return float(gaps.nan_to_num(nan=torch.inf).max())


def small_copy(model: Any, implementation: str | None = None) -> Any:
    """The same architecture with two layers, few words, narrow inner layers and short windows; random weights, fp32.

    Its attention is the model's own unless another implementation is named.
    Made on the model's own device. What a mask can get wrong does not depend on widths, but a copy as wide as the
    model would take longer than loading it.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    _shrink(config)
    with _own_chance(model.device), torch.device(model.device):
        chosen = implementation or model.config._attn_implementation
        small = type(model)._from_config(config, dtype=torch.float32, attn_implementation=chosen)
        for weights in small.parameters():
            if weights.ndim > 1:  # as usual, weights are so small that any mask would give much the same answers
                torch.nn.init.normal_(weights, std=weights.shape[-1] ** -0.5)
    return small.eval()


def _shrink(config: Any) -> None:
    config.num_hidden_layers, config.vocab_size = 2, WORDS
    config.max_position_embeddings = POSITIONS
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    for name in WIDE:
        if getattr(config, name, None):
            setattr(config, name, WIDTH)
    for name, value in vars(config).items():
        if name.endswith(("window", "window_size", "chunk_size")) and isinstance(value, int) and value > WINDOW:
            setattr(config, name, WINDOW)  # GPT-Neo's local layers: right up to 256 tokens, wrong after


@contextmanager
def _own_chance(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _probe(stem: Sequence[int], tails: Sequence[Sequence[int]]) -> list[TokenSequence]:
    return [TokenSequence((*stem, *tail), len(stem)) for tail in tails]


TAILS = ((30, 31, 32), (30, 33), (34,), (35, 31, 36, 37), (38, 39, 40, 41, 42), (43, 44, 45, 46), (47, 48, 49, 50))
PROBE = [
    *_probe(range(5, 25), TAILS),
    *_probe((*range(30, 10, -1), 4, 3), TAILS[:3]),  # another length beside it
    *(replace(one, n_shared=18) for one in _probe((*range(40, 20, -1), 9), TAILS[2:5])),  # a beginning that is kept
]
