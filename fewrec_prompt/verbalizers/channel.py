"""Channel: how well does a candidate explain the history? The noisy channel (Min et al. 2022, arXiv 2108.04106)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Query, Question
from fewrec_prompt.verbalizers.base import Base, Render, stack


class Channel(Base):
    """One question a candidate, with the history as its continuation; a score is log p(history | candidate).

    The prior of a candidate is left out, as in the paper: all are taken as equally likely beforehand.
    """

    kind: Literal["channel"]

    has_labels: ClassVar[bool] = False

    def ask(self, query: Query, render: Render) -> list[Question]:
        """The template shows the candidate; the titles of the history follow, oldest first, each lead, title, end.

        Raises VerbalizerError for a query without history: there is nothing to explain.
        """
        if not query.history:
            raise VerbalizerError(
                f"user {query.user_id!r}: no history, which is what kind 'channel' scores; use a prompt of another kind"
            )
        titles = (shown_title(seen.item.id, seen.item.title) for seen in query.history)
        said = "".join(f"{render.lead}{title}{render.end}" for title in titles)
        return [Question(render(query, item=item), (said,)) for item in query.candidates]

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): nats, of the whole history."""
        return stack([row.sum() for (row,) in logprobs])
