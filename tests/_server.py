"""A server of OpenAI's protocol over a tiny model, which can be told to answer in each way that servers get wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Body = dict[str, Any]


class FakeServer:
    """Serves `model` as "tiny". `faults` are taken one a request, before any answer; `asked` keeps headers and bodies.

    `knows` says which ways it has: "prompt_logprobs", "echo", "content" (top tokens with ids) or "top" (by text).
    """

    def __init__(self, model: Any, tokenizer: Any, knows: Sequence[str]) -> None:
        self.model, self.tokenizer, self.knows = model, tokenizer, set(knows)
        self.faults: list[Callable[[BaseHTTPRequestHandler], bool]] = []
        self.asked: list[tuple[str, dict[str, str], Body]] = []
        self.change: Callable[[Body, Body], Body] = lambda _, answer: answer
        self.models: Body | None = {"data": [{"id": "tiny", "max_model_len": 200}]}
        self.url = ""
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def answer(self, body: Body) -> Body:
        """What a server that is right says."""
        ids = body["prompt"]
        table = self._table(ids)
        choice: Body = {"text": "x", "logprobs": None}
        if "prompt_logprobs" in body and "prompt_logprobs" in self.knows:
            choice["prompt_logprobs"] = [
                None,
                *({str(t): self._entry(t, row[t])} for t, row in self._pairs(ids, table)),
            ]
        elif body.get("echo") and "echo" in self.knows:
            values = [None, *(row[token].item() for token, row in self._pairs(ids, table))]
            choice["logprobs"] = {"tokens": [self._text(token) for token in ids], "token_logprobs": values}
        elif body.get("logprobs"):
            choice["logprobs"] = self._top(table[-1], body["logprobs"])
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def _table(self, ids: Sequence[int]) -> torch.Tensor:
        with self._lock, torch.no_grad():
            found: torch.Tensor = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return found

    def _pairs(self, ids: Sequence[int], table: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        return zip(ids[1:], table, strict=False)

    def _top(self, row: torch.Tensor, n: int) -> Body:
        values, tokens = row.topk(n)
        entries = [self._entry(token, value) for token, value in zip(tokens.tolist(), values, strict=True)]
        if "content" in self.knows:
            shown = [{"id": one["id"], "token": one["decoded_token"], "logprob": one["logprob"]} for one in entries]
            return {"content": [shown[0] | {"top_logprobs": shown}]}
        return {"top_logprobs": [{one["decoded_token"]: one["logprob"] for one in entries}]}

    def _entry(self, token: int, value: torch.Tensor) -> Body:
        return {"id": token, "logprob": value.item(), "decoded_token": self._text(token)}

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Answer at `url` until the end of the block."""
        http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.reply(self, {}, lambda _: fake.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.reply(self, body, lambda given: fake.change(given, fake.answer(given)))

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler

    def reply(self, to: BaseHTTPRequestHandler, body: Body, answer: Callable[[Body], Body | None]) -> None:
        with self._lock:
            self.asked.append((to.path, dict(to.headers), body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self.faults.pop(0) if self.faults else None
        done = fault is not None and fault(to)
        found = None if done else answer(body)
        with self._lock:
            self._at_once -= 1
        if not done:
            send(to, 404 if found is None else 200, json.dumps(found).encode())


def send(to: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    to.send_response(status)
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.send_header("Content-Length", str(len(content)))
    to.end_headers()
    to.wfile.write(content)


def status(code: int, content: bytes = b"no", **headers: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    """A fault: this status in place of the answer."""

    def fault(to: BaseHTTPRequestHandler) -> bool:
        send(to, code, content, **headers)
        return True

    return fault


def slow(seconds: float) -> Callable[[BaseHTTPRequestHandler], bool]:
    """A fault: the answer comes, but late."""

    def fault(_: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def half(to: BaseHTTPRequestHandler) -> bool:
    """A fault: the connection ends in the middle of an answer."""
    to.send_response(200)
    to.send_header("Content-Length", "1000")
    to.end_headers()
    to.wfile.write(b'{"choices": [')
    to.close_connection = True
    return True
