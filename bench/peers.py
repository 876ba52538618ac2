"""Other ways to score the same continuations with the same model: what the engine is measured against.

Each peer is a function from questions (prompt text, continuation texts) to summed log-probabilities, loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.types import Question

Score = Callable[[Sequence[Question]], list[float]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to score, and what to call it in a table."""

    name: str
    score: Score


def ours(backend: CausalBackend) -> Peer:
    """This package's engine."""

    def score(questions: Sequence[Question]) -> list[float]:
        return [float(row.sum()) for rows in backend.logprobs(questions) for row in rows]

    return Peer("fewrec-prompt", score)


def lm_eval(backend: CausalBackend, batch_size: int) -> Peer:
    """lm-evaluation-harness: `HFLM.loglikelihood` on the same weights."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backend.files.folder)
    harness = HFLM(pretrained=backend.model, tokenizer=tokenizer, batch_size=batch_size)

    def score(questions: Sequence[Question]) -> list[float]:
        pairs = [(str(question.prompt), text) for question in questions for text in question.continuations]
        requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
        return [float(logprob) for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    return Peer(f"lm-eval, batch {batch_size}", score)


def cached_prefix(backend: CausalBackend) -> Peer:
    """What a careful person writes by hand: the prompt once, its cache expanded to a padded batch of continuations."""

    def score(questions: Sequence[Question]) -> list[float]:
        return [value for question in questions for value in _expanded(backend, question)]

    return Peer("hand-written cached prefix", score)


@torch.inference_mode()
def _expanded(backend: CausalBackend, question: Question) -> list[float]:
    from transformers import DynamicCache

    model, sequences = backend.model, backend.tokens.encode(question)
    start = sequences[0].scored_from
    tails = [sequence.ids[start:] for sequence in sequences]
    cache = DynamicCache(config=model.config)
    stem = torch.tensor([sequences[0].ids[:start]])
    last = model.base_model(input_ids=stem, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    width = max(len(tail) for tail in tails)
    hidden = last.expand(len(tails), -1, -1)
    if width > 1:
        cache.batch_repeat_interleave(len(tails))
        ids = torch.tensor([[*tail[:-1], *[0] * (width - len(tail))] for tail in tails])
        seen = torch.ones(len(tails), start + width - 1, dtype=torch.long)
        more = model.base_model(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True)
        hidden = torch.cat([hidden, more.last_hidden_state], dim=1)
    return [_total(model, hidden[row, : len(tail)], tail) for row, tail in enumerate(tails)]


def _total(model: Any, hidden: torch.Tensor, tail: Sequence[int]) -> float:
    logprobs = model.get_output_embeddings()(hidden).float().log_softmax(-1)
    return float(logprobs.gather(-1, torch.tensor(tail)[:, None]).double().sum())
