"""Best-first search over a trie finds exactly what scoring every title finds, with less work."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.catalogue import Expand, Rule, Trie, best_titles, build_trie
from fewrec_prompt.errors import DataError
from fewrec_prompt.seeds import rng_for

END = 9
TITLES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5).map(lambda t: (*t, END)), min_size=1, max_size=40)


def logprobs_after(path: tuple[int, ...], seed: int) -> np.ndarray:
    """Log-probabilities of all ten tokens, which depend on the path alone and sum to one as probabilities."""
    shares = rng_for(seed, "node", *path).dirichlet(np.full(10, 0.5))
    return np.log(np.maximum(shares, 1e-12))


def made_up_model(trie: Trie, seed: int, asked: list[int] | None = None) -> Expand:
    """A model whose next token depends on the path; what it was asked goes into `asked`."""

    def path(node: int) -> tuple[int, ...]:
        return (*path(trie.parents[node]), int(trie.tokens[node])) if node else ()

    def expand(nodes: np.ndarray) -> np.ndarray:
        if asked is not None:
            asked.extend(nodes.tolist())
        rows = [logprobs_after(path(node), seed)[trie.tokens[trie.children(np.array([node]))]] for node in nodes]
        return np.concatenate(rows)

    return expand


def every_score(titles: Sequence[tuple[int, ...]], rule: Rule, seed: int) -> np.ndarray:
    """Score of each title, token by token."""
    rows = [[logprobs_after(title[:place], seed)[token] for place, token in enumerate(title)] for title in titles]
    return np.array([np.mean(row) if rule.mean else np.sum(row) for row in rows]) + rule.offsets


@settings(derandomize=True, deadline=None, max_examples=300)
@given(titles=TITLES, mean=st.booleans(), k=st.integers(1, 12), width=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_search_finds_what_scoring_every_title_finds(
    titles: list[tuple[int, ...]], mean: bool, k: int, width: int, seed: int
) -> None:
    trie = build_trie(tuple(titles))
    rule = Rule(mean, rng_for(seed, "offsets").normal(0, 2, len(titles)))

    found = best_titles(trie, rule, made_up_model(trie, seed), k, width=width)

    wanted = every_score(titles, rule, seed)
    assert found.exact
    best = np.sort(wanted[np.isfinite(wanted)])[::-1][:k]
    assert found.scores == pytest.approx(best)
    assert [wanted[title] for title in found.titles] == pytest.approx(best)
    assert found.n_needed <= found.n_computed <= trie.n_inner + 1


@settings(derandomize=True, deadline=None, max_examples=150)
@given(titles=TITLES, mean=st.booleans(), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_one_node_at_a_time_it_computes_only_what_no_exact_search_can_leave_out(
    titles: list[tuple[int, ...]], mean: bool, k: int, seed: int
) -> None:
    """A node is needed if some title would get in should the rest of it be certain, which nobody can know before."""
    trie, rule = build_trie(tuple(titles)), Rule(mean, rng_for(seed, "offsets").normal(0, 2, len(titles)))
    asked: list[int] = []

    found = best_titles(trie, rule, made_up_model(trie, seed, asked), k, width=1)

    last = found.scores[-1] if len(found.scores) == k else -np.inf
    hopeful: set[tuple[int, ...]] = set()
    for title, offset in zip(titles, rule.offsets, strict=True):
        steps = [logprobs_after(title[:place], seed)[token] for place, token in enumerate(title)]
        lost = np.cumsum([0.0, *steps[:-1]]) / (len(title) if mean else 1)
        hopeful |= {title[:place] for place in range(len(title)) if lost[place] + offset > last}
    assert found.n_needed == found.n_computed == len(asked) == len(set(asked)) == len(hopeful)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(titles=TITLES)
def test_a_trie_holds_every_title_and_nothing_twice(titles: list[tuple[int, ...]]) -> None:
    trie = build_trie(tuple(titles))

    paths = [()]
    for parent, token in zip(trie.parents[1:], trie.tokens[1:], strict=True):
        paths.append((*paths[parent], int(token)))
    assert set(paths) == {title[:end] for title in titles for end in range(len(title) + 1)}
    assert len(paths) == len(set(paths)) == len(trie.first_child) - 1
    for node, path in enumerate(paths):
        here = np.array([node])
        assert {paths[child] for child in trie.children(here)} == {p for p in paths if p and p[:-1] == path}
        below = {place for place, title in enumerate(titles) if title[: len(path)] == path}
        assert set(trie.titles[trie.rows(here)]) == below
    assert trie.n_inner == len({title[:end] for title in titles for end in range(1, len(title))})


def test_titles_that_were_seen_are_never_found_and_cost_nothing() -> None:
    titles = [(first, second, END) for first in range(5) for second in range(5)]
    trie = build_trie(tuple(titles))
    seen = np.array([-np.inf if first < 4 else 0.0 for first, _, _ in titles])

    found = best_titles(trie, Rule(False, seen), made_up_model(trie, 0), 10)

    assert {titles[title][0] for title in found.titles} == {4}
    assert found.n_computed <= 1 + 1 + 5  # the prompt, the one branch left, and its five endings


def test_a_budget_stops_early_and_says_how_much_better_an_unseen_title_could_be() -> None:
    titles = [(a, b, c, END) for a in range(5) for b in range(5) for c in range(5)]
    trie = build_trie(tuple(titles))
    rule = Rule(False, np.zeros(len(titles)))
    model = made_up_model(trie, 1)

    short = best_titles(trie, rule, model, 3, budget=30, width=2)
    full = best_titles(trie, rule, model, 3)

    assert not short.exact
    assert short.n_computed <= 30 < full.n_computed
    assert full.scores[2] <= short.scores[2] + short.gap


def test_a_title_that_begins_another_is_refused() -> None:
    with pytest.raises(DataError, match="is the beginning of another"):
        build_trie(((1, 2), (1, 2, 3)))


def test_titles_that_read_the_same_are_found_both_unless_one_was_seen() -> None:
    trie = build_trie(((1, END), (2, END), (1, END)))
    seen = np.array([-np.inf, 0.0, 0.0])

    assert {0, 2} < set(best_titles(trie, Rule(False, np.zeros(3)), made_up_model(trie, 0), 3).titles)
    assert set(best_titles(trie, Rule(False, seen), made_up_model(trie, 0), 3).titles) == {1, 2}
