"""Filters of templates: what people do with a history, and the few of Jinja's own that a prompt needs.

A filter takes records, texts and numbers and gives texts, numbers and lists of them. How much work they may do is
counted in counting.py; prompts/README.md shows each with an example.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import pass_context
from jinja2.filters import FILTERS as OF_JINJA
from jinja2.runtime import Context, Undefined

from fewrec_prompt.counting import counted, spend
from fewrec_prompt.sandbox import Record

COUNT_TOKENS = " count tokens"  # in a template's context; no template can name it
LIKED = 4.0  # stars
CALENDAR = 1e8  # seconds since 1970, in 1973; what is smaller is a position in a list and no time
_UNITS = (
    ("year", 31_536_000),
    ("month", 2_592_000),
    ("week", 604_800),
    ("day", 86_400),
    ("hour", 3600),
    ("minute", 60),
)
_WORDS = re.compile(r"\S+")


class Moment(float):
    """A time in seconds since 1970 that knows the latest one of its query: what `ago` counts from."""

    __slots__ = ("latest",)
    latest: float

    @classmethod
    def of(cls, seconds: float, latest: float) -> Moment:
        made = cls(seconds)
        made.latest = latest
        return made


def titles(items: Sequence[Record]) -> tuple[str, ...]:
    """The titles of items, as a list of texts."""
    return tuple(item.title for item in _listed(items, "titles"))


def numbered(entries: Sequence[Any]) -> str:
    """Items by their titles, or texts, one a line, with a number before each."""
    shown = (entry.title if isinstance(entry, Record) else entry for entry in _listed(entries, "numbered"))
    return "\n".join(f"{place}. {text}" for place, text in enumerate(shown, 1))


def recent(items: Sequence[Any], n: int) -> Sequence[Any]:
    """The last n of a list, or all if there are fewer."""
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"recent({n!r}): give a whole number, 0 or more")
    return _listed(items, "recent")[max(0, len(items) - n) :]


def liked(items: Sequence[Record], threshold: float = LIKED) -> tuple[Record, ...]:
    """Items whose rating is `threshold` or more; items without a rating are not among them."""
    return tuple(
        item for item in _listed(items, "liked") if (rating := _rating(item)) is not None and rating >= threshold
    )


def disliked(items: Sequence[Record], threshold: float = LIKED) -> tuple[Record, ...]:
    """Items whose rating is less than `threshold`; items without a rating are not among them."""
    return tuple(
        item for item in _listed(items, "disliked") if (rating := _rating(item)) is not None and rating < threshold
    )


def genres(items: Record | Sequence[Record], field: str = "genres") -> tuple[str, ...]:
    """The distinct words of a field that holds several, parted by commas or bars, the most frequent first.

    Takes an item or a list of items; those without the field add nothing.
    """
    shelf = [items] if isinstance(items, Record) else _listed(items, "genres")
    found = (word.strip() for item in shelf for word in re.split("[,|]", str(getattr(item, field, ""))))
    return tuple(word for word, _ in Counter(filter(None, found)).most_common())  # ties stay in the order they came


def ago(time: Moment) -> str:
    """How long before the latest time of the query's history this was, in its largest whole unit."""
    if not isinstance(time, Moment):
        raise TypeError(f"ago takes the time of a history item, as in seen.time|ago, not {time!r}")
    if time < CALENDAR:
        raise ValueError(f"ago needs times of a calendar, in seconds since 1970; {time:g} is a position in a list")
    passed = time.latest - time
    unit, seconds = next(((unit, seconds) for unit, seconds in _UNITS if passed >= seconds), ("", 0))
    if not unit:
        return "just now"
    n = int(passed // seconds)
    return f"{n} {unit}{'s' if n > 1 else ''} ago"


@pass_context
def truncate_tokens(context: Context, text: str, n: int) -> str:
    """The longest beginning of a text that ends with a word and is at most n tokens of the model that will read it.

    Counted by the model's own tokenizer, on the text alone: where it stands in the prompt, its first token may merge
    with what is before it. Without a model there is no count, and it is an error.
    """
    count: Callable[[str], int] | None = context.parent.get(COUNT_TOKENS)
    if count is None:
        raise ValueError("truncate_tokens counts with a model's tokenizer, and there is no model here; name one")
    ends = [0, *(match.end() for match in _WORDS.finditer(text))]
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high + 1) // 2
        spend(ends[middle])
        low, high = (middle, high) if count(text[: ends[middle]]) <= n else (low, middle - 1)
    return text[: ends[low]]


def rounded(number: float, precision: int = 0) -> float | int:
    """A number to so many places, 0 to 15; a whole number without a point if precision is 0."""
    if not 0 <= precision <= 15:
        raise ValueError(f"round({precision!r}): give 0 to 15 places")
    return round(number, precision) if precision else round(number)


def replaced(text: str, old: str, new: str) -> str:
    """The text with every `old` changed to `new`."""
    text = str(text)
    spend((text.count(old)) * len(new))
    return text.replace(old, new)


def joined(values: Sequence[Any], between: str = "") -> str:
    """Texts and numbers in a row, with `between` between each two."""
    shown = [str(value) for value in _listed(values, "join")]
    spend(len(shown) * len(between))
    return between.join(shown)


OWN: Mapping[str, Callable[..., Any]] = {
    "titles": titles,
    "numbered": numbered,
    "recent": recent,
    "liked": liked,
    "disliked": disliked,
    "genres": genres,
    "ago": ago,
    "truncate_tokens": truncate_tokens,
}
_OF_LISTS = ("first", "last", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr")
_OF_TEXT = ("capitalize", "lower", "title", "trim", "truncate", "upper", "wordcount")
_OF_VALUES = ("abs", "count", "d", "default", "float", "int", "length", "string")


def _for_lists(name: str) -> Callable[..., Any]:
    """Jinja's filter, refusing text: it would be parted into its letters."""
    function = OF_JINJA[name]

    def run(*args: Any, **named: Any) -> Any:
        _listed(args[place], name)
        return function(*args, **named)

    if mark := getattr(function, "jinja_pass_arg", None):
        run.jinja_pass_arg = mark  # type: ignore[attr-defined]  # how Jinja knows what to pass first
    place = 1 if mark else 0
    return run


def _listed(values: Any, name: str) -> Sequence[Any]:
    if isinstance(values, Undefined):
        values._fail_with_undefined_error()
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name} takes a list, not a {type(values).__name__}")
    return values


def _rating(item: Any) -> float | None:
    return getattr(item, "rating", None)


_ALL: Mapping[str, Callable[..., Any]] = {
    **{name: OF_JINJA[name] for name in (*_OF_TEXT, *_OF_VALUES)},
    **{name: _for_lists(name) for name in (*_OF_LISTS, "sort", "sum", "unique")},
    "join": joined,
    "replace": replaced,
    "round": rounded,
    **OWN,
}
FILTERS: Mapping[str, Callable[..., Any]] = {name: counted(function) for name, function in _ALL.items()}
"""All that templates may use, their work counted."""
