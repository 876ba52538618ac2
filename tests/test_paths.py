"""Every way to compute a score gives that of one whole text alone in the model, as transformers runs it."""

from functools import cache

import numpy as np
import pytest
import torch
from _tiny import TITLES, model, plain, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.backends import head
from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence, shared_length
from fewrec_prompt.backends.precision import NumericMode

MODE = NumericMode(precision="fp32", reason="a test", device="cpu")
SIXTY = "".join("qxzj"[n % 4] for n in range(60))  # no two of these letters merge: sixty tokens
TITLE = (
    st.sampled_from([*TITLES, "A", SIXTY, "日本🎬", "Amélie", "e\u0301"])
    | st.sampled_from(TITLES).map(lambda title: title[: len(title) // 2] + " 2")
    | st.text(max_size=12).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))
)
ENDS = st.sampled_from(
    ["-", "- The", "- Heat (1", "- Al", "\n"]
)  # all but the first merge with what some answers bring


@st.composite
def asked(draw):
    """A prompt with up to six titles in its history, and what may come next; some of it begins alike."""
    history = "".join(f"- {title}\n" for title in draw(st.lists(TITLE, max_size=6)))
    answers = draw(st.lists(st.tuples(st.sampled_from([" ", "", "9"]), TITLE), min_size=1, max_size=5))
    return plain("Films:\n" + history + draw(ENDS), *(f"{lead}{title}\n" for lead, title in answers))


@cache
def backend(family: str) -> CausalBackend:
    words = tokenizer()
    return CausalBackend(model(family, TREE, n_words=len(words)), words, MODE)


def naive(made, ids, start: int) -> torch.Tensor:
    """Log-probabilities of the tokens from `start` on: one text, no mask, no cache, all logits."""
    logits = made(torch.tensor([ids]), use_cache=False).logits[0].double()
    return logits[start - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(ids)[start:, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "gpt_neox", "mistral", "gemma", "phi"])
@settings(derandomize=True, max_examples=200, deadline=None)
@given(question=asked())
def test_texts_that_share_a_tree_are_scored_as_each_alone(family, question):
    made, own = backend(family).model, tokenizer()
    texts = [str(question.prompt) + answer for answer in question.continuations]
    prompt, wholes = own(str(question.prompt))["input_ids"], [own(text)["input_ids"] for text in texts]
    start = min(shared_length(prompt, whole) for whole in wholes)

    (rows,) = backend(family).logprobs([question])

    with torch.inference_mode():
        for whole, row in zip(wholes, rows, strict=True):
            assert np.abs(naive(made, whole, start).numpy() - row).max() < 1e-4


# --- many users, by every path ---------------------------------------------------------------------------------------


def users(n_users: int) -> list[TokenSequence]:
    """Candidates of users whose prompts begin alike: histories of 0 to 80 tokens, titles of 1 to 60."""
    rng = np.random.default_rng(3)
    preamble = rng.integers(2, 90, size=20).tolist()
    asked = []
    for _ in range(n_users):
        stem = preamble + rng.integers(2, 90, size=rng.integers(0, 80)).tolist()
        title = rng.integers(2, 90, size=60).tolist()
        for _ in range(5):
            own = title[: rng.integers(0, 4)] + rng.integers(2, 90, size=rng.choice([1, 3, 8])).tolist()
            asked.append(TokenSequence((*stem, *own), len(stem), len(preamble)))
        asked.append(TokenSequence((*stem, *title), len(stem), len(preamble)))
    return asked


def in_small_slices(made, monkeypatch):
    monkeypatch.setattr(head, "ROWS", 5)
    monkeypatch.setattr(head, "WORDS", 7)
    return Engine(made)


PATHS = {
    "packed": lambda made, _: Engine(made),
    "side by side, padded": lambda made, _: Engine(made, unit="throughput"),
    "cached prefix": lambda made, _: Engine(made, "expanded"),
    "slices of the head": in_small_slices,
    "plain": lambda made, _: Engine(made, "plain"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "opt", "gpt_neox"])
def test_fifty_users_have_the_same_scores_by_every_path(monkeypatch, family, path):
    made, sequences = model(family, TREE), users(50)
    with torch.inference_mode():
        found = PATHS[path](made, monkeypatch).logprobs(sequences)
        alone = [naive(made, one.ids, one.scored_from) for one in sequences]

    assert max(float((a - b).abs().max()) for a, b in zip(found, alone, strict=True)) < 1e-4
