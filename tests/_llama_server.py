"""A real server of another make: llama.cpp (xllamacpp) in a process of its own, over a tiny random model as GGUF."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
from _tiny import model, tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SERVE = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port, settings.model_alias = sys.argv[1], 0, {"tiny"}
settings.n_ctx, settings.n_parallel, settings.warmup, settings.cpuparams.n_threads = 512, 2, False, 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()  # until whoever started this closes it
"""


def tiny_qwen() -> Any:
    """A random model of a family whose weights llama.cpp takes as they are."""
    return model("qwen2", n_words=len(tokenizer()), tie_word_embeddings=False, **WIDE)


def write_gguf(made: Any, path: Path) -> Path:
    """The model and its tokenizer in one file, in fp32."""
    config, words = made.config, tokenizer()
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_words(writer, words)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weights in made.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_words(writer: gguf.GGUFWriter, words: Any) -> None:
    description = json.loads(words.backend_tokenizer.to_str())
    control = {token["id"] for token in description["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in range(len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words.convert_ids_to_tokens(range(len(words))))
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in description["model"]["merges"]])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_add_bos_token(False)


@contextmanager
def serving(file: Path) -> Iterator[str]:
    """The address at which the process answers, until the end of the block."""
    command = [sys.executable, "-c", SERVE, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None, "a pipe was asked for"
        assert process.stdout is not None, "a pipe was asked for"
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.stdin.close()
            process.terminate()
