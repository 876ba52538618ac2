"""Turn questions into token sequences: text without control tokens, one beginning-of-sequence token, no lost merges.

Rule: no text of a template or a data set yields a control token. Those come from this module and from the model's own
chat template alone. Works on a private copy of the tokenizer; not for use by two threads at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from fewrec_prompt.backends.plan import TokenSequence, shared_length
from fewrec_prompt.errors import ModelError, VerbalizerError
from fewrec_prompt.types import Prompt, Question


class QuestionTokenizer:
    """Encodes questions for one model. `tokenizer` is the model's own transformers tokenizer (a fast one)."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer; the model needs a tokenizer.json")
        self.tokenizer = tokenizer
        self._control = {
            token_id: token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip()
        }
        self._text = _without_control_tokens(backend)
        self._start = _leading_ids(tokenizer)
        self.encode = lru_cache(maxsize=4096)(self._encode)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; never a control token, whatever the text says."""
        ids = tuple(self._text.encode(text, add_special_tokens=False).ids)
        forged = self._control.keys() & set(ids)
        if forged:
            raise ModelError(f"this tokenizer makes control tokens out of plain text: {self._control[forged.pop()]!r}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, control tokens shown."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of everything before the answer."""
        head, text = self._head(prompt)
        return head + self.text_ids(text)

    def _head(self, prompt: Prompt) -> tuple[tuple[int, ...], str]:
        """Ids that stay as they are, and the text after them that an answer may merge with."""
        if prompt.messages[0].role == "plain":
            return self._start, prompt.messages[0].text + prompt.answer_prefix
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"{prompt.template.origin} is a chat template, and this model has no chat format; "
                "use a template without system, user and assistant blocks"
            )
        turns = [{"role": message.role, "content": message.text} for message in prompt.messages]
        ids = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        return tuple(ids), prompt.answer_prefix

    def _encode(self, question: Question) -> tuple[TokenSequence, ...]:
        """One sequence per continuation, all scored from the same token.

        Prompt and continuation are encoded together, as the model met such text. Where a merge crosses the boundary,
        scoring begins at the first token in which any of them departs from the prompt alone, for all of them alike.
        """
        head, text = self._head(question.prompt)
        prompt = head + self.text_ids(text)
        wholes = [head + self.text_ids(text + continuation) for continuation in question.continuations]
        start = min(shared_length(prompt, whole) for whole in wholes)
        for whole, continuation in zip(wholes, question.continuations, strict=True):
            if len(whole) <= start:
                raise VerbalizerError(f"the answer {continuation!r} is no token of its own after {text[-20:]!r}")
        if question.labels:
            self._check_labels(question, [whole[start:] for whole in wholes])
        return tuple(TokenSequence(whole, start) for whole in wholes)

    def _check_labels(self, question: Question, answers: Sequence[tuple[int, ...]]) -> None:
        first: dict[int, str] = {}
        for answer, word in zip(answers, question.continuations, strict=True):
            if answer[0] in first:
                raise VerbalizerError(
                    f"label words {first[answer[0]]!r} and {word!r} begin with the same token "
                    f"{self.decode(answer[:1])!r} for this model, so it cannot tell them apart; choose other labels"
                )
            first[answer[0]] = word


def _without_control_tokens(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer knowing no added tokens but white-space ones, which are ordinary text (GPT-NeoX, Gemma)."""
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if not token["content"].strip()]
    description |= {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(description))


def _leading_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: a beginning-of-sequence token, or nothing."""
    special = set(tokenizer.all_special_ids)
    ids = tokenizer("a")["input_ids"]
    n = next((place for place, token_id in enumerate(ids) if token_id not in special), 0)
    return tuple(ids[:n])
