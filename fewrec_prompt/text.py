"""Text as a prompt may hold it: one line, no invisible characters. What items are called is data, never layout.

Tokenization, and keeping text away from control tokens, belong to the backends.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_TITLE = 512  # characters; the longest title in the data sets at hand has 230
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=1 << 14)  # a title is shown to many people
def one_line(text: str) -> str:
    """The text in NFC on one line: white space collapsed, control characters dropped, 512 characters kept.

    A newline in a title could otherwise pass for the next candidate, and characters that a tokenizer drops would make
    two titles one. Lone surrogates become U+FFFD. Idempotent.
    """
    text = text.encode("utf-8", "replace").decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in text) else text
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))  # in this order: what was hidden between may combine
    return _SPACE.sub(" ", text).strip()[:MAX_TITLE].rstrip()


def shown_title(item_id: str, title: str) -> str:
    """The title as prompts show it; an empty one becomes `item <id>`."""
    return one_line(title) or one_line(f"item {item_id}")


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case, in order, repeated as they are."""
    return _WORD.findall(text.casefold())
