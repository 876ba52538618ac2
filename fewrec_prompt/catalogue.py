"""The k best titles of a whole catalogue, exactly, without scoring every title.

Titles share a trie of tokens. A log-probability never rises along a title, so what a node has lost so far bounds
everything below it; best-first search (A*: Hart, Nilsson and Raphael 1968) computes only nodes whose bound still beats
the k-th best title found. Here are the trie, the bounds and the search; the model's side is a function from nodes to
log-probabilities.

No exact search can do with fewer nodes than those whose bound beats the final k-th score (`Found.n_needed`): a model
that gave the rest of such a title probability 1 would agree with everything computed so far, and the title would win.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from fewrec_prompt.errors import DataError

Expand = Callable[[np.ndarray], np.ndarray]
"""Log-probabilities (nats) of the children of these nodes, in the order of `Trie.children`; parents come first."""


@dataclass(frozen=True, slots=True)
class Trie:
    """Titles as paths of tokens; node 0 is the prompt. Leaves are titles: no title is a prefix of another.

    Nodes stand level by level and titles in the order of their tokens, so that what is below a node is a range: its
    children are the nodes from `first_child[node]` to `first_child[node + 1]`, its titles the `n_titles[node]` places
    of `titles` from `first_title[node]` on (several at a leaf if they read the same). 24 bytes a node.
    """

    tokens: np.ndarray  # (n_nodes,) what leads to a node; −1 at the prompt
    parents: np.ndarray  # (n_nodes,) −1 at the prompt
    depths: np.ndarray  # (n_nodes,)
    first_child: np.ndarray  # (n_nodes + 1,)
    first_title: np.ndarray  # (n_nodes,)
    n_titles: np.ndarray  # (n_nodes,)
    titles: np.ndarray  # (n_titles,) places in the catalogue
    lengths: np.ndarray  # (n_titles,) tokens, in the order of `titles`

    @property
    def n_inner(self) -> int:
        """Nodes that exhaustive scoring computes: all but the leaves, whose tokens are only predicted."""
        return int((np.diff(self.first_child) > 0).sum()) - 1

    def n_children(self, nodes: np.ndarray) -> np.ndarray:
        """Of each of these nodes; 0 at a leaf."""
        counts: np.ndarray = self.first_child[nodes + 1] - self.first_child[nodes]
        return counts

    def children(self, nodes: np.ndarray) -> np.ndarray:
        """Children of these nodes, those of the first node first."""
        return _ranges(self.first_child[nodes], self.n_children(nodes))

    def rows(self, nodes: np.ndarray) -> np.ndarray:
        """Places in `titles` of what is at or below these nodes, those of the first node first."""
        return _ranges(self.first_title[nodes], self.n_titles[nodes])


@lru_cache(maxsize=2)
def build_trie(titles: tuple[tuple[int, ...], ...]) -> Trie:
    """A trie of token sequences; the same titles again cost nothing.

    Raises DataError if one title is the beginning of another: titles have to end in what closes them.
    """
    order = np.array(sorted(range(len(titles)), key=titles.__getitem__))
    lengths = np.array([len(titles[place]) for place in order])
    flat = np.fromiter(chain.from_iterable(titles[place] for place in order), dtype=np.int32)
    nodes, ends = _levels(flat, lengths)
    tokens, parents, depths, first_title, n_titles = nodes
    first_child = np.searchsorted(parents, np.arange(len(parents) + 1)).astype(np.int32)
    trie = Trie(tokens, parents, depths, first_child, first_title, n_titles, order, lengths)
    if (clash := trie.n_children(ends) > 0).any():
        raise DataError(f"title {order[clash][0]} of the catalogue is the beginning of another; titles need an end")
    return trie


def _levels(flat: np.ndarray, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Columns of the trie of sorted titles, level by level, and the node at which each title ends.

    A node is a run of rows with the same parent and the same token; in sorted order they stand together.
    """
    starts = np.cumsum(lengths) - lengths
    at = np.zeros(len(lengths), dtype=np.int32)
    levels, n_nodes = [np.array([[-1], [-1], [0], [0], [len(lengths)]], dtype=np.int32)], 1
    for depth in range(lengths.max()):
        rows = np.flatnonzero(lengths > depth)
        tokens, parents = flat[starts[rows] + depth], at[rows]
        is_new = np.append(True, (np.diff(parents) != 0) | (np.diff(tokens) != 0))
        new = np.flatnonzero(is_new)
        counts = np.diff(new, append=len(rows))
        depths = np.full(len(new), depth + 1)
        levels.append(np.stack([tokens[new], parents[new], depths, rows[new], counts]).astype(np.int32))
        at[rows] = n_nodes - 1 + np.cumsum(is_new)
        n_nodes += len(new)
    return list(np.concatenate(levels, axis=1)), at


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers of each range, one range after the other."""
    numbers: np.ndarray = np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    return numbers


@dataclass(frozen=True, slots=True)
class Found:
    """The best titles, best first, and how sure that is.

    `gap` is what an unseen title could still be better by than the last of them: 0 if the search was exact.
    `n_needed` of the nodes computed had a bound above the last score found, which no exact search can leave out.
    """

    titles: tuple[int, ...]
    scores: tuple[float, ...]
    n_computed: int
    n_needed: int
    gap: float

    @property
    def exact(self) -> bool:
        return self.gap <= 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """How a title's log-probability becomes its score: the sum (or mean per token) plus an offset of its own.

    The offset is −alpha · twin score under pmi; −inf for titles that must not be found.
    """

    mean: bool
    offsets: np.ndarray  # (n_titles,)

    @property
    def width(self) -> int:
        """Nodes a pass that waste few (docs/LOG.md): offsets crowd the bounds, so more of them are needed anyway."""
        return 128 if self.offsets[np.isfinite(self.offsets)].any() else 64


def best_titles(
    trie: Trie, rule: Rule, expand: Expand, k: int, *, budget: int | None = None, width: int | None = None
) -> Found:
    """The k best titles under the rule, computing as few nodes as the bounds allow, `width` of them at a time.

    With a budget (nodes computed) it may stop early; then `gap` is positive and the result approximate.
    """
    search, left = _Search(trie, rule, k), math.inf if budget is None else budget
    while (n := int(min(width or rule.width, left))) > 0 and search.nodes.size:
        left -= search.step(n, expand)
    return search.result()


class _Search:
    """One best-first search. Open are nodes whose children are not known yet and whose bound beats the threshold."""

    def __init__(self, trie: Trie, rule: Rule, k: int) -> None:
        self.trie, self.k = trie, k
        self.weights = 1.0 / trie.lengths if rule.mean else np.ones(len(trie.lengths))
        self.offsets = rule.offsets[trie.titles]
        self.titles, self.scores = np.zeros(0, dtype=np.int64), np.zeros(0)  # the best so far, best first
        self.nodes, self.totals = np.zeros(1, dtype=np.int64), np.zeros(1)  # open; totals in nats
        self.bounds = self._best_below(self.nodes, self._values(self.nodes, self.totals))
        self.computed: list[np.ndarray] = []  # bounds of the nodes computed
        self._close()

    @property
    def threshold(self) -> float:
        return float(self.scores[-1]) if len(self.scores) == self.k else -math.inf

    def step(self, width: int, expand: Expand) -> int:
        """Compute the open nodes with the best bounds; returns how many."""
        first = np.argsort(-self.bounds, kind="stable")[:width]
        nodes, totals = self.nodes[first], self.totals[first]
        self.computed.append(self.bounds[first])
        self.nodes, self.totals, self.bounds = (np.delete(x, first) for x in (self.nodes, self.totals, self.bounds))
        self._learn(self.trie.children(nodes), np.repeat(totals, self.trie.n_children(nodes)) + expand(nodes))
        self._close()
        return len(nodes)

    def _values(self, nodes: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """What each title at or below these nodes would score if it lost nothing more: at a leaf, its score."""
        rows = self.trie.rows(nodes)
        values: np.ndarray = np.repeat(totals, self.trie.n_titles[nodes]) * self.weights[rows] + self.offsets[rows]
        return values

    def _best_below(self, nodes: np.ndarray, values: np.ndarray) -> np.ndarray:
        sizes = self.trie.n_titles[nodes]
        best: np.ndarray = np.maximum.reduceat(values, np.cumsum(sizes) - sizes)
        return best

    def _learn(self, nodes: np.ndarray, totals: np.ndarray) -> None:
        """File nodes whose log-probability is known now: leaves as titles with their scores, the others as open."""
        values, inner = self._values(nodes, totals), self.trie.n_children(nodes) > 0
        ended = np.repeat(~inner, self.trie.n_titles[nodes])
        self._keep(self.trie.titles[self.trie.rows(nodes)][ended], values[ended])
        self.nodes = np.append(self.nodes, nodes[inner])
        self.totals = np.append(self.totals, totals[inner])
        self.bounds = np.append(self.bounds, self._best_below(nodes, values)[inner])

    def _keep(self, titles: np.ndarray, scores: np.ndarray) -> None:
        titles, scores = np.append(self.titles, titles), np.append(self.scores, scores)
        best = np.lexsort((titles, -scores))[: self.k]  # of equal scores the first title of the catalogue
        best = best[scores[best] > -math.inf]
        self.titles, self.scores = titles[best], scores[best]

    def _close(self) -> None:
        """Forget nodes below which nothing can get in any more."""
        kept = self.bounds > self.threshold
        self.nodes, self.totals, self.bounds = self.nodes[kept], self.totals[kept], self.bounds[kept]

    def result(self) -> Found:
        """What was found so far."""
        bounds = np.concatenate(self.computed) if self.computed else np.zeros(0)
        gap = float(self.bounds.max()) - self.threshold if self.bounds.size else 0.0
        needed = int((bounds > self.threshold).sum())
        return Found(tuple(self.titles.tolist()), tuple(self.scores.tolist()), bounds.size, needed, gap)
