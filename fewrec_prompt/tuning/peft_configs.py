"""What PEFT is told of an adapter that begins: configurations by method and settings."""

from __future__ import annotations

from typing import Any

import torch

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.prefix import KeyValues
from fewrec_prompt.backends.switching import in_peft
from fewrec_prompt.errors import ModelError
from fewrec_prompt.tuning.settings import Settings

OF_DECODER = "SEQ_2_SEQ_LM"  # task type of models whose prefix stands in a decoder
LORA_ALPHA = 2  # times the rank
QUERIES_AND_VALUES = (
    ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("q", "v"),
    ("qkv_proj",), ("query_key_value",), ("c_attn",), ("Wqkv",),
)  # fmt: skip
"""What families call the projections of queries and values, together or each."""


def virtual_config(backend: LocalBackend, settings: Settings, start: KeyValues | None = None) -> dict[str, Any]:
    """What PEFT wants to know of virtual tokens, or of the keys and values that they begin as."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    kinds = {"soft-prompt": PromptTuningConfig, "p-tuning": PromptEncoderConfig, "prefix": PrefixTuningConfig}
    shared = {"task_type": backend.task_type, "num_virtual_tokens": settings.tokens}
    if start is None:
        shared["num_transformer_submodules"] = 1  # PEFT would put others before the decoder's text, too
        of = backend.model.config.get_text_config()
        n_heads = getattr(of, "num_attention_heads", 1)  # recurrent layers have none
        shared |= {"num_layers": of.num_hidden_layers, "num_attention_heads": n_heads}
        shared["token_dim"] = backend.vector_width
    else:
        _, n_heads, _, head_dim = start.layers[0][0].shape
        shared |= {"num_attention_heads": n_heads, "token_dim": n_heads * head_dim}
        n_parts = 2 if backend.task_type == OF_DECODER else 1
        shared |= {"num_layers": n_parts * len(start.layers), "num_transformer_submodules": n_parts}
    config = kinds[settings.method](**shared)
    with torch.random.fork_rng():
        made = in_peft(backend.model, config)  # leaves the model as it is
    return json_ready(made.peft_config["default"])


def prefix_as_saved(values: torch.Tensor, n_layers: int, task_type: str) -> torch.Tensor:
    """Keys and values (n_tokens, n_layers · width) in the places where PEFT's forward looks for them.

    In an encoder-decoder, PEFT (0.21) cuts what it was given, and what it was given once more, into as many parts as it
    believes there are layers, and lets a layer have the first half of its part. So there each layer's stand before as
    many zeros, and the configuration says twice as many layers: (n_tokens, 2 · n_layers · width).
    """
    if task_type != OF_DECODER:
        return values
    layers = values.reshape(len(values), n_layers, -1)
    return torch.cat([layers, torch.zeros_like(layers)], dim=-1).flatten(1)


def prefix_as_used(saved: torch.Tensor, n_layers: int, task_type: str) -> torch.Tensor:
    """What `prefix_as_saved` was made of; anything else as it is, for who checks its shape."""
    if task_type != OF_DECODER or saved.ndim != 2 or saved.shape[1] % (2 * n_layers):
        return saved
    return saved.reshape(len(saved), n_layers, 2, -1)[:, :, 0].flatten(1)


def low_rank_config(backend: LocalBackend, settings: Settings, n_steps: int) -> Any:
    """What PEFT wants to know of LoRA or AdaLoRA, which plans its ranks by the steps.

    Raises ModelError for a model whose attention has names of its own.
    """
    from peft import AdaLoraConfig, LoraConfig
    from transformers.pytorch_utils import Conv1D

    model = backend.model
    shared = {
        "task_type": backend.task_type,
        "lora_alpha": LORA_ALPHA * settings.rank,
        "lora_dropout": settings.dropout,
        "target_modules": "all-linear" if settings.targets == "all" else _attention(model),
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
    }
    if settings.method == "lora":
        return LoraConfig(r=settings.rank, **shared)
    rest = {"tinit": n_steps // 6, "tfinal": n_steps // 3, "total_step": n_steps}
    return AdaLoraConfig(target_r=settings.rank, init_r=round(1.5 * settings.rank), **rest, **shared)


def _attention(model: Any) -> list[str]:
    """The projections that LoRA changes where nothing else is said: queries and values, as PEFT knows the family, else
    by the names that most families give them."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    family = model.config.model_type
    if family in KNOWN:
        return list(KNOWN[family])
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for own in QUERIES_AND_VALUES:
        if names.issuperset(own):
            return list(own)
    raise ModelError(f"nothing is known of the attention of {family!r} models; ask for --targets all")


def json_ready(config: Any) -> dict[str, Any]:
    """A PEFT configuration as it would be saved."""
    values = config.to_dict() | {
        "inference_mode": True,
        "base_model_name_or_path": None,
        "peft_type": config.peft_type.value,
    }
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
