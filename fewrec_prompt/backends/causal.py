"""GPT-style language models through transformers: load, then log-probabilities of continuations.

A question goes through tokens.py (text to ids) and engine.py (ids to log-probabilities).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from safetensors import SafetensorError

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Identity
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.identity import CODE, computation, identify, is_tuned, libraries, machine
from fewrec_prompt.backends.memory import keep_few_kernels
from fewrec_prompt.backends.models import ModelFiles, locate
from fewrec_prompt.backends.plan import plan
from fewrec_prompt.backends.precision import AUTO, NumericMode, Numerics, loading_options, numeric_mode
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens, digest
from fewrec_prompt.backends.probe import choose_layout, rounding
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.backends.trie_reader import TrieReader
from fewrec_prompt.catalogue import Found, Rule, best_titles, build_trie
from fewrec_prompt.errors import ModelError, NumericError
from fewrec_prompt.types import Question, TokenLogprobs

SLOWER = {
    "expanded": "candidates are scored in a batch behind their prompt's cache, not in one tree",
    "plain": "candidates are scored one at a time",
}
UNBOUNDED = 8192  # tokens of context for a model that names no limit, so that a pass has one


class CausalBackend:
    """A causal language model that answers questions, perhaps behind a learned prefix. Not for two threads at once.

    `adapter` is the sha256 of weights that were learned and sit inside the model. Whoever changes weights says so here,
    or sets `files` to None: else they would share their kept answers with the model that the files hold.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mode: NumericMode,
        files: ModelFiles | None = None,
        soft: SoftTokens | KeyValues | None = None,
        adapter: str | None = None,
    ) -> None:
        self.adapter = adapter
        self.model = model.eval()
        self.tokens = QuestionTokenizer(tokenizer)
        self.mode = mode
        self.files = files
        self.engine = Engine(model, mode.layout, unit=mode.unit, token_budget=mode.token_budget, soft=soft)
        self.context_window = _context_window(model.config.get_text_config(), tokenizer)

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence this question makes: learned prefix, prompt and continuation."""
        return self.engine.n_learned + max(len(sequence.ids) for sequence in self.tokens.encode(question))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that is part of no question yet."""
        return len(self.tokens.text_ids(text))

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens that answering these questions together computes, as long as nothing of them is kept."""
        planned = plan([sequence for question in questions for sequence in self.tokens.encode(question)])
        return planned.n_naive if self.mode.layout == "plain" else planned.n_computed

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """The k continuations that score best under the rule, without scoring all: see catalogue.py.

        Offsets of the rule are in the order of the continuations; of equal ones the first stands for all. Raises
        ModelError for a model that cannot be packed.
        """
        if self.mode.layout != "packed":
            raise ModelError("this model takes no tree mask; searching a catalogue needs one that does")
        sequences = self.engine.prefixed(self.tokens.encode(question))
        start = sequences[0].scored_from
        trie = build_trie(tuple(sequence.ids[start:] for sequence in sequences))
        reader = TrieReader(self.engine.searchable_body(), sequences[0].ids[:start], trie)
        return best_titles(trie, rule, reader, k, budget=budget)

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-probability of each token of each continuation after its prompt, in nats.

        One entry per question in the order asked: a float64 row (n_tokens,) per continuation; with `grad`, torch rows
        that gradients flow through. Raises NumericError if one is not finite.
        """
        encoded = [self.tokens.encode(question) for question in questions]
        sequences = [sequence for group in encoded for sequence in group]
        with torch.set_grad_enabled(grad):
            rows: list[Any] = self.engine.logprobs(sequences)
        if not all(bool(torch.isfinite(row).all()) for row in rows):
            raise NumericError("the model returned log-probabilities that are not finite; try --precision fp32")
        if not grad:
            rows = [row.double().cpu().numpy() for row in rows]
        ends = list(accumulate(len(group) for group in encoded))
        return [tuple(rows[end - len(group) : end]) for group, end in zip(encoded, ends, strict=True)]

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """The name of the answers to these questions, asked together; None where nothing says what the model is.

        That is a model made in memory, one with adapters of unknown content, or one in training.
        """
        unknown = is_tuned(self.model) and self.adapter is None
        if self.files is None or unknown or self.model.training:
            return None
        return identify([one for question in questions for one in self.tokens.encode(question)], self._facts())

    def _facts(self) -> dict[str, Any]:
        assert self.files is not None, "a model without files has no identity"
        return {
            "model": self.files.sha256,
            "adapter": self.adapter,
            "prefix": digest(self.engine.soft),
            "computation": computation(self.mode, self.engine.token_budget),
            "machine": machine(self.model),
            "libraries": libraries(self.mode.precision),
            "code": CODE,
        }


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> CausalBackend:
    """The causal model called `name` (embedded asset, local folder or hub id), ready to answer.

    Raises ModelError if files are missing or the precision cannot be had here.
    """
    mode = numeric_mode(numerics)
    say(f"precision {mode.precision} on {mode.device} ({mode.reason})")
    files = locate(name, say)
    keep_few_kernels()
    tokenizer, model = _tokenizer(files), _model(files, mode)
    layout, reason = choose_layout(model)
    if reason:
        say(f"{name}: {SLOWER[layout]}, because {reason}")
    if model.dtype != torch.float32 and layout != "plain":
        apart = rounding(model, layout)
        say(f"{name}: in 16 bits, {layout} and plain scores of a small random copy differ by up to {apart:.2g} nats")
    used = replace(mode, attention=model.config._attn_implementation, layout=layout)
    return CausalBackend(model, tokenizer, used, files)


def load_tokens(name: str, *, say: Say = quiet) -> QuestionTokenizer:
    """Only the tokenizer of a model: what it makes of a question, without reading any weights."""
    return QuestionTokenizer(_tokenizer(locate(name, say)))


def load_reader(name: str, *, say: Say = quiet) -> tuple[QuestionTokenizer, int]:
    """The tokenizer of a model, and how many tokens the model reads; no weights are read."""
    from transformers import AutoConfig

    files = locate(name, say)
    tokenizer = _tokenizer(files)
    with _loading(files):
        config = AutoConfig.from_pretrained(files.folder).get_text_config()
    return QuestionTokenizer(tokenizer), _context_window(config, tokenizer)


def _model(files: ModelFiles, mode: NumericMode) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with _loading(files):
        model, found = AutoModelForCausalLM.from_pretrained(
            files.folder, use_safetensors=True, output_loading_info=True, **loading_options(mode)
        )
    # transformers fills what a checkpoint lacks with random numbers and goes on.
    if lacking := sorted(found["missing_keys"]):
        raise ModelError(f"{files.name}: {len(lacking)} weights are missing in {files.folder}, such as {lacking[0]!r}")
    return model


def _tokenizer(files: ModelFiles) -> Any:
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _loading(files):
        return AutoTokenizer.from_pretrained(files.folder)


@contextmanager
def _loading(files: ModelFiles) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{files.name}: cannot be loaded from {files.folder}: {error}") from error


def _context_window(config: Any, tokenizer: Any) -> int:
    """Positions the model was made for; where it counts none (ALiBi, recurrence), what its tokenizer allows."""
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions or min(tokenizer.model_max_length, UNBOUNDED))
