"""What a model makes of a prompt: the same vector in every layout, alone or among others, and gradients through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _tiny import TITLES, model, plain, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.prefix import SoftTokens

PROMPTS = [plain(f"Here is a list of films: {', '.join(TITLES[:n])}. Yes or No?").prompt for n in (1, 2, 3)]


def backend(layout="packed", family="llama", unit="canonical", **more):
    mode = NumericMode(precision="fp32", reason="a test", device="cpu", layout=layout, unit=unit)
    return CausalBackend(model(family, n_words=len(tokenizer())), tokenizer(), mode, **more)


def test_it_is_the_last_state_that_transformers_gives_the_last_token():
    one = backend()
    ids = torch.tensor([one.tokens.prompt_ids(PROMPTS[1])])
    with torch.no_grad():
        expected = one.model(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()

    found = one.hidden(PROMPTS)

    assert found.shape == (3, 32)
    assert found.dtype == np.float32
    assert np.abs(found[1] - expected).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("unit", ["canonical", "throughput"])
def test_layouts_agree_whoever_else_is_asked(family, unit):
    packed, alone = backend(family=family, unit=unit), backend("plain", family)

    together = packed.hidden([*PROMPTS, PROMPTS[0]])

    assert np.abs(together[:3] - alone.hidden(PROMPTS)).max() < 1e-4
    assert np.array_equal(together[0], together[3])
    assert np.abs(packed.hidden(PROMPTS[:1])[0] - together[0]).max() < 1e-4


def test_it_stands_behind_a_learned_prefix():
    soft = SoftTokens(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))

    packed, alone = backend(soft=soft).hidden(PROMPTS), backend("plain", soft=soft).hidden(PROMPTS)

    assert np.abs(packed - alone).max() < 1e-4
    assert np.abs(packed - backend().hidden(PROMPTS)).max() > 1e-2, "the prefix changes something"


def test_gradients_reach_the_weights_and_are_those_of_the_plain_path():
    slopes = []
    for layout in ("packed", "plain"):
        one = backend(layout)
        one.hidden(PROMPTS, grad=True)[:, 0].sum().backward()
        slopes.append(one.model.get_input_embeddings().weight.grad)
    assert slopes[0].abs().max() > 1e-3
    assert (slopes[0] - slopes[1]).abs().max() < 1e-4
