"""Language models that answer questions with log-probabilities, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fewrec_prompt.catalogue import Found, Rule
from fewrec_prompt.registry import Registry
from fewrec_prompt.types import Question, TokenLogprobs

BACKENDS = Registry(
    "backend",
    {
        "causal": "fewrec_prompt.backends.causal:load",
        "masked": "fewrec_prompt.backends.masked:load",
        "masked-l2r": "fewrec_prompt.backends.masked:load_l2r",
        "seq2seq": "fewrec_prompt.backends.seq2seq:load",
        "remote": "fewrec_prompt.backends.remote.connect:load",
    },
    group="fewrec_prompt.backends",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Names the answers to questions that are asked together: the same key, the same bits.

    Answers are kept row by row in `order`: places of all continuations, counted through the questions.
    """

    key: str  # sha256
    order: tuple[int, ...]


class Backend(Protocol):
    """What a recommender needs of a language model."""

    context_window: int  # tokens
    mode: Any  # NumericMode: what decides the bits of an answer
    files: Any  # ModelFiles: where the weights came from; None if they were made in memory

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-probability of each token of each continuation after its prompt, in nats.

        One entry per question in the order asked: a float64 row (n_tokens,) per continuation; with `grad`, torch rows.
        """
        ...

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """What `logprobs` of these questions would be called in a store of answers; None if they must not be kept."""
        ...

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """The k best continuations of a question with very many, without scoring all of them."""
        ...

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence this question makes: prompt and continuation."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that is part of no question yet."""
        ...

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens that answering these questions together computes, as long as nothing of them is kept."""
        ...
