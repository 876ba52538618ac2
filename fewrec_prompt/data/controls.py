"""Queries changed so that they show what a model knows anyway: the same candidates, without history or without titles.

A model may have read a data set before. What a row still gets right without a history is not known from it; what it
gets right when titles are masked is not known from titles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.errors import TaskError, did_you_mean
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Item, Query

Control = Literal["no-history", "masked-titles"]


def controlled(queries: QuerySet, control: Control, seed: int) -> QuerySet:
    """The same users, candidates and answers, with nothing of the histories, or numbers drawn by the seed as titles.

    A masked item has no fields either. Raises TaskError for another control.
    """
    if control not in get_args(Control):
        raise TaskError(f"unknown control {control!r}; {did_you_mean(control, get_args(Control))}")
    if control == "no-history":
        return replace(queries, queries=tuple(replace(query, history=()) for query in queries.queries))
    masks = _masks(queries, seed)
    return replace(queries, queries=tuple(_masked(query, masks) for query in queries.queries))


def _masks(queries: QuerySet, seed: int) -> dict[str, Item]:
    """An item called by a number, all of equal length, for each that is shown to anybody."""
    shown = {item.id for query in queries.queries for item in query.candidates}
    shown |= {taken.item.id for query in queries.queries for taken in query.history}
    numbers = rng_for(seed, "masked titles").permutation(len(shown)).tolist()
    width = len(str(len(shown)))
    named = zip(sorted(shown), numbers, strict=True)
    return {item_id: Item(item_id, f"number {number:0{width}}") for item_id, number in named}


def _masked(query: Query, masks: dict[str, Item]) -> Query:
    history = tuple(replace(taken, item=masks[taken.item.id]) for taken in query.history)
    return replace(query, history=history, candidates=tuple(masks[item.id] for item in query.candidates))
