"""A vector for each text: by a sentence encoder whose weights are at hand, else by the embedded language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fewrec_prompt.backends.models import locate

ENCODER, FALLBACK = "sentence-transformers/all-MiniLM-L6-v2", "smollm2-135m"
BATCH, MAX_TOKENS = 64, 128


def embed(texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], str]:
    """Vectors (n_texts, n_dimensions) of length 1, and what made them.

    Means of the last hidden states over a text's tokens, less the mean over all texts, which they share and which says
    nothing. Nothing is asked of a hub: the encoder is used if its cache has it. Raises AssetError, ModelError.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    name = ENCODER if _is_cached(ENCODER) else FALLBACK
    folder = locate(name).folder
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    vectors = np.concatenate([_pooled(model, tokenizer, texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])
    vectors -= vectors.mean(axis=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32), f"mean-pooled states of {name}"


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def _pooled(model: torch.nn.Module, tokenizer: object, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean of the hidden states of each text's tokens; padded at the right, where no causal model looks."""
    batch = tokenizer(  # type: ignore[operator]  # transformers' tokenizers are callable
        list(texts), return_tensors="pt", padding=True, padding_side="right", truncation=True, max_length=MAX_TOKENS
    )
    with torch.inference_mode():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states.dtype)
    pooled: npt.NDArray[np.float32] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return pooled
