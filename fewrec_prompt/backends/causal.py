"""GPT-style language models through transformers: load, then log-probabilities of continuations.

A question goes through tokens.py (text to ids) and engine.py (ids to log-probabilities).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Identity
from fewrec_prompt.backends.answers import as_answers
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.loading import context_window, load_tokenizer, load_weights
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.memory import keep_few_kernels
from fewrec_prompt.backends.models import ModelFiles, locate
from fewrec_prompt.backends.plan import plan
from fewrec_prompt.backends.precision import AUTO, NumericMode, Numerics, numeric_mode
from fewrec_prompt.backends.prefix import KeyValues, Soft
from fewrec_prompt.backends.probe import choose_layout, rounding
from fewrec_prompt.backends.trie_reader import TrieReader
from fewrec_prompt.catalogue import Found, Rule, best_titles, build_trie
from fewrec_prompt.errors import ModelError
from fewrec_prompt.types import Prompt, Question, TokenLogprobs

SLOWER = {
    "expanded": "candidates are scored in a batch behind their prompt's cache, not in one tree",
    "plain": "candidates are scored one at a time",
}


class CausalBackend(LocalBackend):
    """A causal language model that answers questions, perhaps behind a learned prefix. Not for two threads at once."""

    kind, task_type = "causal", "CAUSAL_LM"

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
        self.engine = self._engine(soft)
        self.context_window = context_window(model.config.get_text_config(), tokenizer)

    def _engine(self, soft: Soft) -> Engine:
        mode = self.mode
        return Engine(self.model, mode.layout, unit=mode.unit, token_budget=mode.token_budget, soft=soft)

    def _copy(self) -> CausalBackend:
        made = super()._copy()
        made.engine = self._engine(None)  # which keeps what it computes behind a prefix
        return made

    @property
    def soft(self) -> Soft:
        """What is learned and stands before every prompt."""
        return self.engine.soft

    @soft.setter
    def soft(self, soft: Soft) -> None:
        self.engine.soft = soft

    @property
    def state_width(self) -> int:
        """Numbers in a hidden state: as many as in a token's vector, which the last layer goes back to."""
        return int(self.embeddings.weight.shape[1])

    @property
    def token_budget(self) -> int:
        """Tokens of a pass; fewer once memory has run out."""
        return self.engine.token_budget

    def forget(self) -> None:
        """Drop keys and values that are kept between questions, for other weights have made them."""
        self.engine.forget()

    def n_tokens(self, question: Question) -> int:
        """Tokens of the longest sequence this question makes: learned prefix, prompt and continuation."""
        return self.engine.n_learned + max(len(sequence.ids) for sequence in self.tokens.encode(question))

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
        self.switch.use(self.adapter_name)
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
        self.switch.use(self.adapter_name)
        encoded = [self.tokens.encode(question) for question in questions]
        with torch.set_grad_enabled(grad):
            rows = self.engine.logprobs([sequence for group in encoded for sequence in group])
        return as_answers(rows, [len(group) for group in encoded], grad=grad)

    def keys_and_values(self, ids: tuple[int, ...]) -> KeyValues:
        """What every layer keeps of these tokens. Raises ModelError for recurrent layers, which keep a state."""
        self.switch.use(self.adapter_name)
        return self.engine.keys_and_values(ids)

    def hidden(self, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
        """Last hidden state of each prompt's last token: (n_prompts, width) in fp32; torch with `grad`."""
        self.switch.use(self.adapter_name)
        with torch.set_grad_enabled(grad):
            states = torch.stack(self.engine.hidden([self.tokens.prompt_ids(prompt) for prompt in prompts])).float()
        return states if grad else np.asarray(states.cpu().numpy())

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """The name of the answers to these questions, asked together; None where nothing says what the model is."""
        return self._named([one for question in questions for one in self.tokens.encode(question)])


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> CausalBackend:
    """The causal model called `name` (embedded asset, local folder or hub id), ready to answer.

    Raises ModelError if files are missing or the precision cannot be had here.
    """
    from transformers import AutoModelForCausalLM

    mode = numeric_mode(numerics)
    say(f"precision {mode.precision} on {mode.device} ({mode.reason})")
    files = locate(name, say)
    keep_few_kernels()
    tokenizer, model = load_tokenizer(files.name, files.folder), load_weights(AutoModelForCausalLM, files, mode)
    layout, reason = choose_layout(model)
    if reason:
        say(f"{name}: {SLOWER[layout]}, because {reason}")
    if model.dtype != torch.float32 and layout != "plain":
        apart = rounding(model, layout)
        say(f"{name}: in 16 bits, {layout} and plain scores of a small random copy differ by up to {apart:.2g} nats")
    used = replace(mode, attention=model.config._attn_implementation, layout=layout)
    return CausalBackend(model, tokenizer, used, files)
