"""Histories, candidates and catalogues as a caller gives them: items, or plain titles that stand for themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fewrec_prompt.errors import DataError
from fewrec_prompt.text import one_line, shown_title
from fewrec_prompt.types import Interaction, Item, Query


def of_titles(history: Sequence[str], candidates: Sequence[str], user_id: str = "user") -> Query:
    """A query from titles alone; an item's id is its title. Raises DataError for empty or repeated input."""
    seen, offered = items_of("history", history), items_of("list of candidates", candidates)
    if repeated := _repeated(offered):
        raise DataError(f"candidate {repeated!r} is given more than once; each candidate once")
    return Query(user_id, tuple(map(Interaction, seen)), offered)


def taken_of(catalogue: Sequence[Item], history: Sequence[str | Item]) -> tuple[Item, ...]:
    """A history as items: a plain title that the catalogue has is that item, else it stands for itself.

    Raises DataError as `items_of`, and for a title that several items of the catalogue have.
    """
    items = items_of("history", history)
    named: dict[str, list[Item]] = {one: [] for one in history if not isinstance(one, Item)}
    for item in catalogue:
        if item.title in named:
            named[item.title].append(item)
    return tuple(
        one if isinstance(one, Item) else _called(item, named[one]) for item, one in zip(items, history, strict=True)
    )


def catalogue_of(given: Sequence[str | Item]) -> tuple[Item, ...]:
    """The items of a catalogue. Raises DataError as `items_of` does, and for an id that stands twice."""
    items = items_of("catalogue", given)
    if repeated := _repeated(items):
        raise DataError(f"item {repeated!r} stands twice in the catalogue; ids must be unique")
    return items


def items_of(what: str, given: Sequence[str | Item]) -> tuple[Item, ...]:
    """Items as they are, titles as items. Raises DataError, which calls them `what`, for a bare text and for none."""
    if isinstance(given, str):
        raise DataError(f"the {what} is the text {given!r}; give a list of titles")
    if not given:
        raise DataError(f"the {what} is empty; give at least one title")
    for place, one in enumerate(given, 1):
        if not (shown_title(one.id, one.title) if isinstance(one, Item) else one_line(one)):
            raise DataError(f"title {place} of the {what} is empty")
    return tuple(one if isinstance(one, Item) else Item(one, one) for one in given)


def _called(plain: Item, found: Sequence[Item]) -> Item:
    """The one item that was found by a title, or the title by itself."""
    if len(found) > 1:
        ids = ", ".join(item.id for item in found[:3])
        raise DataError(
            f"{len(found)} items of the catalogue are called {plain.title!r} ({ids}); give the item, not its title"
        )
    return found[0] if found else plain


def _repeated(items: Sequence[Item]) -> str | None:
    return next((item_id for item_id, count in Counter(item.id for item in items).items() if count > 1), None)
