"""Servers of a tiny model, and the model without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from _server import FakeServer
from _tiny import TITLES, model, plain, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.remote import connect

MODE = NumericMode("fp32", "a test", "cpu")
LABELS = plain("Question: Yes or No? Answer:", " Yes", " or", labels=True)
ASKED = [plain("Here is a list of films: Heat (1995),", *(f" {title}\n" for title in TITLES[1:4])), LABELS]
VLLM = ("prompt_logprobs", "echo", "top")


def bare() -> CausalBackend:
    """The model without a server between."""
    return CausalBackend(model(n_words=len(tokenizer())), tokenizer(), MODE)


def save_words(folder: Path) -> Path:
    """The tokenizer's own."""
    tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def servers(same: CausalBackend, words: Path, folder: Path) -> Iterator[Callable[..., FakeServer]]:
    """Starts servers of this model that have these ways, and writes a file that names each."""
    with ExitStack() as running:

        def start(*knows: str, **settings: Any) -> FakeServer:
            fake = FakeServer(same.model, tokenizer(), knows)
            running.enter_context(fake.running())
            told = {"url": fake.url, "model": "tiny", "tokenizer": str(words)} | settings
            fake.file = folder / "server.toml"
            fake.file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in told.items()))
            return fake

        yield start


def load(fake, say=lambda line: None):
    return connect.load(str(fake.file), say=say)


def equal(answers, expected):
    for rows, others in zip(answers, expected, strict=True):
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
