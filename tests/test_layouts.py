"""A model that takes no tree mask gets the next best layout, with a reason; the probe that finds it out is small."""

import re

import pytest
import torch
from _tiny import GROUPED, model
from _trees import EVERY_FAMILY, crowd, distance

from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.probe import PROBE, choose_layout, small_copy, why_not_packed

LLAMA_STRETCHED = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
OTHERS = {
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "hidden_size": 32},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32},
    "bloom": {"hidden_size": 32},
}


@pytest.mark.parametrize(
    ("family", "changes", "reason", "layout"),
    [
        ("mistral", {"sliding_window": 16}, "its attention slides over a window", "expanded"),
        ("gemma3_text", {"sliding_window": 16, "head_dim": 8}, "its layers are .*sliding_attention", "expanded"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
            "its layers are sliding",
            "expanded",
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 1]], "window_size": 200},
            "the packed pass failed",
            "expanded",
        ),
        ("mamba", {"state_size": 4}, "its layers are linear_attention", "plain"),
        ("llama", LLAMA_STRETCHED, "length of the text", "plain"),
        ("bloom", {}, "the packed pass failed", "expanded"),
    ],
)
def test_an_architecture_that_takes_no_tree_mask_gets_the_next_best_layout_with_a_reason(
    family, changes, reason, layout
):
    """And its answers are those of the plain path, behind prompts longer than its window."""
    made = model(family, "eager", **(OTHERS.get(family, GROUPED) | changes))

    chosen, why = choose_layout(made)

    assert chosen == layout
    assert re.search(reason, why)
    with torch.inference_mode():
        sequences = crowd(3)
        assert distance(Engine(made, chosen).logprobs(sequences), Engine(made, "plain").logprobs(sequences)) < 1e-4


@EVERY_FAMILY
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_repeated_cache_gives_the_answers_of_the_plain_path(family, budget):
    made, sequences = model(family), crowd(3)
    with torch.inference_mode():
        expanded = Engine(made, "expanded", token_budget=budget).logprobs(sequences)
        assert distance(expanded, Engine(made, "plain").logprobs(sequences)) < 1e-4


def test_fused_attention_gives_way_to_attention_that_knows_trees_and_no_other_does():
    assert [choose_layout(model(attention=own))[0] for own in ("sdpa", "eager")] == ["packed", "packed"]
    for own, after in (("sdpa", TREE), ("eager", "eager")):
        made = model(attention=own)
        choose_layout(made)
        assert made.config._attn_implementation == after


def test_a_window_that_no_layer_uses_does_not_keep_a_model_from_being_packed():
    """Qwen2 writes sliding_window into every configuration; only layers from max_window_layers on would use it."""
    for changes in ({"use_sliding_window": False}, {"use_sliding_window": True, "max_window_layers": 28}):
        assert why_not_packed(model("qwen2", sliding_window=4096, **changes)) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_copy_for_the_probe_is_small_whatever_the_model_is(family):
    layers = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    inner = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size")
    made = model(family, n_words=5000, **{layers: 6, inner: 1000})
    made.config.quantization_config = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    before = torch.random.get_rng_state()

    copy = small_copy(made)

    assert sum(weights.numel() for weights in copy.parameters()) < 50_000
    assert copy.config.num_hidden_layers == 2
    assert made.config.quantization_config  # the model's own configuration is left as it is
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_window_of_the_copy_is_shorter_than_the_probe():
    """GPT-Neo's local layers see 256 tokens back: a probe within the window finds nothing wrong."""
    local = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "hidden_size": 32}

    assert small_copy(model("gpt_neo", "eager", window_size=256, **local)).config.window_size < len(PROBE[0].ids)
