"""Turn questions into token sequences: text without control tokens, one beginning-of-sequence token, no lost merges.

Rule: no text of a template or a data set yields a control token. Those come from this module and from the model's own
chat template alone. Works on a private copy of the tokenizer; not for use by two threads at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError as ChatTemplateError
from tokenizers import Tokenizer

from fewrec_prompt.backends.plan import TokenSequence, shared_length
from fewrec_prompt.errors import ModelError, VerbalizerError
from fewrec_prompt.types import Message, Prompt, Question

REMEMBERED = 256  # questions: those of one user, asked about several times while the history is cut
REMEMBERED_CATALOGUES = 2
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # characters that Unicode reserves for a program's own use; no text has them
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)


class QuestionTokenizer:
    """Encodes questions for one model. `tokenizer` is the model's own transformers tokenizer (a fast one).

    A plain text begins with `start`, by default what the tokenizer itself puts there; `end` is what it puts behind.
    """

    def __init__(self, tokenizer: Any, start: tuple[int, ...] | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer; the model needs a tokenizer.json")
        self._tokenizer = tokenizer
        self._control, self._text = _split_off_control_tokens(backend)
        before, self.end = _surrounding_ids(tokenizer)
        self.start = before if start is None else start
        self.encode = lru_cache(maxsize=REMEMBERED)(self._encode)
        self._after = lru_cache(maxsize=REMEMBERED_CATALOGUES)(self._encode_after)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(folder)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; never a control token, whatever the text says."""
        ids = tuple(self._text.encode(text, add_special_tokens=False).ids)
        forged = set(ids) & self._control
        if forged:
            raise ModelError(f"this tokenizer makes control tokens out of plain text: {self.decode([forged.pop()])!r}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, control tokens shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def word_numbers(self, question: Question) -> list[tuple[int | None, ...]]:
        """Which word of its text each token belongs to, for each continuation's sequence; None before the text."""
        head, text = self._head(question.prompt)
        wholes = [self._text.encode(text + answer, add_special_tokens=False) for answer in question.continuations]
        return [(None,) * len(head) + tuple(whole.word_ids) for whole in wholes]

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of everything before the answer."""
        head, text = self._head(prompt)
        return head + self.text_ids(text)

    def _head(self, prompt: Prompt) -> tuple[tuple[int, ...], str]:
        """Ids that stay as they are, and the text after them that an answer may merge with."""
        if prompt.messages[0].role == "plain":
            return self.start, prompt.messages[0].text + prompt.answer_prefix
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"{prompt.template.origin} is a chat template, and this model has no chat format; "
                "use a template without system, user and assistant blocks"
            )
        try:
            return self._chat_ids(prompt.messages), prompt.answer_prefix
        except ChatTemplateError as error:
            raise ModelError(f"{prompt.template.origin}: the model's chat format refuses it: {error}") from error

    def _n_shared(self, prompt: Prompt, ids: tuple[int, ...]) -> int:
        """How many of these ids come from what every prompt of this template begins with."""
        if not prompt.n_shared:
            return 0
        return shared_length(ids, self.prompt_ids(replace(prompt, messages=prompt.shared_messages, answer_prefix="")))

    def _chat_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The turns in the model's chat format. What reads like a control token inside a message is encoded as text.

        transformers can do that too, but for special tokens only, and it fails where a vocabulary holds their text.
        """
        turns = [{"role": message.role, "content": self._mark_forged(message.text)} for message in messages]
        chat = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids: list[int] = []
        for place, piece in enumerate(_MARKED.split(chat)):
            ids += self.text_ids(piece) if place % 2 else self._own_ids(_unmarked(piece))
        return tuple(ids)

    def _mark_forged(self, text: str) -> str:
        """The text with marks around every part that the model's own tokenizer would read as a control token."""
        text = _unmarked(text)
        found = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        for token_id, (begin, end) in reversed(list(zip(found.ids, found.offsets, strict=True))):
            if token_id in self._control:
                text = f"{text[:begin]}{_OPEN}{text[begin:end]}{_CLOSE}{text[end:]}"
        return text

    def _own_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _encode(self, question: Question) -> tuple[TokenSequence, ...]:
        """One sequence per continuation, all scored from the same token.

        Prompt and continuation are encoded together, as the model met such text. Where a merge crosses the boundary,
        scoring begins at the first token in which any of them departs from the prompt alone, for all of them alike.
        """
        head, text = self._head(question.prompt)
        prompt = head + self.text_ids(text)
        wholes = [head + ids for ids in self._with_each(text, question.continuations)]
        start = len(prompt)
        for whole in wholes:
            if whole[:start] != prompt[:start]:
                start = shared_length(prompt, whole)
        if start == 0:
            raise ModelError(
                f"{question.prompt.template.origin}: this model needs a token before the answer, and the prompt "
                f"{text[:20]!r} leaves none"
            )
        for whole, continuation in zip(wholes, question.continuations, strict=True):
            if len(whole) <= start:
                raise VerbalizerError(f"the answer {continuation!r} is no token of its own after {text[-20:]!r}")
        if question.labels:
            self._check_labels(question.continuations, [whole[start:] for whole in wholes])
        n_shared = self._n_shared(question.prompt, prompt)
        return tuple(TokenSequence(whole, start, n_shared) for whole in wholes)

    def _with_each(self, text: str, continuations: tuple[str, ...]) -> list[tuple[int, ...]]:
        """Ids of the text with each continuation, encoded as one.

        Of a catalogue, only the last line of the text goes with every title, once for all prompts that end in it: if
        the tokenizer parts the text before that line, whatever a title begins with. Pieces that it parts never merge.
        """
        cut = text.rfind("\n") + 1
        beginnings = {continuation[:3]: continuation for continuation in continuations}
        many = len(continuations) > 2 * len(beginnings)
        if many and all(self._parts(text + continuation, cut) for continuation in beginnings.values()):
            before = self.text_ids(text[:cut])
            return [before + ids for ids in self._after(text[cut:], continuations)]
        return [self.text_ids(text + continuation) for continuation in continuations]

    def _encode_after(self, line: str, continuations: tuple[str, ...]) -> list[tuple[int, ...]]:
        return [self.text_ids(line + continuation) for continuation in continuations]

    def _parts(self, text: str, cut: int) -> bool:
        """Does a piece begin at the cut, and do both sides have the same ids apart as together?"""
        splitter, normalizer = self._text.pre_tokenizer, self._text.normalizer
        if splitter is None or (normalizer is not None and normalizer.normalize_str(text) != text):
            return False
        starts = {begin for _, (begin, _) in splitter.pre_tokenize_str(text)}
        return cut in starts and self.text_ids(text[:cut]) + self.text_ids(text[cut:]) == self.text_ids(text)

    def _check_labels(self, words: Sequence[str], answers: Sequence[tuple[int, ...]]) -> None:
        """No label may be, or begin, another: the probability of the shorter one would hold that of the longer.

        In sorted order a label stands right before what it begins.
        """
        for (one, word), (other, longer) in pairwise(sorted(zip(answers, words, strict=True))):
            if other[: len(one)] == one:
                raise VerbalizerError(
                    f"label words {word!r} and {longer!r} cannot be told apart by this model: both begin with "
                    f"{self.decode(one)!r}, which is all of the first; choose other labels"
                )


def _unmarked(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _split_off_control_tokens(backend: Tokenizer) -> tuple[frozenset[int], Tokenizer]:
    """Ids of the control tokens, and the same tokenizer with their names changed to what no text says.

    White-space tokens (GPT-NeoX, Gemma) and the one for unknown characters are ordinary text. Control tokens keep
    their places, for ids follow from places; a vocabulary may hold their text too, and then a Unigram model finds it.
    """
    description = json.loads(backend.to_str())
    unknown = _unknown_id(description["model"])
    kept = [token for token in description["added_tokens"] if token["id"] != unknown]
    names = {token["content"]: f"\0{token['id']}" for token in kept if token["content"].strip()}
    for token in kept:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False}
    description |= {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    _rename(description["model"], names)
    control = frozenset(token["id"] for token in kept if token["content"].strip())
    return control, Tokenizer.from_str(json.dumps(description))


def _unknown_id(model: dict[str, Any]) -> int | None:
    if model["type"] == "Unigram":
        return model["unk_id"]  # type: ignore[no-any-return]  # JSON
    return model["vocab"].get(model.get("unk_token"))  # type: ignore[no-any-return]  # JSON


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Change the names of tokens in a vocabulary, in place; merges that would make one of them go."""
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    if "merges" in model:
        model["merges"] = [[a, b] for a, b in model["merges"] if not names.keys() & {a, b, a + b}]


def _surrounding_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer itself puts before a text and behind it: tokens for its beginning and end, or nothing."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    n = next((n for n in range(len(whole)) if whole[n : n + len(alone)] == alone), 0)
    return tuple(whole[:n]), tuple(whole[n + len(alone) :])
