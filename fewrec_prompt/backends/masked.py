"""BERT-style language models: a continuation is masked, token by token, and read where the masks stand.

The sum of a row is a pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659); of a label word of one token it is
the cloze: the log-probability of the word at one mask behind the prompt. With the layout "pll-l2r" the later tokens of
the same word are masked too, for a model guesses a token too well from the rest of its word (Kauf and Ivanova 2023,
arXiv 2305.10588): a label word of several tokens then stands at several masks, filled from the left.

A pseudo-log-likelihood is not the logarithm of a probability, and every token of it costs a sequence of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Identity
from fewrec_prompt.backends.answers import as_answers
from fewrec_prompt.backends.loading import context_window, load_tokenizer, load_weights
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.memory import keep_few_kernels
from fewrec_prompt.backends.models import ModelFiles, locate
from fewrec_prompt.backends.padded import Passes, head_sees, mean_pooled, pad, read_words
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import AUTO, NumericMode, Numerics, numeric_mode
from fewrec_prompt.backends.prefix import KeyValues, Soft, inputs, n_kept, prefixed, seeing_kept, virtual_ids
from fewrec_prompt.catalogue import Found, Rule
from fewrec_prompt.errors import ModelError
from fewrec_prompt.types import Prompt, Question, TokenLogprobs

PLL, PLL_L2R = "pll", "pll-l2r"
_KINDS = {PLL: "masked", PLL_L2R: "masked-l2r"}


class Cloze(NamedTuple):
    """A masked sequence, the place that is read, and the token asked for there."""

    ids: tuple[int, ...]
    column: int
    token: int


class Masked(NamedTuple):
    """A row of a pass: a masked sequence, the place that is read, and all tokens asked for there."""

    ids: tuple[int, ...]
    column: int
    tokens: tuple[int, ...]


class MaskedBackend(LocalBackend):
    """A masked language model that answers questions, perhaps behind a learned prefix. Not for two threads at once.

    `mode.layout` is "pll" or "pll-l2r".
    """

    task_type = "FEATURE_EXTRACTION"  # PEFT has no word for filling in blanks

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mode: NumericMode,
        files: ModelFiles | None = None,
        soft: Soft = None,
        adapter: str | None = None,
    ) -> None:
        assert mode.layout in _KINDS, "a masked model has its own layouts"
        if tokenizer.mask_token_id is None:
            raise ModelError("the tokenizer of this masked model names no mask token (mask_token)")
        super().__init__(model, tokenizer, mode, files, adapter)
        self.kind, self.soft = _KINDS[mode.layout], soft
        self.context_window = context_window(model.config, tokenizer) - _positions_before(model)
        self._mask = int(tokenizer.mask_token_id)
        self._pad = int(model.config.pad_token_id or 0)  # RoBERTa counts positions by it
        self._passes = Passes(mode)

    @property
    def token_budget(self) -> int:
        """Tokens of a pass; fewer once memory has run out."""
        return self._passes.token_budget

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence this question makes: all that is before it, continuation, what ends a text."""
        return n_kept(self.soft) + max(len(sequence.ids) for sequence in self._encode(question))

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens of all masked sequences of these questions, equal ones counted once."""
        clozes = {(one.ids, one.column) for row in self._rows(questions) for one in row}
        return sum(len(ids) for ids, _ in clozes)

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """Raises ModelError: a pseudo-log-likelihood has no beginning that bounds it."""
        raise ModelError("a masked model cannot search a catalogue; use a causal one, or rank candidates")

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-probability (nats) of each token of each continuation where it is masked, with all that is not.

        One entry per question in the order asked: a float64 row (n_tokens,) per continuation; with `grad`, torch rows
        that gradients flow through. Raises NumericError if one is not finite.
        """
        self.switch.use(self.adapter_name)
        asked = self._rows(questions)
        with torch.set_grad_enabled(grad):
            found = self._read({cloze for row in asked for cloze in row})
            rows = [torch.stack([found[cloze] for cloze in row]) for row in asked]
        return as_answers(rows, [len(question.continuations) for question in questions], grad=grad)

    def keys_and_values(self, ids: tuple[int, ...]) -> KeyValues:
        """What every layer keeps of these tokens by themselves. Raises ModelError for a family that keeps nothing."""
        from transformers import DynamicCache

        self.switch.use(self.adapter_name)
        cache = DynamicCache()
        self.model.base_model(input_ids=torch.tensor([ids], device=self.model.device), past_key_values=cache)
        return KeyValues.of(cache)

    def hidden(self, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
        """Means of the last hidden states over each prompt's tokens: (n_prompts, width) in fp32; torch with `grad`."""
        self.switch.use(self.adapter_name)
        virtual = virtual_ids(self.soft)
        rows = [virtual + self.tokens.prompt_ids(prompt) + self.tokens.end for prompt in prompts]
        with torch.set_grad_enabled(grad):
            found = self._passes(rows, len, self._pooled)
            states = torch.stack([found[row] for row in rows])
        return states if grad else np.asarray(states.cpu().numpy())

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """The name of the answers to these questions, asked together; None where nothing says what the model is."""
        return self._named([sequence for question in questions for sequence in self._encode(question)])

    def _encode(self, question: Question) -> list[TokenSequence]:
        return [replace(one, ids=one.ids + self.tokens.end) for one in self._begun(question)]

    def _begun(self, question: Question) -> Sequence[TokenSequence]:
        """Each continuation behind its prompt and what is learned before that; nothing ends it yet."""
        return prefixed(self.soft, self.tokens.encode(question))

    def _rows(self, questions: Sequence[Question]) -> list[tuple[Cloze, ...]]:
        """For each continuation, in order, a cloze a token."""
        return [row for question in questions for row in self._clozes(question)]

    def _clozes(self, question: Question) -> Iterator[tuple[Cloze, ...]]:
        words = self.tokens.word_numbers(question) if self.mode.layout == PLL_L2R else None
        before: tuple[None, ...] = (None,) * len(virtual_ids(self.soft))  # of no word
        for place, sequence in enumerate(self._begun(question)):
            columns = range(sequence.scored_from, len(sequence.ids))
            hidden = [[at] if words is None else _rest_of_word(before + words[place], at) for at in columns]
            yield tuple(self._cloze(sequence.ids, at, masked) for at, masked in zip(columns, hidden, strict=True))

    def _cloze(self, ids: tuple[int, ...], column: int, masked: Sequence[int]) -> Cloze:
        shown = list(ids)
        for at in masked:
            shown[at] = self._mask
        return Cloze((*shown, *self.tokens.end), column, ids[column])

    def _read(self, clozes: set[Cloze]) -> dict[Cloze, torch.Tensor]:
        asked: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        for cloze in sorted(clozes):
            asked[cloze.ids, cloze.column].append(cloze.token)
        rows = [Masked(ids, column, tuple(tokens)) for (ids, column), tokens in asked.items()]
        found = self._passes(rows, lambda row: len(row.ids), self._pass)
        return {
            Cloze(row.ids, row.column, token): value
            for row, values in found.items()
            for token, value in zip(row.tokens, values, strict=True)
        }

    def _pass(self, rows: list[Masked]) -> list[torch.Tensor]:
        ids, mask = pad([row.ids for row in rows], self._pad, self.model.device)
        with head_sees(self.model, range(len(rows)), [row.column for row in rows]):
            logits = self.model(**self._given(ids, mask)).logits
        places = [place for place, row in enumerate(rows) for _ in row.tokens]
        words = [token for row in rows for token in row.tokens]
        return read_words(logits, places, words, [len(row.tokens) for row in rows])

    def _pooled(self, rows: list[tuple[int, ...]]) -> Sequence[torch.Tensor]:
        ids, mask = pad(rows, self._pad, self.model.device)
        states = self.model.base_model(**self._given(ids, mask)).last_hidden_state
        return list(mean_pooled(states, mask))

    def _given(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """What the model is given for these rows."""
        given: dict[str, Any] = inputs(self.soft, ids, self.embeddings)
        given["attention_mask"] = seeing_kept(self.soft, mask)
        if isinstance(self.soft, KeyValues):
            given["past_key_values"] = self.soft.cache(len(ids))
        return given


def _rest_of_word(words: tuple[int | None, ...], at: int) -> list[int]:
    """This token's place and those of the later tokens of its word."""
    end = at + 1
    while end < len(words) and words[end] == words[at]:
        end += 1
    return list(range(at, end))


def _positions_before(model: Any) -> int:
    """Positions that no token ever has: RoBERTa's first is one behind that of padding."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> MaskedBackend:
    """The masked model called `name`, which reads one mask at a time.

    Raises ModelError if files are missing or the precision cannot be had here.
    """
    return _load(name, numerics, PLL, say)


def load_l2r(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> MaskedBackend:
    """The masked model called `name`, which masks what is left of a word. Raises ModelError as `load` does."""
    return _load(name, numerics, PLL_L2R, say)


def _load(name: str, numerics: Numerics, layout: str, say: Say) -> MaskedBackend:
    from transformers import AutoModelForMaskedLM

    mode = numeric_mode(numerics)
    say(f"precision {mode.precision} on {mode.device} ({mode.reason})")
    files = locate(name, say)
    keep_few_kernels()
    tokenizer, model = load_tokenizer(files.name, files.folder), load_weights(AutoModelForMaskedLM, files, mode)
    used = replace(mode, attention=model.config._attn_implementation, layout=layout)
    return MaskedBackend(model, tokenizer, used, files)
