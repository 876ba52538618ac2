"""The k best titles of a whole catalogue, exactly, without scoring every title.

Titles share a trie of tokens. A log-probability never rises along a title, so what a node has lost so far bounds
everything below it; best-first search computes only nodes whose bound still beats the k-th best title found. Here are
the trie, the bounds and the search; the model's side is a function from nodes to log-probabilities.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewrec_prompt.errors import DataError

Expand = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""Log-probabilities (nats) of each given node's children, in the trie's order; parents are asked before children."""


@dataclass(frozen=True, slots=True)
class Trie:
    """Titles as paths of tokens; node 0 is the prompt. Leaves are titles: no title is a prefix of another.

    `children[node]` are its children, `tokens[node]` the token that leads to it, `titles_of[node]` the titles that end
    there (several if they read the same), `n_longest[node]` the tokens of the longest title at or below it.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    children: list[list[int]]
    titles_of: list[list[int]]
    n_longest: np.ndarray

    @property
    def n_inner(self) -> int:
        """Nodes that exhaustive scoring computes: all but the leaves, whose tokens are only predicted."""
        return sum(1 for below in self.children if below) - 1

    def path(self, node: int) -> list[int]:
        """Nodes from the first token to this one."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]


def build_trie(titles: Sequence[tuple[int, ...]]) -> Trie:
    """A trie of token sequences.

    Raises DataError if one title is the beginning of another: titles have to end in what closes them.
    """
    trie = Trie([-1], [-1], [0], [[]], [[]], np.zeros(0))
    edges: dict[tuple[int, int], int] = {}
    for index, title in enumerate(titles):
        trie.titles_of[_insert(trie, edges, title)].append(index)
    clash = next((found for found, below in zip(trie.titles_of, trie.children, strict=True) if found and below), None)
    if clash is not None:
        raise DataError(f"title {clash[0]} of the catalogue is the beginning of another; titles need an end")
    lengths = [depth if found else 0 for depth, found in zip(trie.depths, trie.titles_of, strict=True)]
    return replace(trie, n_longest=_best_below(trie, np.array(lengths, float)))


def _insert(trie: Trie, edges: dict[tuple[int, int], int], title: Sequence[int]) -> int:
    node = 0
    for token in title:
        child = edges.get((node, token))
        if child is None:
            child = edges[node, token] = len(trie.tokens)
            trie.tokens.append(token)
            trie.parents.append(node)
            trie.depths.append(trie.depths[node] + 1)
            trie.children[node].append(child)
            trie.children.append([])
            trie.titles_of.append([])
        node = child
    return node


def _best_below(trie: Trie, values: np.ndarray) -> np.ndarray:
    """Largest value at or below each node."""
    best = values.copy()
    for node in range(len(trie.parents) - 1, 0, -1):  # children come after their parents
        parent = trie.parents[node]
        best[parent] = max(best[parent], best[node])
    return best


@dataclass(frozen=True, slots=True)
class Found:
    """The best titles, best first, and how sure that is.

    `gap` is what an unseen title could still be better by than the last of them: 0 if the search was exact.
    """

    titles: tuple[int, ...]
    scores: tuple[float, ...]
    n_computed: int
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


def best_titles(trie: Trie, rule: Rule, expand: Expand, k: int, *, budget: int | None = None, width: int = 64) -> Found:
    """The k best titles under the rule, computing as few nodes as the bounds allow, `width` of them at a time.

    With a budget (nodes computed) it may stop early; then `gap` is positive and the result approximate.
    """
    return _Search(trie, rule, k).run(expand, width, math.inf if budget is None else budget)


class _Search:
    """One best-first search: nodes whose children are not known yet, the best bound first."""

    def __init__(self, trie: Trie, rule: Rule, k: int) -> None:
        self.trie, self.rule, self.k = trie, rule, k
        ends = [max((rule.offsets[title] for title in found), default=-math.inf) for found in trie.titles_of]
        self.best_offset = _best_below(trie, np.array(ends))
        self.logprob = {0: 0.0}
        self.open: list[tuple[float, int]] = [(-math.inf, 0)]
        self.found: list[tuple[float, int]] = []  # a heap of the k best (score, -title): the worst of them first
        self.n_computed = 0

    def run(self, expand: Expand, width: int, budget: float) -> Found:
        while self._bound() > self._threshold() and self.n_computed < budget:
            nodes = self._take(min(width, int(min(budget - self.n_computed, width))))
            self.n_computed += len(nodes)
            for node, logprobs in zip(nodes, expand(nodes), strict=True):
                self._learn(node, logprobs)
        return self._result()

    def _bound(self) -> float:
        return -self.open[0][0] if self.open else -math.inf

    def _threshold(self) -> float:
        return self.found[0][0] if len(self.found) >= self.k else -math.inf

    def _take(self, width: int) -> list[int]:
        nodes: list[int] = []
        while self.open and len(nodes) < width and self._bound() > self._threshold():
            nodes.append(heapq.heappop(self.open)[1])
        return nodes

    def _learn(self, node: int, logprobs: np.ndarray) -> None:
        """File the children of a computed node: titles with their score, inner nodes with their bound."""
        before = self.logprob[node]
        for child, logprob in zip(self.trie.children[node], logprobs, strict=True):
            total = before + float(logprob)
            value = total / float(self.trie.n_longest[child]) if self.rule.mean else total
            for title in self.trie.titles_of[child]:
                self._keep(value + float(self.rule.offsets[title]), title)
            if self.trie.children[child] and value + self.best_offset[child] > self._threshold():
                self.logprob[child] = total
                heapq.heappush(self.open, (-(value + float(self.best_offset[child])), child))

    def _keep(self, score: float, title: int) -> None:
        if score == -math.inf:
            return
        heapq.heappush(self.found, (score, -title))
        if len(self.found) > self.k:
            heapq.heappop(self.found)

    def _result(self) -> Found:
        ordered = sorted(self.found, reverse=True)
        gap = max(0.0, self._bound() - self._threshold()) if self._bound() > self._threshold() else 0.0
        titles = tuple(-title for _, title in ordered)
        return Found(titles, tuple(score for score, _ in ordered), self.n_computed, gap)
