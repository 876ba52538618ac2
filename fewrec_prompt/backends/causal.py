"""GPT-style language models through transformers: load, then log-probabilities of continuations.

A question goes through tokens.py (text to ids) and engine.py (ids to log-probabilities).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Identity
from fewrec_prompt.backends.answers import as_answers
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.identity import Made
from fewrec_prompt.backends.loading import context_window, load_tokenizer, load_weights
from fewrec_prompt.backends.memory import keep_few_kernels
from fewrec_prompt.backends.models import ModelFiles, locate
from fewrec_prompt.backends.plan import plan
from fewrec_prompt.backends.precision import AUTO, NumericMode, Numerics, numeric_mode
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens, digest
from fewrec_prompt.backends.probe import choose_layout, rounding
from fewrec_prompt.backends.switching import AdapterSwitch
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.backends.trie_reader import TrieReader
from fewrec_prompt.catalogue import Found, Rule, best_titles, build_trie
from fewrec_prompt.errors import ModelError
from fewrec_prompt.types import Prompt, Question, TokenLogprobs

SLOWER = {
    "expanded": "candidates are scored in a batch behind their prompt's cache, not in one tree",
    "plain": "candidates are scored one at a time",
}


class CausalBackend:
    """A causal language model that answers questions, perhaps behind a learned prefix. Not for two threads at once.

    `adapter` is the sha256 of weights that were learned and sit inside the model, `adapter_name` which of the switch's
    adapters that is. Whoever changes weights says so here, or sets `files` to None: else they would share their kept
    answers with the model that the files hold.
    """

    adapter_name: str | None = None

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
        self.context_window = context_window(model.config.get_text_config(), tokenizer)
        self.switch = AdapterSwitch(model)

    def view(
        self, *, soft: SoftTokens | KeyValues | None = None, adapter_name: str | None = None, adapter: str | None = None
    ) -> CausalBackend:
        """The same model behind another learned prefix, or with another of its adapters on; no weights are copied."""
        made = copy(self)
        made.adapter_name, made.adapter = adapter_name, adapter
        mode = self.mode
        made.engine = Engine(self.model, mode.layout, unit=mode.unit, token_budget=mode.token_budget, soft=soft)
        return made

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

    def hidden(self, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
        """Last hidden state of each prompt's last token: (n_prompts, width) in fp32; torch with `grad`."""
        self.switch.use(self.adapter_name)
        with torch.set_grad_enabled(grad):
            states = torch.stack(self.engine.hidden([self.tokens.prompt_ids(prompt) for prompt in prompts])).float()
        return states if grad else np.asarray(states.cpu().numpy())

    def identity(self, questions: Sequence[Question]) -> Identity | None:
        """The name of the answers to these questions, asked together; None where nothing says what the model is.

        That is a model made in memory, one with adapters of unknown content, or one in training.
        """
        if self.adapter_name is not None and self.adapter is None:  # it is in training
            return None
        sequences = [one for question in questions for one in self.tokens.encode(question)]
        prefix, budget = digest(self.engine.soft), self.engine.token_budget
        bare = self.adapter_name is None and self.switch.peft is not None
        return Made(self.model, self.files, self.mode, budget, self.adapter, prefix, bare=bare).name(sequences)


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
