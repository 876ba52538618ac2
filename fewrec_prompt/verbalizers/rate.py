"""Rate: one question a candidate, how many stars?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from fewrec_prompt.types import Query, Question
from fewrec_prompt.verbalizers.base import POOLS, Base, Pool, Render, Words, distinct_words, logsumexp, namespace, stack


class Rate(Base):
    """A score is the expected rating over the labels. A label is a word, or several words for the same rating."""

    kind: Literal["rate"]
    labels: Annotated[tuple[str | Words, ...], Field(min_length=1, strict=False)]  # worst first; the first is worth 1
    pool: Pool = "sum"

    reads: ClassVar[frozenset[str]] = Base.reads | {"pool"}

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str | Words, ...]) -> tuple[str | Words, ...]:
        distinct_words([word for words in _each(labels) for word in words])
        return labels

    def ask(self, query: Query, render: Render) -> list[Question]:
        """A question for each candidate, with every word of every label as continuation."""
        words = tuple(render.lead + word for words in _each(self.labels) for word in words)
        return [Question(render(query, item=item), words, labels=True) for item in query.candidates]

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): expected rating, 1 … n_labels."""
        return stack([self._expected([row.sum() for row in rows]) for rows in logprobs])

    def _expected(self, words: Sequence[Any]) -> Any:
        rest = iter(words)
        logs = stack([POOLS[self.pool](stack(list(islice(rest, len(one))))) for one in _each(self.labels)])
        shares = namespace(logs).exp(logs - logsumexp(logs))
        return sum(stars * share for stars, share in enumerate(shares, 1))


def _each(labels: Sequence[str | Words]) -> Iterator[Words]:
    """The words of each label."""
    return ((label,) if isinstance(label, str) else label for label in labels)
