"""What verbalizers share: their protocol, label words, and arithmetic for numpy rows and torch rows alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from fewrec_prompt.artifacts import Settings
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.templates import ShownDemo
from fewrec_prompt.types import Demo, Item, Kind, Prompt, Query, Question, TokenLogprobs

Pool = Literal["sum", "mean-log"]
Words = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Group: TypeAlias = tuple[int, ...]
"""Candidates that are shown together, as their places in the query, in the order in which they are shown."""

Rounds: TypeAlias = Generator[list[Group], Sequence[TokenLogprobs], Any]
"""What has to be asked, round by round: yields groups, is sent an answer for each, returns scores (n_candidates,)."""


class Render(Protocol):
    """A template bound to its domain: makes the prompt, and says what stands before and after an answer."""

    @property
    def lead(self) -> str: ...

    @property
    def end(self) -> str: ...

    def __call__(self, query: Query, *, item: Item | None = None, labels: Sequence[str] = ()) -> Prompt: ...


class Verbalizer(Protocol):
    """How a model's answer becomes scores: `ask` makes the questions of one round, `read` their answers' scores.

    Where `many_rounds`, what is asked depends on what was answered: `rounds` says which groups of candidates come next,
    `question` makes a question of each, and `read` goes the same way through answers that are there. Its `ask` gives
    questions of the kind that will come, which show every candidate: by them is known what fits and what it costs.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def many_rounds(self) -> bool: ...

    def ask(self, query: Query, render: Render) -> list[Question]: ...

    def read(self, logprobs: Sequence[Any], query: Query) -> Any: ...


class Base(Settings):
    """What every verbalizer file may say."""

    description: str
    alpha: float = Field(
        default=1.0, allow_inf_nan=False
    )  # what `pmi` and `contextual` calibration subtract of a twin's scores where nobody names another

    reads: ClassVar[frozenset[str]] = frozenset({"description", "alpha"})  # settings that change no question
    has_labels: ClassVar[bool] = True  # what is asked are label words, not titles

    @property
    def many_rounds(self) -> bool:
        """Whether what is asked depends on what was answered. Such a verbalizer cannot be trained through."""
        return False

    @property
    def asks(self) -> str:
        """All settings that decide what is asked: verbalizers that agree in them share answers."""
        return self.model_dump_json(exclude=set(self.reads))

    def shown(self, demo: Demo, labels: Sequence[str]) -> tuple[ShownDemo, ...]:
        """An example in the words of this verbalizer, for prompts that show these labels.

        Raises VerbalizerError for a kind that has no words for it.
        """
        kind = getattr(self, "kind", type(self).__name__)
        raise VerbalizerError(
            f"a verbalizer of kind {kind!r} has no words for examples; take choose, judge or complete"
        )


class Shown(Base):
    """A verbalizer that shows candidates together, each beside a label, and asks for the label of one."""

    labels: Words

    def question(self, query: Query, group: Group, render: Render) -> Question:
        """Which of these candidates? One continuation a candidate."""
        labels = self.labels[: len(group)]
        shown = replace(query, candidates=tuple(query.candidates[place] for place in group))
        return Question(render(shown, labels=labels), tuple(render.lead + label for label in labels), labels=True)


def replay(rounds: Rounds, logprobs: Sequence[TokenLogprobs]) -> Any:
    """The scores that rounds come to with answers that are there, in the order in which they were asked."""
    rest = iter(logprobs)
    try:
        groups = next(rounds)
        while True:
            groups = rounds.send(list(islice(rest, len(groups))))
    except StopIteration as end:
        return end.value


def distinct_words(words: Sequence[str]) -> None:
    """Raises ValueError unless label words differ and say something."""
    repeated = sorted({word for word in words if words.count(word) > 1})
    if repeated or not all(word.strip() for word in words):
        raise ValueError(f"label words must be distinct and not empty; repeated: {', '.join(repeated) or 'none'}")


def namespace(row: Any) -> Any:
    """numpy or torch, whichever made the row; torch is never imported here, only met."""
    return sys.modules["torch"] if type(row).__module__.startswith("torch") else np


def stack(values: Sequence[Any]) -> Any:
    """One row (n,) of n numbers."""
    return namespace(values[0]).stack(tuple(values))


def mean(values: Sequence[Any]) -> Any:
    """Mean of numbers, or of rows of one length."""
    return sum(values[1:], values[0]) / len(values)


def logsumexp(values: Any) -> Any:
    """log Σ exp of a row, in nats; finite however unlikely all of it is."""
    xp = namespace(values)
    top = values.max()
    return top + xp.log(xp.exp(values - top).sum())


POOLS: dict[Pool, Callable[[Any], Any]] = {"sum": logsumexp, "mean-log": lambda logs: logs.mean()}
"""How several words for one answer become one log-probability: of any of them, or their geometric mean."""
