"""Score token sequences with a causal language model: token ids in, log-probabilities out; no text here.

Three layouts, of which probe.py finds the best that a model takes:

| layout | a pass is |
|---|---|
| packed | trees of sequences, each token once, under a tree mask |
| expanded | a shared beginning once, its cache repeated for a padded batch of what follows |
| plain | one sequence, as transformers runs it: the reference the others are tested against |

A canonical unit is one tree a pass, so that its bits depend on nothing else; a throughput unit fills a token budget
with trees of several users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fewrec_prompt.backends import attention
from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.expanded import expanded_logprobs
from fewrec_prompt.backends.head import token_logprobs
from fewrec_prompt.backends.memory import out_of_memory
from fewrec_prompt.backends.packing import Rectangle, lay_out
from fewrec_prompt.backends.plan import TokenSequence, Tree, plan, split
from fewrec_prompt.backends.prefix import Kept, KeyValues, Soft, prefixed
from fewrec_prompt.errors import BudgetError, ModelError

BUDGET = {"cpu": 2048, "cuda": 16384}  # tokens of a pass in a throughput unit, padding counted
Rows = dict[int, torch.Tensor]
"""Log-probabilities (n_tokens,) of sequences by their place, or what else is read of them."""
Read = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From a model, its hidden states (n_nodes, width), nodes and targets (n_reads,) to a row for each read."""


class Engine:
    """One model, one layout. `soft` is a learned prefix that stands before every sequence; not for two threads at once.

    The token budget is halved where memory runs out, and stays so.
    """

    def __init__(
        self,
        model: Any,
        layout: str = "packed",
        *,
        unit: str = "canonical",
        token_budget: int | None = None,
        soft: Soft = None,
    ) -> None:
        self.layout, self.unit = layout, unit
        self.token_budget = token_budget or BUDGET.get(model.device.type, BUDGET["cpu"])
        self._body = Body(model, soft)
        self._kept = Kept(self.keys_and_values)

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """Log-probability (fp32, nats) of each scored token of each sequence; gradients flow where they are on.

        Raises BudgetError where not even one question fits the memory.
        """
        sequences = self.prefixed(sequences)
        if self.layout == "plain":
            return [self._alone(sequence) for sequence in sequences]
        trees = list(plan(sequences, keep=not torch.is_grad_enabled()).trees)
        rows = self._packed(sequences, trees) if self.layout == "packed" else self._expanded(sequences, trees)
        return [rows[index] for index in range(len(sequences))]

    def hidden(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Last hidden state (width,) of each prompt's last token; gradients flow where they are on."""
        ends = self.prefixed([TokenSequence((*ids, 0), len(ids)) for ids in prompts])  # the 0 is never computed
        if self.layout != "packed":
            return [self._end(sequence.ids[:-1]) for sequence in ends]
        trees = list(plan(ends, keep=not torch.is_grad_enabled()).trees)
        rows = self._packed(ends, trees, _states)
        return [rows[index][0] for index in range(len(ends))]

    @property
    def soft(self) -> Soft:
        """The learned prefix."""
        return self._body.soft

    @soft.setter
    def soft(self, soft: Soft) -> None:
        self._body.soft = soft
        self.forget()

    @property
    def n_learned(self) -> int:
        """Positions that the learned prefix takes before every sequence."""
        soft = self._body.soft
        return 0 if soft is None else soft.n_tokens

    def prefixed(self, sequences: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
        """The sequences behind the virtual tokens of the learned prefix, if it has any."""
        return prefixed(self._body.soft, sequences)

    def searchable_body(self) -> Body:
        """The model for a search that keeps its own cache. Raises ModelError behind learned keys and values."""
        if self._body.learned:
            raise ModelError(
                "a catalogue cannot be searched behind learned keys and values; use learned tokens or LoRA"
            )
        return self._body

    def forget(self) -> None:
        """Drop what is kept between questions. To be called after a change of weights or of the learned prefix."""
        self._kept.forget()

    def _packed(self, sequences: Sequence[TokenSequence], trees: list[Tree], read: Read = token_logprobs) -> Rows:
        rows: Rows = {}
        if self.unit == "throughput":
            trees = sorted(trees, key=lambda tree: (tree.kept, tree.n_stem, tree.n_computed))
        while trees:
            taken = self._first(trees)
            trees = trees[len(taken) :]
            try:
                rows |= self._pass(taken, read)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                trees = self._smaller(sequences, taken, error) + trees
        return rows

    def _first(self, trees: Sequence[Tree]) -> list[Tree]:
        """The first trees, for one pass: one in a canonical unit, as many as the budget holds in a throughput unit."""
        n = 1
        if self.unit == "throughput":
            while n < len(trees) and trees[n].kept == trees[0].kept and _area(trees[: n + 1]) <= self.token_budget:
                n += 1
        return list(trees[:n])

    def _smaller(self, sequences: Sequence[TokenSequence], taken: list[Tree], error: Exception) -> list[Tree]:
        """The same trees for half the budget, once everything that can be spared is dropped.

        A canonical unit stays as it is, for its layout decides its bits.
        """
        self.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        n_sequences, area = sum(len(tree.reads) for tree in taken), _area(taken)
        if n_sequences == 1:
            raise BudgetError(
                f"{area} tokens do not fit the memory; use a shorter history or a smaller model"
            ) from error
        if self.unit == "canonical":
            raise BudgetError(
                f"{area} tokens in one canonical unit do not fit the memory; --unit throughput splits them"
            ) from error
        self.token_budget = max(1, min(self.token_budget, area) // 2)
        return taken if len(taken) > 1 else split(sequences, list(taken[0].reads), self.token_budget)

    def _pass(self, trees: Sequence[Tree], read: Read) -> Rows:
        learned = self._body.learned
        packed = lay_out(trees, learned.n_tokens if learned else 0)
        before = self._kept(packed.kept) if packed.kept else learned
        hidden = self._body.hidden(
            packed.ids,
            positions=packed.positions,
            mask=self._mask(packed),
            cache=before.cache(len(trees)) if before else None,
        )
        nodes, targets = self._body.tensor(packed.nodes), self._body.tensor(packed.targets)
        scored = read(self._body.model, hidden.flatten(0, 1), nodes, targets)
        indices, lengths = zip(*packed.reads, strict=True)
        return dict(zip(indices, torch.split(scored, list(lengths)), strict=True))

    def _mask(self, packed: Rectangle) -> torch.Tensor | None:
        """Additive; of the branches alone where the attention knows stems. None for a lone chain, causal by itself."""
        if packed.n_branches == 0:
            return None
        model = self._body.model
        knows_stems = model.config._attn_implementation == attention.NAME
        visible = self._body.tensor(packed.visible if knows_stems else packed.all_visible())
        # A boolean mask of this shape is silently wrong under eager attention; an additive one is right everywhere.
        mask = torch.full(visible.shape, torch.finfo(model.dtype).min, dtype=model.dtype, device=visible.device)
        return mask.masked_fill_(visible, 0.0)[:, None]

    def keys_and_values(self, ids: tuple[int, ...]) -> KeyValues:
        """What the model makes of these tokens: keys and values as every layer keeps them."""
        cache = self._body.new_cache()
        self._body.hidden(np.array([ids]), cache=cache)
        return KeyValues.of(cache)

    def _expanded(self, sequences: Sequence[TokenSequence], trees: Sequence[Tree]) -> Rows:
        rows: Rows = {}
        for tree in trees:
            members = [sequences[index] for index in tree.reads]
            n_stem = min(tree.n_stem, *(member.scored_from for member in members))
            scored = (
                expanded_logprobs(self._body, members, n_stem, self.token_budget)
                if n_stem
                else map(self._alone, members)
            )
            rows |= dict(zip(tree.reads, scored, strict=True))
        return rows

    def _alone(self, sequence: TokenSequence) -> torch.Tensor:
        ids = np.array([sequence.ids])
        logits = self._body.logits(ids)[0, sequence.scored_from - 1 : -1]
        scored = logits.gather(-1, self._body.tensor(ids)[0, sequence.scored_from :, None])[:, 0]
        return scored - logits.logsumexp(-1)  # log_softmax of 49,152 words in fp32 is off by 3e-5 on a CPU with AVX2

    def _end(self, ids: tuple[int, ...]) -> torch.Tensor:
        learned = self._body.learned
        return self._body.hidden(np.array([ids]), cache=learned.cache(1) if learned else None)[0, -1]


def _states(_model: Any, hidden: torch.Tensor, nodes: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
    """The hidden states (n_reads, width) that are asked for."""
    return hidden[nodes]


def _area(trees: Sequence[Tree]) -> int:
    """Tokens of the rectangle that these trees make, padding counted."""
    stem = max(tree.n_stem - tree.n_kept for tree in trees)
    return len(trees) * (stem + max(len(tree.tokens) - tree.n_stem for tree in trees))
