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
        assert tree.n_computed <= max_tree or len(tree.reads) == 1


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


def test_prompts_that_lie_in_one_another_are_one_tree_however_short_the_first_is():
    chain = [sequence("abcdefghijklmnop"[:n], 1) for n in (3, 5, 7, 11, 16)]
    planned = plan(chain)
    assert len(planned.trees) == 1
    assert planned.n_computed == 15, "the longest but its last token, which is only predicted"


def test_prompts_that_share_little_do_not_share_a_pass():
    assert len(plan([sequence("abcdef?x", 1), sequence("abzzzz?x", 1)]).trees) == 2
    assert len(plan([sequence("abcdef?x", 1), sequence("abcdez?x", 1)]).trees) == 1


def test_the_stem_is_what_stands_in_a_row_before_the_first_fork():
    def stems(*texts: str) -> list[int]:
        return [tree.n_stem for tree in plan([sequence(text, 2) for text in texts]).trees]

    assert stems("abcx", "abcy") == [3]  # the last tokens are not computed: one chain
    assert stems("abcxz", "abcyz") == [3]
    assert stems("abcxz", "abyz") == [2]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(SEQUENCES, st.randoms(use_true_random=False), st.integers(4, 40))
def test_the_order_of_sequences_changes_no_tree(sequences, random, max_tree):
    turned = random.sample(sequences, len(sequences))

    one, other = plan(sequences, max_tree), plan(turned, max_tree)

    assert [tree.tokens for tree in one.trees] == [tree.tokens for tree in other.trees]
    assert [tree.parents for tree in one.trees] == [tree.parents for tree in other.trees]


def test_a_plan_counts_what_is_asked_what_is_computed_and_what_was_saved():
    planned = plan([sequence("history:heat", 4), sequence("history:help", 4)])

    assert (planned.n_asked, planned.n_computed, planned.n_naive) == (8, 12, 24)


def test_a_beginning_that_other_users_share_is_kept_and_counted_once():
    """Long enough to be worth it, never a scored token, and never with gradients."""
    texts = [("preamble-of-twenty-x" + user, 20) for user in ("ada:heat", "bob:heat")]
    asked = [TokenSequence(tuple(map(ord, text)), len(text) - 4, n) for text, n in texts]

    kept = [plan([one]).trees[0].n_kept for one in asked]
    short = plan([TokenSequence(asked[0].ids, asked[0].scored_from, 15)]).trees[0].n_kept
    beyond = plan([TokenSequence(asked[0].ids, 20, 23)]).trees[0].n_kept
    tuned = plan(asked, keep=False).trees[0].n_kept

    assert (kept, short, beyond, tuned) == ([20, 20], 0, 19, 0)


def test_what_the_trees_of_one_prompt_begin_with_is_computed_once():
    """Twenty titles of three letters behind a prompt of thirty do not fit 40 tokens; the prompt is not repeated."""
    titles = [f"{one}{other}z" for one in "abcd" for other in "vwxyz"]
    planned = plan([sequence("p" * 30 + title, 3) for title in titles], max_tree=40)

    assert len(planned.trees) == 1  # 29 kept, the thirtieth, 4 firsts and 20 seconds
    planned = plan([sequence("p" * 30 + title, 3) for title in titles], max_tree=20)
    assert len(planned.trees) == 2
    assert {tree.kept for tree in planned.trees} == {(ord("p"),) * 29}
    assert planned.n_computed == 29 + 2 + 4 + 20


@pytest.mark.parametrize(("ids", "start"), [((), 0), ((1,), 0), ((1, 2), 0), ((1, 2), 2)])
def test_a_sequence_needs_something_to_score_and_something_before_it(ids, start):
    with pytest.raises(AssertionError, match="a continuation has tokens"):
        TokenSequence(ids, start)
