"""The nouns of the package: what a recommender is asked, what a model is asked, and what comes back.

All frozen, all plain data. Nothing here knows an answer: the target of a query lives in qrels (see evaluation.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Kind = Literal["choose", "judge", "rate", "complete", "channel", "pairwise", "setwise"]
Fields: TypeAlias = tuple[tuple[str, str | int | float], ...]
"""What is known of a thing or a person, as (name, value) pairs."""
TokenLogprobs: TypeAlias = "tuple[np.ndarray, ...]"
"""Per-token log-probabilities (nats) of the continuations of one question: one float64 row (n_tokens,) each."""


@dataclass(frozen=True, slots=True)
class Item:
    """A thing that can be recommended. `id` is its identity; titles may repeat, ids may not.

    `fields` are further columns of the catalogue: year, genres, author, …
    """

    id: str
    title: str
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One item of a person's history, with its rating and time (seconds since 1970) where they are known."""

    item: Item
    rating: float | None = None
    time: float | None = None


def person_of(user_id: str) -> str:
    """Whose question this is: a second one of user 7 is called 7#2."""
    return user_id.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for one user. It holds no answer: the target lives in qrels."""

    user_id: str
    history: tuple[Interaction, ...]  # oldest first
    candidates: tuple[Item, ...]
    user: Fields = ()  # of the person: age, gender, …
    context: Fields = ()  # of the moment: time of day, session, …

    @property
    def person(self) -> str:
        """Who asks."""
        return person_of(self.user_id)

    @property
    def mean_rating(self) -> float | None:
        """Of the history items that have a rating; None where none has."""
        known = [taken.rating for taken in self.history if taken.rating is not None]
        return sum(known) / len(known) if known else None

    def recent(self, n: int) -> Query:
        """The same query with only the n latest history items (n = 0: none)."""
        return replace(self, history=self.history[len(self.history) - n :] if n else ())


@dataclass(frozen=True, slots=True)
class Demo:
    """The question of another person and its answer, as a place among the candidates: an example to learn from.

    A single candidate may be an answer that was not `liked`.
    """

    query: Query
    answer: int
    liked: bool = True


@dataclass(frozen=True, slots=True)
class Domain:
    """The words for what is recommended: "film", "films", and what one does with it, "watch"."""

    singular: str = "item"
    plural: str = "items"
    verb: str = "choose"


@dataclass(frozen=True, slots=True)
class TemplateRef:
    """Which template made a prompt: its name, the file it came from, sha256 of it and of all it includes."""

    name: str
    origin: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Message:
    """A piece of a prompt. Role "plain" is text without turns; the others are chat turns."""

    role: Literal["plain", "system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads before it answers. `answer_prefix` is the beginning of the answer, put in its mouth.

    `n_shared` characters at the front of the messages are the same for every query of this template and domain.
    """

    messages: tuple[Message, ...]
    answer_prefix: str
    template: TemplateRef
    n_shared: int = 0

    @property
    def text(self) -> str:
        """Everything in the messages, without marks of turns."""
        return "".join(message.text for message in self.messages)

    @property
    def shared_messages(self) -> tuple[Message, ...]:
        """The messages, cut after the characters that are the same for every query."""
        left, cut = self.n_shared, []
        for message in self.messages:
            cut.append(Message(message.role, message.text[:left]))
            left = max(0, left - len(message.text))
        return tuple(cut)

    def __str__(self) -> str:
        """The text as a person would read it, chat turns marked."""
        if self.messages[0].role == "plain":
            return self.messages[0].text + self.answer_prefix
        turns = [f"[{message.role}]\n{message.text}\n" for message in self.messages]
        return "".join(turns) + f"[assistant]\n{self.answer_prefix}"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the continuations of it whose log-probability is asked.

    `labels` says that they are label words, which a backend must be able to tell apart: none may begin another.
    """

    prompt: Prompt
    continuations: tuple[str, ...]
    labels: bool = False


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates of one query, best first, with their scores (higher is better)."""

    user_id: str
    items: tuple[Item, ...]
    scores: tuple[float, ...]
    n_history: int  # history items the recommender really used

    @classmethod
    def from_scores(cls, query: Query, scores: Sequence[float], n_history: int | None = None) -> Ranking:
        """Sort the candidates by score. Equal scores come in an order that depends on the item ids alone.

        That order is for print-outs: metrics take ties at their expectation.
        """
        assert len(scores) == len(query.candidates), "one score per candidate"
        assert all(math.isfinite(score) for score in scores), "scores are finite"
        pairs = sorted(zip(query.candidates, scores, strict=True), key=lambda pair: (-pair[1], _tie_key(pair[0].id)))
        items, ordered = zip(*pairs, strict=True)
        used = len(query.history) if n_history is None else n_history
        return cls(query.user_id, items, tuple(float(score) for score in ordered), used)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the items, best first."""
        return tuple(item.id for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: user_id, n_history, and items as a list of rank, item_id, title, score."""
        return {"user_id": self.user_id, "n_history": self.n_history, "items": self._rows()}

    def to_pandas(self) -> pd.DataFrame:
        """One row per candidate: rank, item_id, title, score."""
        import pandas as pd

        return pd.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"rank": rank, "item_id": item.id, "title": item.title, "score": score}
            for rank, (item, score) in enumerate(zip(self.items, self.scores, strict=True), 1)
        ]

    def __str__(self) -> str:
        width = len(str(len(self.items)))
        return "\n".join(f"{row['rank']:>{width}}  {row['score']:>9.3f}  {row['title']}" for row in self._rows())


@lru_cache(maxsize=1 << 14)
def _tie_key(item_id: str) -> bytes:
    return sha256(item_id.encode("utf-8", "surrogatepass")).digest()
