"""Merge token sequences that begin alike into trees, so that every token is computed once.

Token ids only: no torch, no model. Text ends in tokens.py, tensors begin in engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_TREE = 2048  # tokens computed in one forward pass; bounds the attention mask


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and one continuation as token ids; the tokens from `scored_from` on are the ones to score."""

    ids: tuple[int, ...]
    scored_from: int

    def __post_init__(self) -> None:
        assert 0 < self.scored_from < len(self.ids), "a continuation has tokens, and something before them"


@dataclass(slots=True)
class Tree:
    """Tokens to compute, each after its parent; and for each sequence, which node predicts which token.

    `tokens`, `parents` (−1 at a root) and `depths` are aligned. `reads[i]` holds (node, target) pairs in token order.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    reads: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, index: int, sequence: TokenSequence) -> None:
        """Put a sequence in. Its last token is only predicted, so it is computed only if another goes on from it."""
        node, pairs = -1, []
        for depth, token in enumerate(sequence.ids):
            if depth >= sequence.scored_from:
                pairs.append((node, token))
            if depth < len(sequence.ids) - 1:
                node = self._child(node, token, depth)
        self.reads[index] = pairs

    def _child(self, parent: int, token: int, depth: int) -> int:
        node = self._children.get((parent, token))
        if node is None:
            node = self._children[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
        return node

    @property
    def is_chain(self) -> bool:
        """True if every token follows the one before it: a single sequence, which needs no mask of its own."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def visible(self) -> np.ndarray:
        """Boolean (n, n): may token i see token j? Only its ancestors and itself."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen


@dataclass(frozen=True, slots=True)
class Plan:
    """Trees that together answer all sequences, and what that saves."""

    trees: tuple[Tree, ...]
    n_naive: int  # tokens if every sequence were computed by itself

    @property
    def n_computed(self) -> int:
        return sum(len(tree.tokens) for tree in self.trees)


def plan(sequences: Sequence[TokenSequence], max_tree: int = MAX_TREE) -> Plan:
    """Trees over the sequences, in an order that depends on the sequences alone.

    A sequence joins the tree before it if it shares at least half of its tokens before the continuation with the first
    sequence there; a tree is closed before it would exceed `max_tree` tokens (a longer sequence is a tree of its own).
    """
    trees: list[Tree] = []
    stem: tuple[int, ...] = ()
    for index, sequence in enumerate(sequences):
        shared = shared_length(stem, sequence.ids)
        room = max_tree - len(trees[-1].tokens) if trees else 0
        if 2 * shared < sequence.scored_from or len(sequence.ids) - shared > room:
            trees.append(Tree())
            stem = sequence.ids
        trees[-1].add(index, sequence)
    return Plan(tuple(trees), sum(len(sequence.ids) for sequence in sequences))


def shared_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens that both begin with."""
    for depth, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return depth
    return min(len(one), len(other))
