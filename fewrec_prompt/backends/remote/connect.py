"""Find out what a server can do. Servers are known to answer wrongly and not to say so: an echo off by one, or ignored.

So each is asked for what can be checked, and used in the first way of ways.py in which it is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends.loading import UNBOUNDED, load_tokenizer
from fewrec_prompt.backends.models import locate_tokenizer
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.backends.remote.backend import RemoteBackend
from fewrec_prompt.backends.remote.client import Client, NotThereError
from fewrec_prompt.backends.remote.server import Server, server_named
from fewrec_prompt.backends.remote.ways import LABELS_ONLY, WAYS, Ids, Vocabulary, read_top, top_request
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.errors import ModelError, RemoteError, did_you_mean

PROBE = "The quick brown fox jumps over the"
TOLERANCE = 0.05  # nats between what a server says of a token to come and of the same token as given


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> RemoteBackend:
    """The model of a server, by address (http://host/v1#model) or TOML file: see server.py.

    Raises ModelError if the server, its model or its tokenizer is not there, or if it is right in no way.
    """
    if numerics != AUTO:
        raise ModelError("a server decides how it computes; give no precision, device, unit or budget with it")
    server = server_named(name)
    folder = locate_tokenizer(server.tokens_of, say)
    tokenizer = load_tokenizer(server.tokens_of, folder)
    client = Client(server)
    window = server.context_window or _served(server, client) or min(tokenizer.model_max_length, UNBOUNDED)
    way = choose_way(server, client, tokenizer, say)
    return RemoteBackend(server, client, tokenizer, way, window, folder)


def _served(server: Server, client: Client) -> int | None:
    """The context window that a server tells of its model. Raises RemoteError if it serves other models only."""
    try:
        models = client.get("/models").get("data")
    except NotThereError:
        return None
    known = {str(one.get("id")): one for one in models if isinstance(one, dict)} if isinstance(models, list) else {}
    if known and server.model not in known:
        raise RemoteError(f"{server.url} serves no model {server.model!r}; {did_you_mean(server.model, known)}")
    told = known.get(server.model, {})
    for window in (told.get("max_model_len"), (told.get("meta") or {}).get("n_ctx")):  # vLLM, llama.cpp
        if isinstance(window, int) and window > 0:
            return window
    return None


def choose_way(server: Server, client: Client, tokenizer: Any, say: Say = quiet) -> str:
    """The first way in which this server is right. Raises RemoteError if there is none.

    It says which token is likeliest to come next, twice. Then it is given the text with both: a way is right if it
    gives as many numbers as there are tokens, and says the same of those two.
    """
    tokens, words, ask = QuestionTokenizer(tokenizer), Vocabulary(tokenizer), partial(_ask, server, client)
    try:
        ids, told = _continued(ask, tokens.start + tokens.text_ids(PROBE), words)
    except RemoteError as error:
        raise RemoteError(f"{server.url} cannot be used: {error}") from None
    wrong = {}
    for name, way in WAYS.items():
        try:
            found = way.read(ids, ask(way.request(ids)), words)[-len(told) :]
        except RemoteError as error:
            wrong[name] = str(error)
            continue
        if max(abs(one - other) for one, other in zip(found, told, strict=True)) <= TOLERANCE:
            return name
        wrong[name] = f"it says {_told(found)} of tokens of which it said {_told(told)} when they were to come"
    say(
        f"{server.url} scores labels of one token only: "
        + "; ".join(f"{name} is wrong or not there ({why})" for name, why in wrong.items())
    )
    return LABELS_ONLY


def _ask(server: Server, client: Client, request: dict[str, Any]) -> dict[str, Any]:
    return client.post("/completions", {"model": server.model} | request)


def _continued(ask: Callable[[dict[str, Any]], dict[str, Any]], ids: Ids, words: Vocabulary) -> tuple[Ids, list[float]]:
    """The text with two likely tokens behind it, and their log-probabilities.

    Raises RemoteError if there are none, or if they change with the temperature: those are of no use.
    """
    told: list[float] = []
    for _ in range(2):
        cold, warm = (read_top(ids, ask(top_request(ids, 5, at)), words) for at in (0.0, 1.0))
        token, logprob = next(iter(cold.items()))
        if abs(warm.get(token, -math.inf) - logprob) > TOLERANCE:
            raise RemoteError("its log-probabilities change with the temperature; they are not the model's own")
        ids, told = (*ids, token), [*told, logprob]
    return ids, told


def _told(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)
