"""A language model that can be worked out by hand: every word has one probability, wherever it stands.

For tests and for trying templates without a model. Words are split at white space; nothing is learned, nothing loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.types import Question, TokenLogprobs


class ToyBackend:
    """Gives `probabilities[word]` to a word, else `default`. It keeps every question it was asked in `asked`."""

    def __init__(
        self, probabilities: Mapping[str, float] | None = None, *, default: float = 0.1, context_window: int = 10_000
    ) -> None:
        self.probabilities = dict(probabilities or {})
        self.default = default
        self.context_window = context_window
        self.mode = NumericMode(precision="fp32", reason="worked out by hand", device="cpu")
        self.files = None
        self.asked: list[Question] = []

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """log p of each word of each continuation."""
        if grad:
            raise NotImplementedError("there is nothing to learn in a toy")
        self.asked.extend(questions)
        return [tuple(self._row(continuation) for continuation in question.continuations) for question in questions]

    def _row(self, continuation: str) -> np.ndarray:
        return np.array([math.log(self.probabilities.get(word, self.default)) for word in continuation.split()])

    def identity(self, questions: Sequence[Question]) -> None:
        """None: what is worked out at once is not kept."""

    def n_tokens(self, question: Question) -> int:
        """Words of the prompt and of the longest continuation."""
        longest = max(len(continuation.split()) for continuation in question.continuations)
        return len(str(question.prompt).split()) + longest

    def count_tokens(self, text: str) -> int:
        """Words of the text."""
        return len(text.split())

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Words of all prompts and continuations."""
        return sum(self.n_tokens(question) for question in questions)
