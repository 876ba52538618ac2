"""Turn a query into questions for a language model, and its log-probabilities into scores of the candidates.

`read` works on numpy rows and on torch rows, so what is tuned is exactly what is scored. No model and no tokens here:
whether two label words can be told apart is for the backend that knows the tokenizer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from fewrec_prompt import artifacts
from fewrec_prompt.artifacts import Settings
from fewrec_prompt.errors import ArtifactError, VerbalizerError
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Item, Kind, Prompt, Query, Question

Length = Literal["sum", "mean"]
Words = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class Render(Protocol):
    """A template bound to its domain: makes the prompt, and says what stands before and after an answer."""

    @property
    def lead(self) -> str: ...

    @property
    def end(self) -> str: ...

    def __call__(self, query: Query, *, item: Item | None = None, labels: Sequence[str] = ()) -> Prompt: ...


class Verbalizer(Protocol):
    """How a model's answer becomes scores: `ask` makes the questions of one round, `read` their answers' scores."""

    @property
    def kind(self) -> Kind: ...

    def ask(self, query: Query, render: Render) -> list[Question]: ...

    def read(self, logprobs: Sequence[Any]) -> Any: ...


class _Base(Settings):
    description: str
    alpha: float = Field(
        default=1.0, allow_inf_nan=False
    )  # what `pmi` calibration subtracts of the twin's scores where nobody names another


class Choose(_Base):
    """One question for all candidates, each beside a label; a score is log p(label)."""

    kind: Literal["choose"]
    labels: Words

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_words(labels)

    def ask(self, query: Query, render: Render) -> list[Question]:
        """One question. Raises VerbalizerError if there are fewer labels than candidates."""
        n = len(query.candidates)
        if n > len(self.labels):
            raise VerbalizerError(
                f"user {query.user_id!r}: {n} candidates but only {len(self.labels)} labels; "
                "use a verbalizer with more labels, fewer candidates, or a prompt of kind 'judge' or 'complete'"
            )
        labels = self.labels[:n]
        return [Question(render(query, labels=labels), tuple(render.lead + label for label in labels), labels=True)]

    def read(self, logprobs: Sequence[Any]) -> Any:
        """Scores (n_candidates,): log-probability of each label, in nats."""
        (rows,) = logprobs
        return _stack([row.sum() for row in rows])


class Judge(_Base):
    """One question a candidate, yes or no; a score is log p(yes words) − log p(no words)."""

    kind: Literal["judge"]
    yes: Words
    no: Words

    @field_validator("no")
    @classmethod
    def _distinct(cls, no: tuple[str, ...], info: Any) -> tuple[str, ...]:
        _distinct_words((*info.data.get("yes", ()), *no))
        return no

    def ask(self, query: Query, render: Render) -> list[Question]:
        """A question for each candidate, with all yes words, then all no words, as continuations."""
        words = tuple(render.lead + word for word in self.yes + self.no)
        return [Question(render(query, item=item), words, labels=True) for item in query.candidates]

    def read(self, logprobs: Sequence[Any]) -> Any:
        """Scores (n_candidates,): log-odds in nats. Ranking by p(yes) − p(no) instead would squash the differences."""
        return _stack([self._log_odds([row.sum() for row in rows]) for rows in logprobs])

    def _log_odds(self, words: Sequence[Any]) -> Any:
        n = len(self.yes)
        return _logsumexp(_stack(words[:n])) - _logsumexp(_stack(words[n:]))


class Rate(_Base):
    """One question a candidate, how many stars; a score is the expected rating over the labels."""

    kind: Literal["rate"]
    labels: Words  # worst first; the first is worth 1

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_words(labels)

    def ask(self, query: Query, render: Render) -> list[Question]:
        """A question for each candidate, with every label as continuation."""
        words = tuple(render.lead + label for label in self.labels)
        return [Question(render(query, item=item), words, labels=True) for item in query.candidates]

    def read(self, logprobs: Sequence[Any]) -> Any:
        """Scores (n_candidates,): expected rating, 1 … n_labels."""
        return _stack([self._expected(_stack([row.sum() for row in rows])) for rows in logprobs])

    def _expected(self, words: Any) -> Any:
        shares = _namespace(words).exp(words - _logsumexp(words))
        return sum(stars * share for stars, share in enumerate(shares, 1))


class Complete(_Base):
    """One question with every title as continuation; a score is its log-probability, summed or a mean per token."""

    kind: Literal["complete"]
    length: Length = "sum"

    def ask(self, query: Query, render: Render) -> list[Question]:
        """One question; a continuation is lead, title, end."""
        titles = (shown_title(item.id, item.title) for item in query.candidates)
        return [Question(render(query), tuple(f"{render.lead}{title}{render.end}" for title in titles))]

    def read(self, logprobs: Sequence[Any]) -> Any:
        """Scores (n_candidates,): nats, or nats per token with length "mean"."""
        (rows,) = logprobs
        return _stack([row.sum() if self.length == "sum" else row.mean() for row in rows])


AnyVerbalizer = Choose | Judge | Rate | Complete
KINDS: dict[str, type[AnyVerbalizer]] = {
    "choose": Choose,
    "judge": Judge,
    "rate": Rate,
    "complete": Complete,
}


class _KindOnly(Settings):
    model_config = ConfigDict(extra="ignore")
    kind: Kind


def load(name: str) -> AnyVerbalizer:
    """The verbalizer called `name` (a path, a file of ./verbalizers, or a shipped one).

    Raises VerbalizerError with file and line for unknown keys, empty or repeated label words.
    """
    path = artifacts.find("verbalizers", name)
    try:
        kind = artifacts.read_toml(path, _KindOnly).kind
        return artifacts.read_toml(path, KINDS[kind])
    except ArtifactError as error:
        raise VerbalizerError(str(error)) from error


def with_length(verbalizer: AnyVerbalizer, length: Length) -> AnyVerbalizer:
    """The same verbalizer with another length rule. Raises VerbalizerError unless it scores whole titles."""
    if not isinstance(verbalizer, Complete):
        raise VerbalizerError(f"a length rule is for verbalizers of kind 'complete', not {verbalizer.kind!r}")
    return verbalizer.model_copy(update={"length": length})


def _distinct_words(words: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({word for word in words if words.count(word) > 1})
    if repeated or not all(word.strip() for word in words):
        raise ValueError(f"label words must be distinct and not empty; repeated: {', '.join(repeated) or 'none'}")
    return words


def _namespace(row: Any) -> Any:
    """numpy or torch, whichever made the row; torch is never imported here, only met."""
    return sys.modules["torch"] if type(row).__module__.startswith("torch") else np


def _stack(values: Sequence[Any]) -> Any:
    return _namespace(values[0]).stack(tuple(values))


def _logsumexp(values: Any) -> Any:
    xp = _namespace(values)
    top = values.max()
    return top + xp.log(xp.exp(values - top).sum())
