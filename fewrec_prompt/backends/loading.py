"""Load the weights and the tokenizer that models.py found, whatever kind of model they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fewrec_prompt.backends.models import ModelFiles
from fewrec_prompt.backends.precision import NumericMode, loading_options
from fewrec_prompt.errors import ModelError

UNBOUNDED = 8192  # tokens of context for a model that names no limit, so that a pass has one


def load_weights(auto: Any, files: ModelFiles, mode: NumericMode) -> Any:
    """The model by a class of transformers that knows its kind (`AutoModelForCausalLM`, …).

    Raises ModelError if it cannot be loaded, or if weights are missing.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with _loading(files.name, files.folder):
        model, found = auto.from_pretrained(
            files.folder, use_safetensors=True, output_loading_info=True, **loading_options(mode)
        )
    # transformers fills what a checkpoint lacks with random numbers and goes on.
    if lacking := sorted(found["missing_keys"]):
        raise ModelError(f"{files.name}: {len(lacking)} weights are missing in {files.folder}, such as {lacking[0]!r}")
    if mode.precision == "int4" and mode.device == "cpu":
        _keep_four_bits_as_they_are(model)
    return model


def _keep_four_bits_as_they_are(model: Any) -> None:
    """Forbid bitsandbytes to lay out 4-bit weights anew at the first question, as it does where a CPU has bf16.

    No gradient flows through that layout, and nothing but a warning says so. For a pack of questions it is no faster.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer in the folder of a model called `name`. Raises ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _loading(name, folder):
        return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _loading(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{name}: cannot be loaded from {folder}: {error}") from error


def context_window(config: Any, tokenizer: Any) -> int:
    """Positions the model was made for; where it counts none (ALiBi, recurrence), what its tokenizer allows."""
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions or min(tokenizer.model_max_length, UNBOUNDED))
