"""The ways in which servers tell log-probabilities, each as a request and what to read in its answer.

| way | a server that has it | tells |
|---|---|---|
| prompt_logprobs | vLLM | log-probabilities of all tokens of a text that it is given |
| echo | OpenAI's first protocol; vLLM | the same |
| top_logprobs | almost all | the likeliest next tokens: enough for labels of one token |

Texts go as token ids, so that no title can become a control token, and no token is added or merged on the way. What is
missing or of another shape raises RemoteError; no number is ever made up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewrec_prompt.errors import RemoteError

Ids = Sequence[int]
_BY_ID = "token_id:"


class Vocabulary:
    """The words of a tokenizer, for servers that name tokens by their text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """What this token says."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def id(self, name: str) -> int | None:
        """The token of a name that a server gave, "token_id:7" or its text; None where several or none say that."""
        if name.startswith(_BY_ID) and name[len(_BY_ID) :].isdecimal():
            return int(name[len(_BY_ID) :])
        return self._ids.get(name)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Tokens by their text, without texts that several have: "A" may be "▁A" or "A"."""
        texts = [self.text(token) for token in range(len(self._tokenizer))]
        counts = Counter(texts)
        return {text: token for token, text in enumerate(texts) if counts[text] == 1}


@dataclass(frozen=True, slots=True)
class Way:
    """How a server that scores given text is asked, and how its answer is read."""

    request: Callable[[Ids], dict[str, Any]]
    read: Callable[[Ids, Mapping[str, Any], Vocabulary], list[float]]


def prompt_logprobs_request(ids: Ids) -> dict[str, Any]:
    return {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}


def read_prompt_logprobs(ids: Ids, answer: Mapping[str, Any], vocabulary: Vocabulary) -> list[float]:
    """Log-probability (nats) of each token but the first."""
    rows = _at(answer, "choices", 0, "prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(ids):
        raise RemoteError(f"prompt_logprobs has {_length(rows)} entries for {len(ids)} tokens")
    found = []
    for token, row in zip(ids[1:], rows[1:], strict=True):
        entry = _at(row, str(token))
        _check_text(vocabulary, token, entry.get("decoded_token") if isinstance(entry, dict) else None)
        found.append(_number(_at(entry, "logprob")))
    return found


def echo_request(ids: Ids) -> dict[str, Any]:
    return {"prompt": list(ids), "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1}


def read_echo(ids: Ids, answer: Mapping[str, Any], vocabulary: Vocabulary) -> list[float]:
    """Log-probability (nats) of each token but the first."""
    told = _at(answer, "choices", 0, "logprobs")
    values = _at(told, "token_logprobs")
    if not isinstance(values, list) or len(values) != len(ids):
        raise RemoteError(f"the echo has {_length(values)} log-probabilities for {len(ids)} tokens")
    names = told.get("tokens")
    for token, name in zip(ids, names if isinstance(names, list) else (), strict=False):
        _check_text(vocabulary, token, name)
    return [_number(value) for value in values[1:]]


WAYS = {"prompt_logprobs": Way(prompt_logprobs_request, read_prompt_logprobs), "echo": Way(echo_request, read_echo)}
LABELS_ONLY = "top_logprobs"


def top_request(ids: Ids, n: int, temperature: float = 0.0) -> dict[str, Any]:
    return {
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": temperature,
        "logprobs": n,
        "return_tokens_as_token_ids": True,  # vLLM; others name tokens by their text
    }


def read_top(ids: Ids, answer: Mapping[str, Any], vocabulary: Vocabulary) -> dict[int, float]:
    """Log-probability (nats) of the likeliest next tokens by id, likeliest first.

    Raises RemoteError if they cannot be probabilities, or if the server read more or fewer tokens than it was given.
    """
    n_read = (answer.get("usage") or {}).get("prompt_tokens", len(ids))
    if n_read != len(ids):
        raise RemoteError(f"it read {n_read} tokens where {len(ids)} were given")
    told = _at(answer, "choices", 0, "logprobs")
    if not isinstance(told, dict):
        raise RemoteError("its answer has no log-probabilities")
    found = dict(_entries(told, vocabulary))
    if not found or sum(map(math.exp, found.values())) > 1 + 1e-3:
        raise RemoteError("the log-probabilities of the likeliest tokens are none, or more than 1 together")
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _entries(told: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[int, float]]:
    """(id, logprob) in either of two shapes: OpenAI's first one, and that of its chat protocol (llama.cpp)."""
    if "content" not in told:
        names = _at(told, "top_logprobs", 0)
        pairs = [(vocabulary.id(name), value) for name, value in names.items()]
        return [(token, _number(value)) for token, value in pairs if token is not None]
    entries = _at(told, "content", 0, "top_logprobs")
    found = []
    for entry in entries:
        token = entry["id"] if isinstance(entry.get("id"), int) else vocabulary.id(str(entry.get("token")))
        if token is not None:
            _check_text(vocabulary, token, entry.get("token"))
            found.append((token, _number(_at(entry, "logprob"))))
    return found


def _check_text(vocabulary: Vocabulary, token: int, told: Any) -> None:
    """Does the server mean the same by a token? White space apart, which some show as a mark and some drop."""
    ours = vocabulary.text(token)
    if not isinstance(told, str) or told.startswith(_BY_ID) or not ours.isascii():
        return
    if "".join(told.split()) not in ("", "".join(ours.split())) and told.isascii():
        raise RemoteError(
            f"token {token} is {told!r} to the server and {ours!r} to the tokenizer here; name its own tokenizer"
        )


def _at(value: Any, *path: str | int) -> Any:
    """The part of a JSON value that lies there. Raises RemoteError if there is none."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise RemoteError(f"its answer has no {'.'.join(map(str, path))}") from None
    return value


def _number(value: Any) -> float:
    """A log-probability. Raises RemoteError for anything else; none is above 0, but for rounding."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
        raise RemoteError(f"its answer has {value!r} where a log-probability should be")
    return float(value)


def _length(value: Any) -> Any:
    return len(value) if isinstance(value, list) else "no"
