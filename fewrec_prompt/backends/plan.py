"""Merge token sequences that begin alike into trees, so that every token is computed once.

Token ids only: no torch, no model. Text ends in tokens.py, rectangles of ids begin in packing.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_TREE = 2048  # tokens computed in one tree; bounds the attention mask
MIN_KEPT = 16  # a shorter beginning is computed again sooner than its keys and values are looked up


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and one continuation as token ids; the tokens from `scored_from` on are the ones to score.

    `n_shared` tokens at its front stand in the prompts of other users too. Ids below zero are virtual tokens: −1 is the
    first vector of a soft prompt.
    """

    ids: tuple[int, ...]
    scored_from: int
    n_shared: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.scored_from < len(self.ids), "a continuation has tokens, and something before them"


@dataclass(slots=True)
class Tree:
    """Tokens to compute, each after its parent; and for each sequence, which node predicts which token.

    `tokens`, `parents` (−1 at a root) and `depths` are aligned. `reads[i]` holds (node, target) pairs in token order.
    The keys and values of the first `n_kept` tokens, a chain, are kept for other trees and not computed in this one.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    reads: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    n_kept: int = 0
    _path: list[int] = field(default_factory=list)  # nodes of the sequence added last
    _ids: tuple[int, ...] = ()

    def add(self, index: int, sequence: TokenSequence) -> None:
        """Put a sequence in; in the order of tokens, so that all it shares with any, it shares with the last one.

        Its last token is only predicted, and so computed only if another goes on from it.
        """
        del self._path[shared_length(self._ids, sequence.ids) :]
        for depth in range(len(self._path), len(sequence.ids) - 1):
            self.parents.append(self._path[-1] if self._path else -1)
            self._path.append(len(self.tokens))
            self.tokens.append(sequence.ids[depth])
            self.depths.append(depth)
        self._ids = sequence.ids
        asked = sequence.ids[sequence.scored_from :]
        self.reads[index] = list(zip(self._path[sequence.scored_from - 1 :], asked, strict=False))

    @property
    def kept(self) -> tuple[int, ...]:
        """The token ids whose keys and values are kept."""
        return tuple(self.tokens[: self.n_kept])

    @property
    def n_computed(self) -> int:
        """Tokens that go through the model for this tree alone."""
        return len(self.tokens) - self.n_kept

    @property
    def n_stem(self) -> int:
        """Tokens at the front that stand in a row and before all others; the rest are branches."""
        branching = [parent for node, parent in enumerate(self.parents) if parent != node - 1]
        return 1 + min(branching, default=len(self.tokens) - 1)

    def visible(self, first: int = 0) -> np.ndarray:
        """Boolean (n − first, n − first), of the tokens from `first` on: a token sees its ancestors and itself."""
        n = len(self.tokens) - first
        seen = np.zeros((n, n), dtype=bool)
        for node, parent in enumerate(self.parents[first:]):
            if parent >= first:
                seen[node] = seen[parent - first]
            seen[node, node] = True
        return seen


@dataclass(frozen=True, slots=True)
class Plan:
    """Trees that together answer all sequences, and what that saves."""

    trees: tuple[Tree, ...]
    n_asked: int  # tokens whose log-probability is asked
    n_naive: int  # tokens if every sequence were computed by itself

    @property
    def n_computed(self) -> int:
        """Tokens that go through the model, with what trees share counted once."""
        return sum(tree.n_computed for tree in self.trees) + sum(map(len, {tree.kept for tree in self.trees}))


def plan(sequences: Sequence[TokenSequence], max_tree: int = MAX_TREE, *, keep: bool = True) -> Plan:
    """Trees over the sequences, the same whatever order they come in.

    A sequence shares a tree with the one before it, in the order of tokens, if they share at least half of what stands
    before its continuation: so prompts that lie in one another, however short the first is, are one tree. Unless `keep`
    is false, a beginning that others share, or that several trees of one family need, is kept between them.
    """
    families = _families(sequences)
    trees = [tree for family in families for tree in split(sequences, family, max_tree, keep=keep)]
    n_asked = sum(len(sequence.ids) - sequence.scored_from for sequence in sequences)
    return Plan(tuple(trees), n_asked, sum(len(sequence.ids) for sequence in sequences))


def _families(sequences: Sequence[TokenSequence]) -> Iterator[list[int]]:
    """Places of sequences that begin alike, in the order of their tokens."""
    family: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda at: place(sequences[at])):
        sequence = sequences[index]
        if family and 2 * shared_length(sequences[family[-1]].ids, sequence.ids) < sequence.scored_from:
            yield family
            family = []
        family.append(index)
    if family:
        yield family


def place(sequence: TokenSequence) -> tuple[tuple[int, ...], int, int]:
    """Everything that a sequence is: ids, where scoring begins, how much others share. Plans are made in this order."""
    return sequence.ids, sequence.scored_from, sequence.n_shared


def split(sequences: Sequence[TokenSequence], family: Sequence[int], max_tree: int, *, keep: bool = True) -> list[Tree]:
    """Trees of one family, given in the order of tokens, that each compute at most `max_tree` tokens.

    A longer sequence is a tree of its own.
    """
    members = [sequences[index] for index in family]
    # In sorted order the first and the last differ as early as any two do.
    common = min(shared_length(members[0].ids, members[-1].ids), min(one.scored_from for one in members) - 1)
    between = _worth_keeping(common, keep)
    trees: list[Tree] = []
    last: tuple[int, ...] = ()
    for index, member in zip(family, members, strict=True):
        n_new = len(member.ids) - shared_length(last, member.ids)
        if not trees or trees[-1].n_computed + n_new > max_tree:
            trees.append(Tree(n_kept=between))
        trees[-1].add(index, member)
        last = member.ids
    of_others = _worth_keeping(min(common, *(one.n_shared for one in members)), keep)
    if len(trees) == 1 and (len(trees[0].tokens) - of_others <= max_tree or len(family) == 1):
        trees[0].n_kept = of_others
    return trees


def _worth_keeping(n_tokens: int, keep: bool) -> int:
    return n_tokens if keep and n_tokens >= MIN_KEPT else 0


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Tokens, or characters, that both begin with. Both are of one type, for slices of them are compared."""
    same, different = 0, 1 + min(len(one), len(other))
    while different - same > 1:
        middle = (same + different) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            different = middle
    return same
