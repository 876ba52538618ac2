"""Ways to score the same continuations with the same model: our engine, and what it is measured against.

All of them get questions as text and give the summed log-probability (nats) of each continuation. What the backend
keeps between questions is dropped before each timed run (`forget`). Others stand in peer_vllm.py and peer_ct2.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.types import Question

Score = Callable[[Sequence[Question]], list[float]]


class NotInstalledError(Exception):
    """A peer that is not on this machine. The message says how to get it."""


class PeerError(Exception):
    """A peer that cannot be compared with: it fails, or answers another question than ours."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to score, and what to call it in a table. `at_once`: it is given the questions of all users in one call."""

    name: str
    score: Score
    at_once: bool = False


def ours(backend: CausalBackend) -> Peer:
    """This package's engine, a user at a time."""

    def score(questions: Sequence[Question]) -> list[float]:
        return [float(row.sum()) for rows in backend.logprobs(questions) for row in rows]

    return Peer("fewrec-prompt", score)


def forget(backend: CausalBackend) -> None:
    """Drop what the backend keeps of earlier questions, so that no run is helped by the one before it."""
    backend.tokens.encode.cache_clear()
    backend.engine.forget()


def lm_eval(backend: CausalBackend, batch_size: int) -> Peer:
    """lm-evaluation-harness: `HFLM.loglikelihood` on the same weights; it may sort and batch across users.

    Of a yes/no question it computes the prompt once for both words, as it does by itself (`logits_cache`).
    """
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise NotInstalledError("lm-evaluation-harness: pip install lm_eval==0.4.13") from error
    from transformers import AutoTokenizer

    assert backend.files is not None, "a model made in memory has no tokenizer of its own"
    tokenizer = AutoTokenizer.from_pretrained(backend.files.folder)
    harness = HFLM(pretrained=backend.model, tokenizer=tokenizer, batch_size=batch_size)

    def score(questions: Sequence[Question]) -> list[float]:
        pairs = [(str(question.prompt), text) for question in questions for text in question.continuations]
        requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
        return [float(logprob) for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    return Peer(f"lm-eval {batch_size}", score, at_once=True)


def cached_prefix(backend: CausalBackend) -> Peer:
    """What a careful person writes by hand: the prompt once, its cache expanded to a padded batch of titles.

    Only positions that a title needs go through the LM head, all titles in one product and one log-softmax.
    """

    def score(questions: Sequence[Question]) -> list[float]:
        return [value for question in questions for value in _expanded(backend.model, backend.tokens.encode(question))]

    return Peer("hand-written loop", score)


@torch.inference_mode()
def _expanded(model: Any, sequences: Sequence[TokenSequence]) -> list[float]:
    """Sums of one question: all its sequences share everything before `scored_from`."""
    from transformers import DynamicCache

    start = sequences[0].scored_from
    tails = [sequence.ids[start:] for sequence in sequences]
    cache = DynamicCache(config=model.config)
    stem = torch.tensor([sequences[0].ids[:start]])
    last = model.base_model(input_ids=stem, past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]
    hidden = torch.cat([last, *_continued(model, cache, tails)])
    logprobs = model.get_output_embeddings()(hidden).float().log_softmax(-1)
    # Row 0 predicts the first token of every title; the others follow, title by title.
    place, sums = 1, []
    for tail in tails:
        rows = torch.tensor([0, *range(place, place + len(tail) - 1)])
        sums.append(float(logprobs[rows, torch.tensor(tail)].double().sum()))
        place += len(tail) - 1
    return sums


def _continued(model: Any, cache: Any, tails: Sequence[Sequence[int]]) -> Iterable[torch.Tensor]:
    """Hidden states of each tail but of its last token, which predicts nothing that is asked."""
    width = max(len(tail) for tail in tails) - 1
    if width == 0:
        return []
    cache.batch_repeat_interleave(len(tails))
    ids = torch.tensor([[*tail[:-1], *[0] * (width - len(tail) + 1)] for tail in tails])  # padding is seen by no token
    hidden = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    return [hidden[row, : len(tail) - 1] for row, tail in enumerate(tails)]
