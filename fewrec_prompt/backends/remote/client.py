"""Talk to a server: JSON there and back, again where it is busy, never for ever; the key goes to the one address only.

Redirects are not followed, proxies and other settings of the environment not used: both would carry the key elsewhere.
What a server says of a key is not repeated, for it may hold a part of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from fewrec_prompt.backends.remote.server import Server
from fewrec_prompt.errors import RemoteError
from fewrec_prompt.redaction import without_secrets

BUSY = {408, 425, 429, 500, 502, 503, 504}
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds; each wait is twice the one before
MAX_BYTES = 64 * 1024 * 1024  # of an answer
SHOWN = 300  # characters of what a server says


class _BusyError(Exception):
    """A request that may succeed later: why, and how many seconds the server wants to be left alone."""

    def __init__(self, why: str, seconds: float = 0.0) -> None:
        super().__init__(why)
        self.seconds = seconds


class NotThereError(RemoteError):
    """The server has nothing at this path."""


class Client:
    """One server. May be used by several threads."""

    def __init__(self, server: Server, sleep: Callable[[float], None] = time.sleep) -> None:
        self._server, self._sleep = server, sleep
        self._key = _key(server.key_variable)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(
            headers=headers, timeout=server.timeout, follow_redirects=False, trust_env=False, limits=_limits(server)
        )

    def get(self, path: str) -> dict[str, Any]:
        """What the server says at this path. Raises RemoteError as `post` does."""
        return self._answer("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to this body. Raises RemoteError that says what was wrong, after bounded retries."""
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        for attempt in range(self._server.retries + 1):
            try:
                return self._once(method, path, body)
            except _BusyError as error:
                why, wait = str(error), max(error.seconds, FIRST_WAIT * 2**attempt)
            if attempt == self._server.retries or wait > LONGEST_WAIT:
                break
            self._sleep(wait)
        raise RemoteError(f"{self._server.url}: {why}; asked {attempt + 1} times. What was scored before is kept")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            with self._http.stream(method, self._server.url + path, json=body) as reply:
                text = self._body(reply)
        except httpx2.TimeoutException:
            raise _BusyError(f"no answer within {self._server.timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _BusyError(f"no connection ({self._cleaned(str(error)) or type(error).__name__})") from None
        self._check(reply, text)
        try:
            found = json.loads(text)
        except ValueError:
            raise _BusyError("its answer is not valid JSON") from None
        if not isinstance(found, dict):
            raise RemoteError(f"{self._server.url}: its answer is not a JSON object")
        return found

    def _body(self, reply: httpx2.Response) -> bytes:
        """All of it, in no more than the time and the memory that an answer may take."""
        end, parts, size = time.monotonic() + self._server.timeout, [], 0
        for part in reply.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise RemoteError(f"{self._server.url}: its answer is longer than {MAX_BYTES} bytes")
            if time.monotonic() > end:
                raise _BusyError(f"no whole answer within {self._server.timeout:g} s")
        return b"".join(parts)

    def _check(self, reply: httpx2.Response, text: bytes) -> None:
        code, url = reply.status_code, self._server.url
        if code in BUSY:
            raise _BusyError(f"it answered {code}", _retry_after(reply.headers.get("Retry-After")))
        if code in (401, 403):
            held = "is not accepted" if self._key else "is not set"
            raise RemoteError(f"{url}: it answered {code}; the key in ${self._server.key_variable} {held}")
        if 300 <= code < 400:
            raise RemoteError(f"{url}: it answered {code}, a redirect, which is not followed; give the final address")
        if code == 404:
            raise NotThereError(f"{url}: it answered 404 to {reply.url.path}; is the address right?")
        if code >= 400:
            told = self._cleaned(text.decode("utf-8", "replace"))
            raise RemoteError(f"{url}: it answered {code}: {told}")

    def _cleaned(self, text: str) -> str:
        text = " ".join(text.split())
        if self._key:
            text = without_secrets(text, {"KEY": self._key}).replace(self._key, "…")
        return without_secrets(text)[:SHOWN]


def _key(variable: str) -> str:
    """The key, or "" where none is set. Raises RemoteError for one that no header can carry, without showing it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RemoteError(f"the key in ${variable} holds characters that no key has; it must be printable ASCII")
    return key


def _limits(server: Server) -> httpx2.Limits:
    return httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)


def _retry_after(value: str | None) -> float:
    """Seconds, from a number or a date (RFC 9110, section 10.2.3); 0 for anything else."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(str(value)) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
