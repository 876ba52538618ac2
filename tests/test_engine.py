"""Packed equals plain, for many families and many trees; and what would make them differ is noticed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import model
from _trees import EVERY_ATTENTION, EVERY_FAMILY, forest, gap

from fewrec_prompt.backends import engine, head
from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence, Tree, plan
from fewrec_prompt.backends.probe import why_not_packed

# --- packed = plain ---------------------------------------------------------------------------------------------------


def worst_gap(made, n_forests: int) -> float:
    rng = np.random.default_rng(0)
    return max(gap(made, forest(rng)) for _ in range(n_forests))


@EVERY_FAMILY
@EVERY_ATTENTION
def test_packed_is_plain(family, attention):
    """12 trees for each of 9 families × 3 kinds of attention: 324. Texts, 200 a family: test_paths.py."""
    assert worst_gap(model(family, attention), 12) < 1e-4


@pytest.mark.long
@EVERY_FAMILY
@EVERY_ATTENTION
def test_packed_is_plain_on_many_trees(family, attention):
    assert worst_gap(model(family, attention), 300) < 1e-4


@EVERY_FAMILY
def test_a_tree_may_be_larger_than_the_context_window_that_each_of_its_sequences_fits(family):
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    made = model(family, **{positions: 32})
    stem = tuple(range(5, 25))

    assert gap(made, [TokenSequence((*stem, n, n + 1, n + 2, n + 3), 20) for n in range(30, 60)]) < 1e-4


def test_a_sequence_longer_than_any_tree_is_scored_without_a_mask_of_its_square(monkeypatch):
    sequences = [TokenSequence((*range(2, 62), n, 3), 60) for n in (70, 71)]
    monkeypatch.setattr(engine, "plan", lambda asked, **given: plan(asked, max_tree=20, keep=False))
    monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda *_: pytest.fail("a mask was made"))

    assert gap(model(), sequences) < 1e-4


@EVERY_FAMILY
@EVERY_ATTENTION
def test_the_probe_finds_that_these_families_can_be_packed(family, attention):
    assert why_not_packed(model(family, attention)) is None


# --- mutants ----------------------------------------------------------------------------------------------------------


def no_mask(monkeypatch):
    """Every branch token sees all before it in the pass, those of other candidates too."""
    monkeypatch.setattr(Tree, "visible", lambda tree, first=0: np.tri(len(tree.tokens) - first, dtype=bool))


def laid_out_wrongly(monkeypatch, change):
    real = engine.lay_out
    monkeypatch.setattr(engine, "lay_out", lambda *given: change(real(*given)))


def no_positions(monkeypatch):
    """Tokens are counted through the pass, not along their own sequence."""
    counted = lambda packed: np.broadcast_to(np.arange(packed.ids.shape[1]), packed.ids.shape).copy()  # noqa: E731
    laid_out_wrongly(monkeypatch, lambda packed: replace(packed, positions=counted(packed)))


def off_by_one(monkeypatch):
    laid_out_wrongly(monkeypatch, lambda packed: replace(packed, nodes=np.maximum(packed.nodes - 1, 0)))


def double_bos(monkeypatch):
    real = engine.plan

    def twice(sequences, **given):
        return real([TokenSequence((one.ids[0], *one.ids), one.scored_from + 1) for one in sequences], **given)

    monkeypatch.setattr(engine, "plan", twice)


def last_token_dropped(monkeypatch):
    real = Engine._pass

    def dropped(self, trees, read):
        return {index: torch.cat([row[:-1], row.new_zeros(1)]) for index, row in real(self, trees, read).items()}

    monkeypatch.setattr(Engine, "_pass", dropped)


def leak(monkeypatch):
    """The first token of a branch sees the last one of the branch before it."""
    real = Tree.visible

    def leaking(tree, first=0):
        seen = real(tree, first)
        for node, parent in enumerate(tree.parents):
            if node > first and parent not in (node - 1, -1):
                seen[node - first, node - first - 1] = True
        return seen

    monkeypatch.setattr(Tree, "visible", leaking)


def blind_stem(monkeypatch):
    """Branches do not see the last token of their stem."""

    def change(packed):
        visible = packed.visible.copy()
        visible[:, :, visible.shape[2] - visible.shape[1] - 1] = False
        return replace(packed, visible=visible)

    laid_out_wrongly(monkeypatch, change)


def rough_softmax(monkeypatch):
    real = head._adjusted
    monkeypatch.setattr(head, "_adjusted", lambda made, logits: real(made, logits).bfloat16().float())


def boolean_mask(monkeypatch):
    real = Engine._mask
    monkeypatch.setattr(
        Engine, "_mask", lambda self, packed: mask if (mask := real(self, packed)) is None else mask == 0
    )


@pytest.mark.parametrize(
    ("mutant", "family", "attention"),
    [
        (no_mask, "llama", "sdpa"),
        (no_mask, "llama", TREE),
        (no_mask, "gpt2", "eager"),
        (no_positions, "gpt2", "sdpa"),
        (no_positions, "llama", TREE),
        (off_by_one, "llama", "sdpa"),
        (double_bos, "llama", "sdpa"),
        (last_token_dropped, "llama", "sdpa"),
        (leak, "llama", TREE),
        (leak, "llama", "sdpa"),
        (blind_stem, "llama", TREE),
        (rough_softmax, "llama", "sdpa"),
        (boolean_mask, "llama", "eager"),
    ],
)
def test_a_planted_mistake_shows(monkeypatch, mutant, family, attention):
    """What loses a merge between prompt and answer shows in test_tokens.py, against each whole text."""
    made = model(family, attention)
    mutant(monkeypatch)

    assert worst_gap(made, 12) > 1e-3


@EVERY_FAMILY
@EVERY_ATTENTION
@pytest.mark.parametrize("mutant", [no_mask, no_positions, leak])
def test_the_probe_notices_a_family_that_ignores_mask_or_positions(monkeypatch, family, attention, mutant):
    """Freshly drawn weights are so small that a wrong mask moves a score by less than the tolerance: ours are not."""
    made = model(family, attention)
    mutant(monkeypatch)

    assert re.search("differ by|failed", why_not_packed(made))
