"""Every token once: trees hold all sequences, show a token its ancestors alone, and stay within their size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.backends.plan import TokenSequence, plan


def sequence(text: str, scored: int) -> TokenSequence:
    """One token a letter; the last `scored` of them are asked."""
    return TokenSequence(tuple(map(ord, text)), len(text) - scored)


def path(tree, node):
    """Tokens from the root to this node."""
    return [] if node < 0 else [*path(tree, tree.parents[node]), tree.tokens[node]]


SEQUENCES = st.lists(
    st.tuples(st.text("ab", min_size=2, max_size=9), st.integers(1, 8)).map(
        lambda pair: sequence(pair[0], min(pair[1], len(pair[0]) - 1))
    ),
    min_size=1,
    max_size=8,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(SEQUENCES, st.integers(4, 40))
def test_every_scored_token_is_predicted_after_exactly_what_stands_before_it(sequences, max_tree):
    planned = plan(sequences, max_tree)

    reads = {index: (tree, pairs) for tree in planned.trees for index, pairs in tree.reads.items()}
    assert sorted(reads) == list(range(len(sequences)))
    for index, asked in enumerate(sequences):
        tree, pairs = reads[index]
        assert [target for _, target in pairs] == list(asked.ids[asked.scored_from :])
        for place, (node, _) in enumerate(pairs, asked.scored_from):
            assert tuple(path(tree, node)) == asked.ids[:place]
            assert tree.depths[node] == place - 1


@settings(derandomize=True, max_examples=200, deadline=None)
@given(SEQUENCES, st.integers(4, 40))
def test_a_tree_is_no_larger_than_allowed_unless_a_single_sequence_is(sequences, max_tree):
    for tree in plan(sequences, max_tree).trees:
        assert len(tree.tokens) <= max_tree or len(tree.reads) == 1


@settings(derandomize=True, max_examples=100, deadline=None)
@given(SEQUENCES)
def test_a_token_sees_itself_and_what_stands_before_it_and_nothing_else(sequences):
    for tree in plan(sequences).trees:
        seen = tree.visible()
        for node in range(len(tree.tokens)):
            at = {node}
            while tree.parents[min(at)] >= 0:
                at.add(tree.parents[min(at)])
            assert set(seen[node].nonzero()[0].tolist()) == at


def test_shared_tokens_are_computed_once_and_last_tokens_not_at_all():
    planned = plan([sequence("history:heat", 4), sequence("history:help", 4), sequence("history:heat", 4)])

    (tree,) = planned.trees
    assert "".join(map(chr, tree.tokens)) == "history:healp"[:11] + "l"
    assert planned.n_computed == 12
    assert planned.n_naive == 36


def test_prompts_that_share_little_do_not_share_a_pass():
    assert len(plan([sequence("abcdef?x", 1), sequence("abzzzz?x", 1)]).trees) == 2
    assert len(plan([sequence("abcdef?x", 1), sequence("abcdez?x", 1)]).trees) == 1


def test_a_single_sequence_is_a_chain_and_a_fork_is_not():
    assert plan([sequence("abc", 1), sequence("abd", 1)]).trees[0].is_chain  # the last tokens are not computed
    assert not plan([sequence("abcx", 2), sequence("abdx", 2)]).trees[0].is_chain


@pytest.mark.parametrize(("ids", "start"), [((), 0), ((1,), 0), ((1, 2), 0), ((1, 2), 2)])
def test_a_sequence_needs_something_to_score_and_something_before_it(ids, start):
    with pytest.raises(AssertionError, match="a continuation has tokens"):
        TokenSequence(ids, start)
