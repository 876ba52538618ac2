"""Questions to a server: each sequence of tokens once, several at a time, and the numbers put back in their places."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fewrec_prompt.backends.models import ModelFiles
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.remote.client import Client
from fewrec_prompt.backends.remote.server import Server
from fewrec_prompt.backends.remote.ways import LABELS_ONLY, WAYS, Ids, Vocabulary, read_top, top_request
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.catalogue import Found, Rule
from fewrec_prompt.errors import ModelError, RemoteError, VerbalizerError
from fewrec_prompt.types import Question, TokenLogprobs

T = TypeVar("T")
R = TypeVar("R")


class RemoteBackend:
    """A model behind a server. `way` is one of WAYS, or "top_logprobs", which scores labels of one token alone."""

    def __init__(
        self, server: Server, client: Client, tokenizer: Any, way: str, context_window: int, folder: Path
    ) -> None:
        self.context_window = context_window
        self.mode = NumericMode("server", "decided by the server", "remote", layout=way)
        self.files = ModelFiles(server.address, folder, _digest(server, folder))
        self._server, self._client = server, client
        self._tokens, self._words = QuestionTokenizer(tokenizer), Vocabulary(tokenizer)

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of plain text."""
        return len(self._tokens.text_ids(text))

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence this question makes, and one that a server may generate behind it."""
        return 1 + max(len(sequence.ids) for sequence in self._tokens.encode(question))

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens that are sent: of every sequence, or of every prompt where only labels are scored."""
        return sum(map(len, self._texts(self._encode(questions))))

    def identity(self, questions: Sequence[Question]) -> None:
        """None: nothing says that a server will be the same tomorrow."""

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """Raises ModelError: a search needs the model itself."""
        raise ModelError("a server cannot search a catalogue; use a model that is here, or rank candidates")

    def hidden(self, prompts: Sequence[Any], *, grad: bool = False) -> Any:
        """Raises ModelError: a server tells no hidden states."""
        raise ModelError("a server tells no hidden states; use a model that is here")

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-probability of each token of each continuation after its prompt, in nats.

        One entry per question in the order asked: a float64 row (n_tokens,) per continuation. Raises ModelError for
        gradients, VerbalizerError for what the server cannot score, RemoteError if it fails or leaves out a label.
        """
        if grad:
            raise ModelError("a server gives no gradients; tune a model that is here")
        groups = self._encode(questions)
        texts = self._texts(groups)
        read = self._top if self.mode.layout == LABELS_ONLY else self._given
        answers = dict(zip(texts, _side_by_side(read, texts, self._server.concurrency), strict=True))
        return [tuple(self._row(sequence, answers) for sequence in group) for group in groups]

    def _encode(self, questions: Sequence[Question]) -> list[tuple[TokenSequence, ...]]:
        groups = [self._tokens.encode(question) for question in questions]
        if self.mode.layout == LABELS_ONLY:
            for question, group in zip(questions, groups, strict=True):
                self._check_labels(question, group)
        return groups

    def _check_labels(self, question: Question, group: tuple[TokenSequence, ...]) -> None:
        for word, sequence in zip(question.continuations, group, strict=True):
            if (n := len(sequence.ids) - sequence.scored_from) > 1:
                raise VerbalizerError(
                    f"{question.prompt.template.origin}: {self._server.url} scores labels of one token only, and "
                    f"{word!r} has {n}; use single-token labels, or a server that scores given text, such as vLLM"
                )

    def _texts(self, groups: Sequence[tuple[TokenSequence, ...]]) -> list[tuple[int, ...]]:
        """What is sent, each once."""
        end = -1 if self.mode.layout == LABELS_ONLY else None
        return list(dict.fromkeys(sequence.ids[:end] for group in groups for sequence in group))

    def _given(self, ids: Ids) -> list[float]:
        way = WAYS[self.mode.layout]
        return way.read(ids, self._client.post("/completions", self._body(way.request(ids))), self._words)

    def _top(self, ids: Ids) -> dict[int, float]:
        request = self._body(top_request(ids, self._server.top_logprobs))
        return read_top(ids, self._client.post("/completions", request), self._words)

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._server.model} | request

    def _row(self, sequence: TokenSequence, answers: Mapping[tuple[int, ...], Any]) -> np.ndarray:
        if self.mode.layout != LABELS_ONLY:
            return np.array(answers[sequence.ids][sequence.scored_from - 1 :])
        found, label = answers[sequence.ids[:-1]], sequence.ids[-1]
        if label not in found:
            raise RemoteError(
                f"{self._server.url}: the label {self._words.text(label)!r} is not among the {len(found)} likeliest "
                f"tokens that it tells, so its log-probability is somewhere below {min(found.values()):.3f}; raise "
                "top_logprobs, end the template where the answer begins, or take a server that scores given text"
            )
        return np.array([found[label]])


def _side_by_side(work: Callable[[T], R], given: Sequence[T], n: int) -> list[R]:
    """`map` by n threads. The first error ends it: what has not begun never does."""
    with ThreadPoolExecutor(n) as threads:
        try:
            return list(threads.map(work, given))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _digest(server: Server, folder: Path) -> str:
    """sha256 of what is known of a model behind a server: its address and name, and the tokenizer."""
    told = json.dumps([server.address, (folder / "tokenizer.json").read_text(encoding="utf-8")])
    return sha256(told.encode()).hexdigest()
