"""Judge: one question a candidate, yes or no?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from fewrec_prompt.templates import ShownDemo
from fewrec_prompt.types import Demo, Query, Question
from fewrec_prompt.verbalizers.base import POOLS, Base, Pool, Render, Words, distinct_words, stack


class Judge(Base):
    """A score is log p(yes words) − log p(no words).

    Several words for one answer count as any of them ("sum" of probabilities) or by their mean log-probability
    ("mean-log"), which no frequent word decides alone (Hu et al. 2022, arXiv 2108.02035).
    """

    kind: Literal["judge"]
    yes: Words
    no: Words
    pool: Pool = "sum"

    reads: ClassVar[frozenset[str]] = Base.reads | {"pool"}

    @field_validator("no")
    @classmethod
    def _distinct(cls, no: tuple[str, ...], info: Any) -> tuple[str, ...]:
        distinct_words((*info.data.get("yes", ()), *no))
        return no

    def ask(self, query: Query, render: Render) -> list[Question]:
        """A question for each candidate, with all yes words, then all no words, as continuations."""
        words = tuple(render.lead + word for word in self.yes + self.no)
        return [Question(render(query, item=item), words, labels=True) for item in query.candidates]

    def shown(self, demo: Demo, labels: Sequence[str]) -> tuple[ShownDemo, ...]:
        """The answer with the first yes word, or no word if it was not liked; of several candidates also one that is
        no answer, the next in the list, with the first no word."""
        candidates = demo.query.candidates
        other = candidates[(demo.answer + 1) % len(candidates)]
        own = ShownDemo(demo, candidates[demo.answer], (self.yes if demo.liked else self.no)[0])
        return (own, ShownDemo(demo, other, self.no[0])) if len(candidates) > 1 else (own,)

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): log-odds in nats. Ranking by p(yes) − p(no) instead would squash the differences."""
        return stack([self._log_odds(stack([row.sum() for row in rows])) for rows in logprobs])

    def _log_odds(self, words: Any) -> Any:
        n, pooled = len(self.yes), POOLS[self.pool]
        return pooled(words[:n]) - pooled(words[n:])
