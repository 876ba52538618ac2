"""Trees of tokens as candidates make them, and how far two ways to score them are apart."""

import numpy as np
import pytest
import torch
from _tiny import FAMILIES

from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence

EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))
EVERY_ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa", TREE])


def forest(rng: np.random.Generator) -> list[TokenSequence]:
    """A prompt with branches, as candidates make them: shared beginnings, one-token and long answers, repeats."""
    stem = rng.integers(2, 90, size=rng.integers(1, 40)).tolist()
    tail = rng.integers(2, 90, size=60).tolist()
    sequences = []
    for _ in range(rng.integers(1, 7)):
        shared = tail[: rng.integers(0, 6)]
        length = int(rng.choice([1, 1, 2, 5, 13])) if rng.random() < 0.95 else 60
        own = rng.integers(2, 90, size=length).tolist()
        sequences.append(TokenSequence((*stem, *shared, *own), len(stem) + int(rng.integers(0, len(shared) + 1))))
    return sequences


def gap(made, sequences) -> float:
    """Largest difference in nats between the two ways to score."""
    with torch.inference_mode():
        pairs = zip(Engine(made).logprobs(sequences), Engine(made, "plain").logprobs(sequences), strict=True)
        return max(float((one - other).abs().max()) for one, other in pairs)


def crowd(n_users: int) -> list[TokenSequence]:
    """Several users' trees of many sizes; some of them begin alike."""
    rng = np.random.default_rng(1)
    preamble = rng.integers(2, 90, size=20).tolist()
    own = [one for _ in range(n_users) for one in forest(rng)]
    shared = [
        TokenSequence((*preamble, *one.ids), len(preamble) + one.scored_from, len(preamble))
        for _ in range(n_users)
        for one in forest(rng)
    ]
    return own + shared


def distance(one, other) -> float:
    return float((torch.cat(list(one)) - torch.cat(list(other))).abs().max())
