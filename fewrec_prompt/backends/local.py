"""A model whose weights are here, of whatever kind: weights may be learned inside it, and vectors before its prompts.

What is asked of it, and how a pass looks, is for each kind: causal.py, masked.py, seq2seq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

from fewrec_prompt.backends import BACKENDS, Backend, Identity
from fewrec_prompt.backends.identity import Made
from fewrec_prompt.backends.models import ModelFiles
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import NumericMode, Numerics
from fewrec_prompt.backends.prefix import KeyValues, Soft, digest
from fewrec_prompt.backends.switching import UNNAMED, AdapterSwitch
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.types import Prompt

Self = TypeVar("Self", bound="LocalBackend")


class LocalBackend(Backend):
    """A model that answers questions, perhaps behind a learned prefix. Not for two threads at once.

    `adapter` is the sha256 of weights that were learned and sit beside the model's own, `adapter_name` which of the
    switch's adapters that is. Whoever changes the model's own weights says so in `switch.weights`, for all who share
    it: else they would share their kept answers with the model that the files hold.
    """

    kind: str  # its name among BACKENDS
    task_type: str  # what PEFT calls what models of this kind are for
    soft: Soft  # what is learned and stands before every prompt
    adapter_name: str | None = None

    def __init__(
        self, model: Any, tokenizer: Any, mode: NumericMode, files: ModelFiles | None, adapter: str | None
    ) -> None:
        self.model = model.eval()
        self.tokens = QuestionTokenizer(tokenizer)
        self.mode, self.files, self.adapter = mode, files, adapter
        self.switch = AdapterSwitch(model)

    @property
    def learnt(self) -> str | None:
        """A name for what was learned and is used now, inside the model or before the prompt; None of a bare model."""
        return self.adapter or self.switch.weights or digest(self.soft)

    @property
    def embeddings(self) -> Any:
        """The layer that turns a prompt's tokens into vectors."""
        return self.model.get_input_embeddings()

    @property
    def vector_width(self) -> int:
        """Numbers in the vector of a token."""
        return int(self.embeddings.weight.shape[1])

    @property
    def state_width(self) -> int:
        """Numbers in a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def token_budget(self) -> int:
        """Tokens of a pass; fewer once memory has run out."""
        raise NotImplementedError

    def view(
        self: Self,
        *,
        soft: Soft = None,
        adapter_name: str | None = None,
        adapter: str | None = None,
    ) -> Self:
        """The same model behind another learned prefix, or with another of its adapters on; no weights are copied."""
        made = self._copy()
        made.soft, made.adapter_name, made.adapter = soft, adapter_name, adapter
        return made

    def _copy(self: Self) -> Self:
        """Another backend over the same model."""
        return copy(self)

    def anew(self) -> LocalBackend:
        """The same model once more, as its files hold it."""
        assert self.files is not None, "a model made in memory is not in files"
        numerics = Numerics(self.mode.precision, self.mode.device, unit=self.mode.unit)
        loaded: LocalBackend = BACKENDS.load(self.kind)(str(self.files.folder), numerics)
        return loaded

    def forget(self) -> None:
        """Drop what is kept between questions. To be called after a change of weights or of the learned prefix."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that is part of no question yet."""
        return len(self.tokens.text_ids(text))

    def keys_and_values(self, ids: tuple[int, ...]) -> KeyValues:
        """What the model keeps of these tokens, layer by layer, where a learned prefix would stand.

        Raises ModelError for a model that keeps nothing of that kind.
        """
        raise NotImplementedError

    def hidden(self, prompts: Sequence[Prompt], *, grad: bool = False) -> Any:
        """What the model makes of each prompt: (n_prompts, width) in fp32; torch with `grad`."""
        raise NotImplementedError

    def _named(self, sequences: Sequence[TokenSequence]) -> Identity | None:
        """The name of the answers to these sequences, asked together; None where nothing says what the model is.

        That is a model made in memory, one whose weights nothing names, or one in training.
        """
        whole = self.switch.weights
        if whole == UNNAMED or (self.adapter_name is not None and self.adapter is None):  # it is in training
            return None
        inside = " ".join(one for one in (whole, self.adapter) if one) or None
        bare = self.adapter_name is None and self.switch.peft is not None
        prefix = digest(self.soft)
        return Made(self.model, self.files, self.mode, self.token_budget, inside, prefix, bare=bare).name(sequences)
