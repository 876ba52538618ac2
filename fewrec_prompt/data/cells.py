"""What one cell of a table may hold: from a raw value to an id, a text, a number or a list of them.

Ids and texts stay as they were written: "007", "NA" and "None" are text, and nothing is taken for a missing value but
an absent one. A CellError says what was wrong with the value; where it stood is known to the file that read it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal, NoReturn

Kind = Literal["id", "text", "number", "time", "ids", "numbers", "id_or_ids"]
Parse = Callable[[Any], Any]
MISSING = math.nan  # of a number
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


class CellError(ValueError):
    """A value that is not what its column should hold."""


def item_or_user_id(raw: Any) -> str:
    """An id: text as it stands, or a whole number in its decimal digits. Never empty, never a fraction."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    if raw is None:
        raise CellError("the id is missing")
    # A float has lost what was written: 007, 7 and 7.0 are one number, and 2**53 + 1 is none.
    if not isinstance(raw, str):
        raise CellError(f"expected an id (text), found {shown(raw)}")
    if not raw.strip():
        raise CellError("the id is empty")
    return _encodable(raw)


def text(raw: Any) -> str:
    """Text as it stands; an absent one is empty."""
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise CellError(f"expected text, found {shown(raw)}")
    return _encodable(raw)


def number(raw: Any) -> float:
    """A number, or NaN where there is none. Infinity is refused."""
    if raw is None:
        return MISSING
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise CellError(f"expected a number, found {shown(raw)}")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if math.isinf(value):
        raise CellError(f"expected a finite number, found {shown(raw)}")
    return value


def ids(raw: Any) -> tuple[str, ...]:
    """A list of ids, in order; an absent one is empty."""
    return tuple(item_or_user_id(entry) for entry in _entries(raw, "ids"))


def numbers(raw: Any) -> tuple[float, ...]:
    """A list of numbers, NaN for those that are not known; an absent list is empty."""
    return tuple(number(entry) for entry in _entries(raw, "numbers"))


def id_or_ids(raw: Any) -> tuple[str, ...]:
    """One id or a list of them, as a tuple; absent or empty text gives none."""
    if raw is None or raw == "":
        return ()
    return ids(raw) if isinstance(raw, list) else (item_or_user_id(raw),)


def written_number(raw: str | None) -> float:
    """A number written as text; nothing written is NaN."""
    if not raw:
        return MISSING
    try:
        value = float(raw)
    except ValueError:
        value = math.inf
    if not math.isfinite(value) or "_" in raw:
        raise CellError(f"expected a number, found {shown(raw)}")
    return value


def json_value(source: str) -> Any:
    """Strict JSON: no NaN or Infinity, no key twice in one object."""
    try:
        return json.loads(source, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise CellError(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise CellError(f"not valid JSON: {error}") from None


PARSE: Mapping[Kind, Parse] = {
    "id": item_or_user_id,
    "text": text,
    "number": number,
    "time": lambda raw: _moment(raw) if isinstance(raw, str | date) else number(raw),
    "ids": ids,
    "numbers": numbers,
    "id_or_ids": id_or_ids,
}
"""For values that carry their type: JSON and parquet."""

PARSE_WRITTEN: Mapping[Kind, Parse] = {
    "id": item_or_user_id,
    "text": text,
    "number": written_number,
    "time": lambda raw: _moment(raw) if raw and _DATE.match(raw) else written_number(raw),
    "ids": lambda raw: ids(_written_list(raw)),
    "numbers": lambda raw: numbers(_written_list(raw)),
    "id_or_ids": lambda raw: id_or_ids(_written_list(raw) if raw and raw.lstrip().startswith("[") else raw),
}
"""For cells of CSV and the like, where all is text and a list is a JSON array."""


def shown(raw: Any) -> str:
    """A value as an error message shows it: its kind, and the beginning of it."""
    kind = {bool: "true or false", int: "the number", float: "the number", str: "the text", list: "a list"}
    start = repr(raw)
    return f"{kind.get(type(raw), type(raw).__name__)} {start if len(start) <= 60 else start[:57] + '...'}"


def _moment(raw: str | date) -> float:
    """Seconds since 1970 of an ISO 8601 date or time; one without a zone is taken as UTC."""
    try:
        moment = datetime.fromisoformat(raw if isinstance(raw, str) else raw.isoformat())
    except ValueError:
        raise CellError(f"expected a time, such as 1577836800 or 2020-01-01 12:00:00, found {shown(raw)}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _entries(raw: Any, what: str) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise CellError(f"expected a list of {what}, found {shown(raw)}")
    return raw


def _written_list(raw: str | None) -> Any:
    if not raw:
        return None
    try:
        return json_value(raw)
    except CellError as error:
        raise CellError(f'expected a JSON list such as ["7", "12"], found {shown(raw)}; {error}') from None


def _encodable(raw: str) -> str:
    """The text, if it is text: JSON can spell half a character ("\\ud800") that no file can hold."""
    try:
        raw.isascii() or raw.encode()
    except UnicodeEncodeError:
        raise CellError(f"not valid Unicode: {shown(raw)}") from None
    return raw


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice!r} stands twice")
    return found
