"""Encoder-decoder models (T5, BART): the prompt goes through the encoder once, continuations through the decoder.

An answer is a text of its own there. So it begins as the decoder begins every text; white space before it, which parts
it from a prompt that it does not follow, is dropped; and white space that closes a title is the token that ends a text,
for such tokenizers know no line breaks. The beginning of an answer that a template gives is the decoder's too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
from fewrec_prompt.backends.padded import Passes, head_sees, pad, read_words
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import AUTO, NumericMode, Numerics, numeric_mode
from fewrec_prompt.backends.prefix import KeyValues, Soft, inputs, n_kept, seeing_kept, virtual_ids
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.catalogue import Found, Rule
from fewrec_prompt.errors import ModelError
from fewrec_prompt.types import Message, Prompt, Question, TokenLogprobs

LAYOUT = "encoder-decoder"


class Asked(NamedTuple):
    """A prompt for the encoder, and one continuation of it for the decoder, scored from a token on."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    scored_from: int


class Read(NamedTuple):
    """A row of a pass: a prompt, the decoder's tokens, and the (column, token) pairs that are asked for."""

    prompt: tuple[int, ...]
    seen: tuple[int, ...]
    words: tuple[tuple[int, int], ...]


class Seq2SeqBackend(LocalBackend):
    """An encoder-decoder model that answers questions. Not for two threads at once.

    Learned vectors stand before the prompt in the encoder; learned keys and values before the answer in the decoder, as
    PEFT has them.
    """

    kind, task_type = "seq2seq", "SEQ_2_SEQ_LM"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mode: NumericMode,
        files: ModelFiles | None = None,
        soft: Soft = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(model, tokenizer, mode, files, adapter)
        self.soft = soft
        self.context_window = context_window(model.config, tokenizer)
        self._answers = QuestionTokenizer(tokenizer, start=self._start())
        self._pad = int(model.config.pad_token_id or 0)
        self._passes = Passes(mode)

    @property
    def token_budget(self) -> int:
        """Tokens of a pass; fewer once memory has run out."""
        return self._passes.token_budget

    @property
    def embeddings(self) -> Any:
        """The layer that turns a prompt's tokens into vectors: the encoder's."""
        return self.model.get_encoder().get_input_embeddings()

    def n_tokens(self, question: Question) -> int:
        """Tokens of the prompt or of the longest continuation, whichever is longer: each has a window of its own."""
        before = n_kept(self.soft)
        return max(max(len(asked.prompt), before + len(asked.answer)) for asked in self._encode(question))

    def n_computed(self, questions: Sequence[Question]) -> int:
        """Tokens that go through encoder and decoder, equal prompts and equal continuations of one counted once."""
        rows = self._rows([one for question in questions for one in self._encode(question)])
        return sum(map(len, {row.prompt for row in rows})) + sum(len(row.seen) for row in rows)

    def best_continuations(self, question: Question, rule: Rule, k: int, *, budget: int | None = None) -> Found:
        """Raises ModelError: only the engine of causal models searches."""
        raise ModelError("an encoder-decoder cannot search a catalogue yet; use a causal model, or rank candidates")

    def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
        """Log-probability of each token of each continuation in the decoder, in nats.

        One entry per question in the order asked: a float64 row (n_tokens,) per continuation; with `grad`, torch rows
        that gradients flow through. Raises NumericError if one is not finite.
        """
        self.switch.use(self.adapter_name)
        encoded = [self._encode(question) for question in questions]
        with torch.set_grad_enabled(grad):
            rows = self._read([asked for group in encoded for asked in group])
        return as_answers(rows, [len(group) for group in encoded], grad=grad)

    def keys_and_values(self, ids: tuple[int, ...]) -> KeyValues:
        """What every layer of the decoder keeps of these tokens, after an encoder that reads them, too."""
        from transformers import DynamicCache, EncoderDecoderCache

        self.switch.use(self.adapter_name)
        cache, text = DynamicCache(), torch.tensor([ids], device=self.model.device)
        both = EncoderDecoderCache(cache, DynamicCache())
        self.model(input_ids=text, decoder_input_ids=text, past_key_values=both)
        return KeyValues.of(cache)

    def hidden(self, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
        """Means of the encoder's states over each prompt's tokens: (n_prompts, width) in fp32; torch with `grad`."""
        self.switch.use(self.adapter_name)
        rows = [self._prompt_ids(prompt) for prompt in prompts]
        with torch.set_grad_enabled(grad):
            states = self._encoder_states(rows)
            pooled = torch.stack([states[row].float().mean(0) for row in rows])
        return pooled if grad else np.asarray(pooled.cpu().numpy())

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """The name of the answers to these questions, asked together; None where nothing says what the model is."""
        asked = [one for question in questions for one in self._encode(question)]
        # One sequence of the two: where the encoder's part ends is told by the place of `n_shared`.
        return self._named(
            [
                TokenSequence(one.prompt + one.answer, len(one.prompt) + one.scored_from, len(one.prompt))
                for one in asked
            ]
        )

    def _start(self) -> tuple[int, ...]:
        """What the decoder begins every text with: its own first token, then what the tokenizer puts before a text."""
        first = getattr(self.model.config, "decoder_start_token_id", None)
        if first is None:
            first = self.model.generation_config.decoder_start_token_id
        if first is None:
            raise ModelError("the configuration of this model does not say how its decoder begins a text")
        return (int(first), *(token for token in self.tokens.start if token != first))

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        own = self.tokens.prompt_ids(replace(prompt, answer_prefix=""))
        return virtual_ids(self.soft) + own + self.tokens.end

    def _encode(self, question: Question) -> list[Asked]:
        prompt, begun = self._prompt_ids(question.prompt), question.prompt.answer_prefix
        words = [word if begun else word.lstrip() for word in question.continuations]
        blank = replace(question.prompt, messages=(Message("plain", ""),), n_shared=0)
        answers = self._answers.encode(Question(blank, tuple(word.rstrip() for word in words), question.labels))
        return [
            Asked(prompt, answer.ids + (self.tokens.end if word != word.rstrip() else ()), answer.scored_from)
            for answer, word in zip(answers, words, strict=True)
        ]

    def _read(self, asked: Sequence[Asked]) -> list[torch.Tensor]:
        rows = self._rows(asked)
        states = self._encoder_states([row.prompt for row in rows])
        found = self._passes(rows, lambda row: len(row.prompt) + len(row.seen), lambda some: self._pass(some, states))
        values = {
            (row.prompt, row.seen, *word): value
            for row, read in found.items()
            for word, value in zip(row.words, read, strict=True)
        }
        return [
            torch.stack([values[one.prompt, one.answer[:-1], column, token] for column, token in _words(one)])
            for one in asked
        ]

    def _rows(self, asked: Sequence[Asked]) -> list[Read]:
        """What has to be computed: label words that differ in their last token alone are one row."""
        words: dict[tuple[tuple[int, ...], tuple[int, ...]], set[tuple[int, int]]] = defaultdict(set)
        for one in asked:
            words[one.prompt, one.answer[:-1]].update(_words(one))
        return [Read(prompt, seen, tuple(sorted(some))) for (prompt, seen), some in words.items()]

    def _encoder_states(self, prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], torch.Tensor]:
        """Last hidden states (n_tokens, width) of each prompt."""
        return self._passes(prompts, len, self._encoded)

    def _encoded(self, prompts: list[tuple[int, ...]]) -> list[torch.Tensor]:
        ids, mask = pad(prompts, self._pad, self.model.device)
        given = inputs(self.soft, ids, self.embeddings)
        states = self.model.get_encoder()(**given, attention_mask=mask).last_hidden_state
        return [row[: len(prompt)] for row, prompt in zip(states, prompts, strict=True)]

    def _pass(self, rows: list[Read], states: dict[tuple[int, ...], torch.Tensor]) -> list[torch.Tensor]:
        from transformers.modeling_outputs import BaseModelOutput

        _, prompt_mask = pad([row.prompt for row in rows], self._pad, self.model.device)
        seen, seen_mask = pad([row.seen for row in rows], self._pad, self.model.device)
        padded = torch.nn.utils.rnn.pad_sequence([states[row.prompt] for row in rows], batch_first=True)
        encoded = BaseModelOutput(last_hidden_state=padded)
        encoded.router_logits = None  # models of experts hand on which of them read it
        columns = [sorted({column for column, _ in row.words}) for row in rows]
        read = [(place, column) for place, some in enumerate(columns) for column in some]
        with head_sees(self.model, *zip(*read, strict=True)):
            logits = self.model(
                encoder_outputs=encoded,
                attention_mask=prompt_mask,
                decoder_input_ids=seen,
                decoder_attention_mask=seeing_kept(self.soft, seen_mask),
                past_key_values=self._before(len(rows)),
                use_cache=False,
            ).logits
        at = {place: n for n, place in enumerate(read)}
        asked = [(at[place, column], token) for place, row in enumerate(rows) for column, token in row.words]
        places, words = zip(*asked, strict=True)
        return read_words(logits, places, words, [len(row.words) for row in rows])

    def _before(self, n_rows: int) -> Any:
        """What the decoder keeps before an answer: learned keys and values, of no prompt yet."""
        from transformers import DynamicCache, EncoderDecoderCache

        if not isinstance(self.soft, KeyValues):
            return None
        return EncoderDecoderCache(self.soft.cache(n_rows), DynamicCache())


def _words(asked: Asked) -> list[tuple[int, int]]:
    """For each token to score, the decoder's column that predicts it, and the token."""
    return [(at - 1, asked.answer[at]) for at in range(asked.scored_from, len(asked.answer))]


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> Seq2SeqBackend:
    """The encoder-decoder model called `name`. Raises ModelError if files are missing or it cannot be had here."""
    from transformers import AutoModelForSeq2SeqLM

    mode = numeric_mode(numerics)
    say(f"precision {mode.precision} on {mode.device} ({mode.reason})")
    files = locate(name, say)
    keep_few_kernels()
    tokenizer, model = load_tokenizer(files.name, files.folder), load_weights(AutoModelForSeq2SeqLM, files, mode)
    used = replace(mode, attention=model.config._attn_implementation, layout=LAYOUT)
    return Seq2SeqBackend(model, tokenizer, used, files)
