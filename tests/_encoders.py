"""Small random masked models and encoder-decoders, with tokenizers that end a text, mask and pad as theirs do."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from _tiny import KINDS
from tokenizers import processors
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from fewrec_prompt.backends.masked import PLL, MaskedBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.seq2seq import Seq2SeqBackend

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FACTORS = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
MASKED: dict[str, dict[str, object]] = {
    "bert": SMALL | {"max_position_embeddings": 256},
    "roberta": SMALL | {"max_position_embeddings": 256},
    "modernbert": SMALL | {"max_position_embeddings": 256, "local_attention": 8, "global_attn_every_n_layers": 2},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256},
    "electra": SMALL | {"embedding_size": 16, "max_position_embeddings": 256},
    "albert": SMALL | {"embedding_size": 16, "max_position_embeddings": 256},
}
SEQ2SEQ: dict[str, dict[str, object]] = {
    "t5": FACTORS,
    "mt5": FACTORS | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "switch_transformers": FACTORS | {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "bart": {
        **{f"{part}_{what}": value for part in ("encoder", "decoder")
           for what, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()},
        "d_model": 32, "max_position_embeddings": 256, "forced_eos_token_id": None,
    },
}  # fmt: skip
MODE = NumericMode("fp32", "a test", "cpu", layout=PLL)


@cache
def ending_tokenizer(kind: str, before: bool) -> PreTrainedTokenizerFast:
    """One that puts </s> behind every text and, with `before`, <s> before it."""
    made = KINDS[kind]()
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    pattern = "<s> $A </s>" if before else "$A </s>"
    made.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def random_model(auto: Any, family: str, tokenizer: Any, **changes: object) -> torch.nn.Module:
    """In fp32, with weights large enough for a wrong mask to show; the same for the same request."""
    torch.set_num_threads(1)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    if auto is AutoModelForSeq2SeqLM:
        ids |= {"decoder_start_token_id": tokenizer.pad_token_id}
    known = (MASKED | SEQ2SEQ).get(family, {}) | {"vocab_size": len(tokenizer)} | ids
    config = AutoConfig.for_model(family, **known | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = auto.from_config(config, attn_implementation="sdpa" if family in MASKED else "eager").eval()
        for weights in made.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=weights.shape[-1] ** -0.5)
    return made


def masked(
    family: str = "bert", kind: str = "word_piece", mode: NumericMode = MODE, **changes: object
) -> MaskedBackend:
    """A random masked model that answers questions."""
    words = ending_tokenizer(kind, before=True)
    return MaskedBackend(random_model(AutoModelForMaskedLM, family, words, **changes), words, mode)


def seq2seq(family: str = "t5", kind: str = "unigram", mode: NumericMode = MODE, **changes: object) -> Seq2SeqBackend:
    """A random encoder-decoder that answers questions."""
    words = ending_tokenizer(kind, before=family == "bart")
    return Seq2SeqBackend(random_model(AutoModelForSeq2SeqLM, family, words, **changes), words, mode)


def save(backend: MaskedBackend | Seq2SeqBackend, folder: Path) -> Path:
    """A model folder as from_pretrained likes it: config, safetensors, tokenizer."""
    backend.model.save_pretrained(folder)
    backend.tokens._tokenizer.save_pretrained(folder)
    return folder
