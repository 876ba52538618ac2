"""Packed equals plain, for many families and many trees; and what would make them differ is noticed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, GROUPED, TITLES, chat, model, plain, tokenizer

from fewrec_prompt.backends import engine, head
from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence, Tree, plan
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.prefix import Kept, KeyValues, SoftTokens
from fewrec_prompt.backends.probe import PROBE, choose_layout, small_copy, why_not_packed
from fewrec_prompt.errors import BudgetError, NumericError

MODE = NumericMode(precision="fp32", reason="a test", device="cpu")
EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))
EVERY_ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa", TREE])


def forest(rng: np.random.Generator) -> list[TokenSequence]:
    """A prompt with branches, as candidates make them: shared beginnings, one-token and long answers, repeats."""
    stem = rng.integers(2, 90, size=rng.integers(1, 40)).tolist()
    tail = rng.integers(2, 90, size=60).tolist()
    sequences = []
    for _ in range(rng.integers(1, 7)):
        shared = tail[: rng.integers(0, 6)]
        length = int(rng.choice([1, 1, 2, 5, 13])) if rng.random() < 0.95 else 60
        own = rng.integers(2, 90, size=length).tolist()
        sequences.append(TokenSequence((*stem, *shared, *own), len(stem) + int(rng.integers(0, len(shared) + 1))))
    return sequences


def gap(made, sequences) -> float:
    """Largest difference in nats between the two ways to score."""
    with torch.inference_mode():
        pairs = zip(Engine(made).logprobs(sequences), Engine(made, "plain").logprobs(sequences), strict=True)
        return max(float((one - other).abs().max()) for one, other in pairs)


# --- packed = plain --------------------------------------------------------------------------------------------------


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


# --- mutants ---------------------------------------------------------------------------------------------------------


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


# --- several users in a pass -----------------------------------------------------------------------------------------


def crowd(n_users: int) -> list[TokenSequence]:
    """Several users' trees of many sizes; some of them begin alike."""
    rng = np.random.default_rng(1)
    preamble = rng.integers(2, 90, size=20).tolist()
    own = [one for _ in range(n_users) for one in forest(rng)]
    shared = [
        TokenSequence((*preamble, *one.ids), len(preamble) + one.scored_from, len(preamble))
        for _ in range(n_users)
        for one in forest(rng)
    ]
    return own + shared


@EVERY_FAMILY
@EVERY_ATTENTION
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_trees_of_several_users_side_by_side_are_scored_as_if_alone(family, attention, budget):
    made, sequences = model(family, attention), crowd(4)
    side_by_side = Engine(made, unit="throughput", token_budget=budget)

    with torch.inference_mode():
        assert distance(side_by_side.logprobs(sequences), Engine(made, "plain").logprobs(sequences)) < 1e-4


def distance(one, other) -> float:
    return float((torch.cat(list(one)) - torch.cat(list(other))).abs().max())


def test_a_budget_bounds_the_tokens_of_a_pass_and_fills_it(monkeypatch):
    made, sequences, seen = model(attention=TREE), crowd(6), []
    real = Body.hidden
    monkeypatch.setattr(Body, "hidden", lambda self, ids, **given: seen.append(ids.size) or real(self, ids, **given))
    for budget in (200, 2000):
        seen.clear()
        with torch.inference_mode():
            Engine(made, unit="throughput", token_budget=budget).logprobs(sequences)
        assert max(seen) <= max(budget, max(tree.n_computed for tree in plan(sequences).trees))
        if budget == 2000:
            assert len(seen) < len(plan(sequences).trees) / 3


def test_in_a_canonical_unit_the_budget_the_order_and_the_company_change_no_bit():
    made, sequences = model(attention=TREE), crowd(3)
    with torch.inference_mode():
        once = Engine(made).logprobs(sequences)
        for budget in (1, 77, 100_000):
            again = Engine(made, token_budget=budget).logprobs(sequences[::-1])[::-1]
            assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_shared_beginning_is_computed_once_and_the_bits_do_not_tell(monkeypatch):
    made, sequences, seen = model(attention=TREE), crowd(4)[-8:], []
    real = Body.hidden
    monkeypatch.setattr(Body, "hidden", lambda self, ids, **given: seen.append(ids.size) or real(self, ids, **given))
    one = Engine(made)

    with torch.inference_mode():
        first, again = one.logprobs(sequences), one.logprobs(sequences)

    assert seen.count(20) == 1  # the preamble
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_after_a_change_of_weights_nothing_kept_is_used_once_it_is_forgotten():
    made, sequences = model(attention=TREE), crowd(2)[-4:]
    one = Engine(made)
    with torch.inference_mode():
        one.logprobs(sequences)
    with torch.no_grad():
        made.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with torch.inference_mode():
        reference = Engine(made, "plain").logprobs(sequences)
        stale = distance(one.logprobs(sequences), reference)
        one.forget()
        fresh = distance(one.logprobs(sequences), reference)

    assert stale > 1e-3
    assert fresh < 1e-4


def test_only_the_latest_few_beginnings_are_kept():
    made = []
    kept = Kept(lambda ids: made.append(ids) or ids, most=2)
    for ids in ((1,), (2,), (1,), (3,), (1,), (2,)):
        kept(ids)

    assert made == [(1,), (2,), (3,), (2,)]


# --- learned prefixes ------------------------------------------------------------------------------------------------

PREFIX = (7, 3, 50, 21, 9)


def prefixed(sequences):
    return [TokenSequence((*PREFIX, *one.ids), len(PREFIX) + one.scored_from) for one in sequences]


@EVERY_FAMILY
@pytest.mark.parametrize("layout", ["packed", "expanded", "plain"])
@pytest.mark.parametrize("unit", ["canonical", "throughput"])
def test_a_soft_prompt_of_real_embeddings_is_the_text_prompt(family, layout, unit):
    made, sequences = model(family), crowd(2)
    soft = SoftTokens(made.get_input_embeddings()(torch.tensor(PREFIX)).detach())

    with torch.inference_mode():
        learned = Engine(made, layout, unit=unit, soft=soft).logprobs(sequences)
        assert distance(learned, Engine(made, "plain").logprobs(prefixed(sequences))) < 1e-4


@EVERY_FAMILY
@pytest.mark.parametrize("layout", ["packed", "expanded", "plain"])
def test_learnedkeys_and_values_that_are_those_of_a_text_are_that_text(family, layout):
    made, sequences = model(family), crowd(2)
    with torch.inference_mode():
        kept = Engine(made).keys_and_values(PREFIX)
        learned = Engine(made, layout, unit="throughput", soft=kept).logprobs(sequences)
        assert distance(learned, Engine(made, "plain").logprobs(prefixed(sequences))) < 1e-4


@pytest.mark.parametrize("attention", ["sdpa", TREE])
def test_gradients_reach_a_soft_prompt_and_are_those_of_the_plain_path(attention):
    made, sequences = model(attention=attention), crowd(2)
    gradients = []
    for layout in ("packed", "plain"):
        vectors = torch.full((4, 32), 0.1).requires_grad_()
        sum(row.sum() for row in Engine(made, layout, soft=SoftTokens(vectors)).logprobs(sequences)).backward()
        gradients.append(vectors.grad)

    assert gradients[0].abs().max() > 0.01
    assert torch.allclose(*gradients, atol=1e-3, rtol=1e-3)


def test_gradients_reach_learnedkeys_and_values():
    made, sequences = model(attention=TREE), crowd(2)
    layers = tuple(tuple(torch.full((1, 2, 3, 8), 0.1).requires_grad_() for _ in range(2)) for _ in range(2))

    sum(row.sum() for row in Engine(made, soft=KeyValues(layers)).logprobs(sequences)).backward()

    assert all(states.grad.abs().max() > 0 for pair in layers for states in pair)


@pytest.mark.parametrize("attention", ["eager", "sdpa", TREE])
def test_adapters_inside_a_model_are_scored_and_trained_like_its_own_weights(attention):
    from peft import LoraConfig, get_peft_model

    sequences = crowd(2)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(model(attention=attention), adapter).get_base_model().eval()

    with torch.inference_mode():
        packed = Engine(adapted, unit="throughput").logprobs(sequences)
        assert distance(packed, Engine(adapted, "plain").logprobs(sequences)) < 1e-4
        assert distance(packed, Engine(model(attention=attention)).logprobs(sequences)) > 0.01
    sum(row.sum() for row in Engine(adapted).logprobs(sequences)).backward()
    learned = {name: weights for name, weights in adapted.named_parameters() if weights.requires_grad}
    assert all("lora" in name for name in learned)
    assert all(weights.grad.abs().max() > 0 for weights in learned.values())


def test_layers_that_are_computed_again_for_a_backward_pass_see_the_same_tree():
    """Gradient checkpointing calls attention outside of our own call; the mask still says what the pass is."""
    gradients = []
    for again in (False, True):
        made, sequences = model(attention=TREE), crowd(2)
        if again:
            made.train()
            made.activation_checkpointing_enable()
        sum(row.sum() for row in Engine(made).logprobs(sequences)).backward()
        gradients.append(made.model.layers[0].mlp.down_proj.weight.grad)

    assert torch.allclose(*gradients, atol=1e-4, rtol=1e-4)


# --- memory ----------------------------------------------------------------------------------------------------------


def little_memory(monkeypatch, most: int) -> list[int]:
    """Passes of more tokens fail as a GPU does; the sizes that were tried."""
    real, tried = Body.hidden, []

    def hidden(self, ids, **given):
        tried.append(ids.size)
        if ids.size > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, ids, **given)

    monkeypatch.setattr(Body, "hidden", hidden)
    return tried


def test_where_memory_runs_out_passes_halve_down_to_one_question(monkeypatch):
    made, sequences = model(attention=TREE), crowd(4)
    longest = max(len(one.ids) for one in sequences)
    with torch.inference_mode():
        plenty = Engine(made, unit="throughput", token_budget=10_000).logprobs(sequences)
        tried = little_memory(monkeypatch, longest)
        one = Engine(made, unit="throughput", token_budget=10_000)
        assert distance(one.logprobs(sequences), plenty) < 1e-4
        failed = sum(size > longest for size in tried)
        one.logprobs(sequences)

    assert failed > 2
    assert one.token_budget <= 2 * longest
    assert sum(size > longest for size in tried) < 2 * failed  # the budget stays small


def test_one_question_that_does_not_fit_is_an_error_that_says_so(monkeypatch):
    little_memory(monkeypatch, 10)

    with torch.inference_mode(), pytest.raises(BudgetError, match="shorter history or a smaller model"):
        Engine(model(), unit="throughput").logprobs([TokenSequence(tuple(range(2, 40)), 30)])


def test_a_canonical_unit_never_changes_its_layout_and_names_the_way_out(monkeypatch):
    little_memory(monkeypatch, 10)

    with torch.inference_mode(), pytest.raises(BudgetError, match="--unit throughput splits them"):
        Engine(model()).logprobs(crowd(1))


def test_another_error_of_a_pass_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def fails(*_given, **_more):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Body, "hidden", fails)

    with pytest.raises(RuntimeError, match="shapes"):
        Engine(model(), unit="throughput").logprobs(crowd(1))


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 7, 96, 4096])
@pytest.mark.parametrize("rows", [1, 5, 1024])
def test_slices_of_the_vocabulary_add_up_to_all_of_it(monkeypatch, words, rows):
    made, states = model("phi"), torch.randn(11, 32)  # phi's head has a bias
    with torch.no_grad():
        made.lm_head.bias.normal_()
    nodes, targets = torch.tensor([3, 3, 0, 10, 5, 7, 3]), torch.tensor([1, 95, 0, 17, 40, 40, 1])
    monkeypatch.setattr(head, "WORDS", words)
    monkeypatch.setattr(head, "ROWS", rows)

    with torch.inference_mode():
        whole = made.lm_head(states).log_softmax(-1)[nodes, targets]
        assert torch.allclose(head.token_logprobs(made, states, nodes, targets), whole, atol=1e-5)


def test_no_table_of_all_words_for_all_tokens_is_ever_made(monkeypatch):
    sizes = []
    real = head._adjusted
    monkeypatch.setattr(head, "_adjusted", lambda made, logits: sizes.append(logits.numel()) or real(made, logits))
    monkeypatch.setattr(head, "WORDS", 16)
    sequences = crowd(4)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            Engine(model(), unit="throughput").logprobs(sequences)

    assert max(sizes) <= 16 * head.ROWS
    assert max(sizes) < 96 * sum(len(one.ids) - one.scored_from for one in sequences) / 3


# --- what cannot be packed -------------------------------------------------------------------------------------------


LLAMA_STRETCHED = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
OTHERS = {
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "hidden_size": 32},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32},
    "bloom": {"hidden_size": 32},
}


@pytest.mark.parametrize(
    ("family", "changes", "reason", "layout"),
    [
        ("mistral", {"sliding_window": 16}, "its attention slides over a window", "expanded"),
        ("gemma3_text", {"sliding_window": 16, "head_dim": 8}, "its layers are .*sliding_attention", "expanded"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
            "its layers are sliding",
            "expanded",
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 1]], "window_size": 200},
            "the packed pass failed",
            "expanded",
        ),
        ("mamba", {"state_size": 4}, "its layers are linear_attention", "plain"),
        ("llama", LLAMA_STRETCHED, "length of the text", "plain"),
        ("bloom", {}, "the packed pass failed", "expanded"),
    ],
)
def test_an_architecture_that_takes_no_tree_mask_gets_the_next_best_layout_with_a_reason(
    family, changes, reason, layout
):
    """And its answers are those of the plain path, behind prompts longer than its window."""
    made = model(family, "eager", **(OTHERS.get(family, GROUPED) | changes))

    chosen, why = choose_layout(made)

    assert chosen == layout
    assert re.search(reason, why)
    with torch.inference_mode():
        sequences = crowd(3)
        assert distance(Engine(made, chosen).logprobs(sequences), Engine(made, "plain").logprobs(sequences)) < 1e-4


@EVERY_FAMILY
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_repeated_cache_gives_the_answers_of_the_plain_path(family, budget):
    made, sequences = model(family), crowd(3)
    with torch.inference_mode():
        expanded = Engine(made, "expanded", token_budget=budget).logprobs(sequences)
        assert distance(expanded, Engine(made, "plain").logprobs(sequences)) < 1e-4


def test_fused_attention_gives_way_to_attention_that_knows_trees_and_no_other_does():
    assert [choose_layout(model(attention=own))[0] for own in ("sdpa", "eager")] == ["packed", "packed"]
    for own, after in (("sdpa", TREE), ("eager", "eager")):
        made = model(attention=own)
        choose_layout(made)
        assert made.config._attn_implementation == after


def test_a_window_that_no_layer_uses_does_not_keep_a_model_from_being_packed():
    """Qwen2 writes sliding_window into every configuration; only layers from max_window_layers on would use it."""
    for changes in ({"use_sliding_window": False}, {"use_sliding_window": True, "max_window_layers": 28}):
        assert why_not_packed(model("qwen2", sliding_window=4096, **changes)) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_copy_for_the_probe_is_small_whatever_the_model_is(family):
    layers = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    inner = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size")
    made = model(family, n_words=5000, **{layers: 6, inner: 1000})
    made.config.quantization_config = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    before = torch.random.get_rng_state()

    copy = small_copy(made)

    assert sum(weights.numel() for weights in copy.parameters()) < 50_000
    assert copy.config.num_hidden_layers == 2
    assert made.config.quantization_config  # the model's own configuration is left as it is
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_window_of_the_copy_is_shorter_than_the_probe():
    """GPT-Neo's local layers see 256 tokens back: a probe within the window finds nothing wrong."""
    local = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "hidden_size": 32}

    assert small_copy(model("gpt_neo", "eager", window_size=256, **local)).config.window_size < len(PROBE[0].ids)


# --- the backend -----------------------------------------------------------------------------------------------------

ASKED = [
    plain("Films:\n- Heat (1995)\n-", *(f" {title}\n" for title in TITLES)),
    plain("Films:\n- Heat (1995)\n- Up (2009)\n-", " Alien (1979)\n"),
    chat("What next?", " Yes", " No", system="Be brief."),
    plain("", " Heat (1995)\n", " é日🎬\n"),
]


@pytest.fixture(scope="module")
def backend():
    return CausalBackend(model(n_words=len(tokenizer())), tokenizer("byte_level", True), MODE)


def flat(answers):
    return np.concatenate([row for rows in answers for row in rows])


def test_a_question_asked_alone_again_and_after_others_has_the_same_bits(backend):
    alone = [backend.logprobs([question])[0] for question in ASKED]
    again = [backend.logprobs([question])[0] for question in reversed(ASKED)][::-1]

    assert flat(alone).tobytes() == flat(again).tobytes()


def test_the_order_and_company_of_questions_change_nothing(backend):
    alone = [backend.logprobs([question])[0] for question in ASKED]
    together = backend.logprobs(ASKED)
    turned = backend.logprobs(ASKED[::-1])[::-1]

    assert np.abs(flat(alone) - flat(together)).max() < 1e-4
    assert np.abs(flat(alone) - flat(turned)).max() < 1e-4


def test_rows_are_as_long_as_the_answers_and_in_their_order(backend):
    for question, rows in zip(ASKED, backend.logprobs(ASKED), strict=True):
        sequences = backend.tokens.encode(question)
        assert [len(row) for row in rows] == [len(one.ids) - one.scored_from for one in sequences]
        assert all(row.dtype == np.float64 and (row < 0).all() for row in rows)


def test_log_probabilities_are_those_of_the_model_as_transformers_runs_it(backend):
    """Not by our own plain path: logits of the whole text, normalized, read at each token."""
    (question, *_) = ASKED
    for sequence, row in zip(backend.tokens.encode(question), backend.logprobs([question])[0], strict=True):
        with torch.inference_mode():
            table = backend.model(torch.tensor([sequence.ids])).logits[0].double().log_softmax(-1)
        places = range(sequence.scored_from, len(sequence.ids))
        assert np.allclose(row, [float(table[place - 1, sequence.ids[place]]) for place in places], atol=1e-4)


def test_the_plain_layout_gives_the_same_answers_and_says_what_it_costs(backend):
    slow = CausalBackend(backend.model, tokenizer("byte_level", True), replace(MODE, layout="plain"))

    assert np.abs(flat(slow.logprobs(ASKED)) - flat(backend.logprobs(ASKED))).max() < 1e-4
    assert backend.n_computed(ASKED) < slow.n_computed(ASKED) / 2


def test_with_gradients_the_rows_are_equal_and_packed_gradients_are_plain_ones(backend):
    made = backend.model
    slow = CausalBackend(made, tokenizer("byte_level", True), replace(MODE, layout="plain"))
    gradients = []
    for one in (backend, slow):
        rows = one.logprobs(ASKED, grad=True)
        made.zero_grad()
        sum(row.sum() for group in rows for row in group).backward()
        gradients.append({name: weights.grad.clone() for name, weights in made.named_parameters()})
        assert np.allclose(flat([[row.detach().numpy() for row in group] for group in rows]), flat(one.logprobs(ASKED)))
    for name, packed in gradients[0].items():
        assert torch.allclose(packed, gradients[1][name], atol=1e-3, rtol=1e-3), name


def test_without_gradients_nothing_is_kept_for_them(backend, monkeypatch):
    seen = []
    real = head._adjusted
    monkeypatch.setattr(head, "_adjusted", lambda made, logits: seen.append(logits.requires_grad) or real(made, logits))

    backend.logprobs(ASKED)

    assert seen
    assert not any(seen)


@pytest.mark.parametrize("layout", ["packed", "expanded", "plain"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_raise(layout, value):
    broken = model(n_words=len(tokenizer()))
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = value

    with pytest.raises(NumericError, match="not finite"):
        CausalBackend(broken, tokenizer(), replace(MODE, layout=layout)).logprobs(ASKED[:1])


@pytest.mark.parametrize(("family", "window"), [("llama", 256), ("gpt2", 256), ("opt", 256), ("bloom", 8192)])
def test_every_family_has_a_context_window(family, window):
    made = model(family, "eager", n_words=len(tokenizer()), **({} if family in FAMILIES else {"hidden_size": 32}))

    assert CausalBackend(made, tokenizer(), MODE).context_window == window
