"""Keep keys out of what is printed: credentials in addresses, and the values of variables that hold secrets.

Run folders need none of this: a header is made of what decides a result, and no key does.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from urllib.parse import quote

_CREDENTIALS = re.compile(r"(\w[\w+.-]*://)\S*@")  # to the last @: a password may hold anything
_QUERY = re.compile(r"(\w[\w+.-]*://[^\s?'\"]*\?)[^\s'\"]+")
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$")
_SHORTEST = 8  # characters: a shorter value stands in other words by chance


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with user, password and query of every address, and every secret of the environment, as "…".

    A secret is the value of a variable whose name ends in TOKEN, KEY, SECRET, PASSWORD or the like. It is found as it
    is, percent-encoded, in base64 and as Python and JSON write it.
    """
    text = _QUERY.sub(r"\1…", _CREDENTIALS.sub(r"\1…@", text))
    for secret in _secrets(os.environ if environment is None else environment):
        text = text.replace(secret, "…")
    return text


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Every form of every secret, longest first: one may be part of another."""
    values = [v for name, v in environment.items() if _SECRET.search(name.upper()) and len(v) >= _SHORTEST]
    return sorted({form for value in values for form in _forms(value)}, key=lambda form: (-len(form), form))


def _forms(value: str) -> Iterator[str]:
    yield from (value, quote(value, safe=""), quote(value), repr(value)[1:-1], json.dumps(value)[1:-1])
    yield b64encode(value.encode("utf-8", "surrogateescape")).decode()
