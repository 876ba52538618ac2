"""Text as a prompt may hold it: one line, no invisible characters. What items are called is data, never layout.

Tokenization, and keeping text away from control tokens, belong to the backends.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_TITLE = 512  # characters; the longest title in the data sets at hand has 230
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069"
    "\ufdd0-\ufdef\ufeff\ufffe\uffff\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=1 << 14)  # a title is shown to many people
def one_line(text: str) -> str:
    """The text in NFC on one line: white space collapsed, control characters dropped, 512 characters kept.

    A newline in a title could otherwise pass for the next candidate, and characters that a tokenizer drops would make
    two titles one. Lone surrogates become U+FFFD. Idempotent.
    """
    text = _INVISIBLE.sub("", _SURROGATE.sub("\ufffd", text))
    text = unicodedata.normalize("NFC", text)  # in this order: what was hidden between may combine
    return _cut(_SPACE.sub(" ", text).strip()).rstrip()


def _cut(text: str) -> str:
    """The beginning that may be shown, without a letter whose accents are beyond it."""
    end = MAX_TITLE
    while 0 < end < len(text) and unicodedata.combining(text[end]):
        end -= 1
    return text[:end]


def shown_title(item_id: str, title: str) -> str:
    """The title as prompts show it; an empty one becomes `item <id>`."""
    return one_line(title) or one_line(f"item {item_id}")


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case, in order, repeated as they are."""
    return _WORD.findall(text.casefold())
