"""Turn a GGUF file into a folder that any Hugging Face loader reads: safetensors (bf16), tokenizer, chat template.

Done once, when a model is fetched. Reading GGUF takes half a minute, what is written here loads in a second.
It leaves fetching, checking and putting the folder in its place to assets.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fewrec_prompt.errors import AssetError, did_you_mean

# How text is cut before byte-pair merging, by the name in the GGUF file. transformers reads that name only for a few
# models and cuts all others as GPT-2 does: "\n\n1." then becomes other tokens than the model was trained on.
PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
}
NOT_OURS = ("quantization_config", "_name_or_path", "_model_name_or_path")  # of the GGUF file, not of what is saved


def convert(source: Path, target: Path) -> None:
    """Write the one GGUF file in `source` to `target` as a bf16 checkpoint with its tokenizer.

    bf16 holds what 4- and 8-bit weights say to three digits, at half the size of fp32. Raises AssetError if `source`
    has no or several GGUF files, or one whose tokenizer is not known to come out right.
    """
    file = _only_gguf(source)
    with _quiet():
        facts = _facts(file)
        tokenizer = _tokenizer(file, facts)
        _model(file).save_pretrained(target)
        tokenizer.save_pretrained(target)


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise AssetError(f"{folder}: one .gguf file is needed, found: {found}")
    return files[0]


def _facts(file: Path) -> dict[str, Any]:
    """What the file says about its tokenizer and context window; None where it is silent."""
    fields = GGUFReader(file).fields
    architecture = fields["general.architecture"].contents()
    keys = {
        "pre_tokenizer": "tokenizer.ggml.pre",
        "add_bos": "tokenizer.ggml.add_bos_token",
        "chat_template": "tokenizer.chat_template",
        "context": f"{architecture}.context_length",
    }
    return {name: fields[key].contents() if key in fields else None for name, key in keys.items()}


def _tokenizer(file: Path, facts: dict[str, Any]) -> Any:
    if facts["pre_tokenizer"] not in PRE_TOKENIZERS:
        raise AssetError(
            f"{file.name}: its pre-tokenizer {facts['pre_tokenizer']!r} is not supported; "
            + did_you_mean(str(facts["pre_tokenizer"]), PRE_TOKENIZERS)
        )
    if facts["add_bos"]:
        raise AssetError(f"{file.name}: its tokenizer adds a BOS token, which is not supported for GGUF files")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[facts["pre_tokenizer"]]()
    tokenizer.chat_template = facts["chat_template"]
    tokenizer.model_max_length = facts["context"]
    return tokenizer


def _model(file: Path) -> Any:
    """The model in bf16, free of the GGUF quantizer that would refuse to save it."""
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in NOT_OURS}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model.to(torch.bfloat16)


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow progress bars and notes of the libraries; their exceptions pass."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        # redirected, because the bar of the GGUF reader answers to no setting
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
