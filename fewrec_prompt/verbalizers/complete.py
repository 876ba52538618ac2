"""Complete: one question with every title as its continuation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from fewrec_prompt.templates import ShownDemo
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Demo, Query, Question
from fewrec_prompt.verbalizers.base import Base, Render, stack

Length = Literal["sum", "mean", "chars"]
LENGTHS: dict[Length, Callable[[Any, str], Any]] = {
    "sum": lambda row, _title: row.sum(),
    "mean": lambda row, _title: row.mean(),
    "chars": lambda row, title: row.sum() / len(title),
}
"""How a title's tokens become one number: their sum, a mean per token, or the sum per character of the title."""


class Complete(Base):
    """A score is the log-probability of the title and of what closes it, by one of the rules of LENGTHS."""

    kind: Literal["complete"]
    length: Length = "sum"

    reads: ClassVar[frozenset[str]] = Base.reads | {"length"}
    has_labels: ClassVar[bool] = False

    def ask(self, query: Query, render: Render) -> list[Question]:
        """One question; a continuation is lead, title, end."""
        return [Question(render(query), tuple(f"{render.lead}{title}{render.end}" for title in _titles(query)))]

    def shown(self, demo: Demo, labels: Sequence[str]) -> tuple[ShownDemo, ...]:
        """The title that was taken."""
        item = demo.query.candidates[demo.answer]
        return (ShownDemo(demo, item, shown_title(item.id, item.title)),)

    def read(self, logprobs: Sequence[Any], query: Query) -> Any:
        """Scores (n_candidates,): nats, nats per token ("mean"), or nats per character ("chars")."""
        (rows,) = logprobs
        rule = LENGTHS[self.length]
        return stack([rule(row, title) for row, title in zip(rows, _titles(query), strict=True)])


def _titles(query: Query) -> list[str]:
    return [shown_title(item.id, item.title) for item in query.candidates]
