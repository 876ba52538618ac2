"""Lay token trees side by side in one rectangle: ids, positions, and who may see whom.

A row holds one tree: first its stem, then its branches, each padded on the right to the longest of the rectangle.
numpy only; engine.py makes tensors of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fewrec_prompt.backends.plan import Tree


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Trees as arrays. Keys and values of `n_before` tokens stand before each; `kept` are those of them with ids.

    `ids` and `positions` are (n_trees, n_stem + n_branches). `visible` is (n_trees, n_branches, n_before + n_stem +
    n_branches): what a branch token may see; stem tokens see all before them. `nodes` and `targets` (n_reads,) say
    which token of the flattened rectangle predicts which, in the order of `reads`: (sequence, n_tokens) pairs.
    """

    ids: np.ndarray
    positions: np.ndarray
    visible: np.ndarray
    kept: tuple[int, ...]
    n_before: int
    nodes: np.ndarray
    targets: np.ndarray
    reads: tuple[tuple[int, int], ...]

    @property
    def n_branches(self) -> int:
        """Columns of branch tokens."""
        return int(self.visible.shape[1])

    def all_visible(self) -> np.ndarray:
        """Boolean (n_trees, n_columns, n_before + n_columns): the same for stem tokens too."""
        n_trees, n_columns = self.ids.shape
        stem = np.tri(n_columns - self.n_branches, self.n_before + n_columns, self.n_before, dtype=bool)
        return np.concatenate([np.broadcast_to(stem, (n_trees, *stem.shape)), self.visible], axis=1)


def lay_out(trees: Sequence[Tree], n_learned: int = 0) -> Rectangle:
    """One rectangle of trees that keep the same tokens, after `n_learned` positions of learned keys and values."""
    kept = trees[0].kept
    assert all(tree.kept == kept for tree in trees), "trees of one rectangle keep the same tokens"
    stems = [_n_stem(tree, alone=len(trees) == 1) for tree in trees]
    n_stem = max(stem - tree.n_kept for stem, tree in zip(stems, trees, strict=True))
    n_branches = max(len(tree.tokens) - stem for stem, tree in zip(stems, trees, strict=True))
    shape = (len(trees), n_stem + n_branches)
    n_before = n_learned + len(kept)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visible = np.zeros((len(trees), n_branches, n_before + n_stem + n_branches), dtype=bool)
    visible[:, :, :1] = True  # a padded token sees something: a softmax over nothing is not a number
    columns = []
    for row, (tree, stem) in enumerate(zip(trees, stems, strict=True)):
        column = _columns(tree, stem, n_stem)
        ids[row, column] = tree.tokens[tree.n_kept :]
        positions[row, column] = np.array(tree.depths[tree.n_kept :]) + n_learned
        n_own = len(tree.tokens) - stem
        visible[row, :n_own, : n_learned + stem] = True
        visible[row, :n_own, n_before + n_stem : n_before + n_stem + n_own] = tree.visible(stem)
        columns.append(row * shape[1] + column)
    pairs = [pair for tree, column in zip(trees, columns, strict=True) for pair in _pairs(tree, column)]
    nodes, targets = np.array(pairs, np.int64).T
    reads = tuple((index, len(asked)) for tree in trees for index, asked in tree.reads.items())
    return Rectangle(ids, positions, visible, kept, n_before, nodes, targets, reads)


def _n_stem(tree: Tree, *, alone: bool) -> int:
    """Tokens laid out as the stem. A chain among other trees has one branch token, so that every row has branches."""
    return tree.n_stem if alone else min(tree.n_stem, len(tree.tokens) - 1)


def _columns(tree: Tree, stem: int, n_stem: int) -> np.ndarray:
    """The column of each computed token: stem tokens from 0 on, branch tokens from `n_stem` on."""
    return np.concatenate([np.arange(stem - tree.n_kept), n_stem + np.arange(len(tree.tokens) - stem)])


def _pairs(tree: Tree, column: np.ndarray) -> Iterator[tuple[int, int]]:
    for asked in tree.reads.values():
        for node, target in asked:
            yield int(column[node - tree.n_kept]), target
