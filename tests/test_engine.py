"""Packed equals plain, for many families and many trees; and what would make them differ is noticed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, GROUPED, TITLES, chat, model, plain, tokenizer

from fewrec_prompt.backends import engine
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence, Tree, plan
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.probe import PROBE, small_copy, why_not_packed
from fewrec_prompt.errors import NumericError

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
    """12 trees for each of 9 families × 2 kinds of attention: 216."""
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
    monkeypatch.setattr(engine, "plan", lambda asked: plan(asked, max_tree=20))
    monkeypatch.setattr(engine, "_float_mask", lambda *_: pytest.fail("a mask was made"))

    assert gap(model(), sequences) < 1e-4


@EVERY_FAMILY
@EVERY_ATTENTION
def test_the_probe_finds_that_these_families_can_be_packed(family, attention):
    assert why_not_packed(model(family, attention)) is None


# --- mutants ---------------------------------------------------------------------------------------------------------


def no_mask(monkeypatch):
    """Every token sees all before it in the pass, those of other candidates too."""
    monkeypatch.setattr(Tree, "visible", lambda tree: np.tri(len(tree.tokens), dtype=bool))


def no_positions(monkeypatch):
    """Tokens are counted through the pass, not along their own sequence."""
    real = engine._tree_logprobs

    def counted(made, tree):
        return real(made, replace(tree, depths=list(range(len(tree.tokens)))))

    monkeypatch.setattr(engine, "_tree_logprobs", counted)


def off_by_one(monkeypatch):
    real = engine._read

    def shifted(made, hidden, pairs):
        return real(made, hidden, [(max(node - 1, 0), token) for node, token in pairs])

    monkeypatch.setattr(engine, "_read", shifted)


def double_bos(monkeypatch):
    real = engine.plan

    def twice(sequences):
        return real([TokenSequence((one.ids[0], *one.ids), one.scored_from + 1) for one in sequences])

    monkeypatch.setattr(engine, "plan", twice)


def last_token_dropped(monkeypatch):
    real = engine._tree_logprobs

    def dropped(made, tree):
        return {index: torch.cat([row[:-1], row.new_zeros(1)]) for index, row in real(made, tree).items()}

    monkeypatch.setattr(engine, "_tree_logprobs", dropped)


def leak(monkeypatch):
    """The first token of a branch sees the last one of the branch before it."""
    real = Tree.visible

    def leaking(tree):
        seen = real(tree)
        for node, parent in enumerate(tree.parents):
            if parent not in (node - 1, -1):
                seen[node, node - 1] = True
        return seen

    monkeypatch.setattr(Tree, "visible", leaking)


def rough_softmax(monkeypatch):
    real = engine.next_token_logits
    monkeypatch.setattr(engine, "next_token_logits", lambda made, hidden: real(made, hidden).bfloat16())


def boolean_mask(monkeypatch):
    monkeypatch.setattr(engine, "_float_mask", lambda tree, made: torch.from_numpy(tree.visible())[None, None])


@pytest.mark.parametrize(
    ("mutant", "family", "attention"),
    [
        (no_mask, "llama", "sdpa"),
        (no_mask, "gpt2", "eager"),
        (no_positions, "gpt2", "sdpa"),
        (no_positions, "llama", "sdpa"),
        (off_by_one, "llama", "sdpa"),
        (double_bos, "llama", "sdpa"),
        (last_token_dropped, "llama", "sdpa"),
        (leak, "llama", "sdpa"),
        (rough_softmax, "llama", "sdpa"),
        (boolean_mask, "llama", "eager"),
    ],
)
def test_a_planted_mistake_shows(monkeypatch, mutant, family, attention):
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


# --- what cannot be packed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mistral", {"sliding_window": 16}, "its attention slides over a window"),
        ("gemma3_text", {"sliding_window": 16, "head_dim": 8}, "its layers are .*sliding_attention"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "its layers are sliding"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 200}, "the packed pass failed"),
        ("mamba", {"state_size": 4}, "its layers are linear_attention"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "length of the text",
        ),
        ("bloom", {}, "the packed pass failed"),
    ],
)
def test_an_architecture_that_takes_no_tree_mask_is_scored_plainly_with_a_reason(family, changes, reason):
    base = {"gpt_neo": {"num_layers": 2, "num_heads": 4, "hidden_size": 32}, "mamba": {}, "bloom": {"hidden_size": 32}}

    assert re.search(reason, why_not_packed(model(family, "eager", **(base.get(family, GROUPED) | changes))))


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
    real = engine.next_token_logits
    monkeypatch.setattr(
        engine, "next_token_logits", lambda made, hidden: seen.append(hidden.requires_grad) or real(made, hidden)
    )

    backend.logprobs(ASKED)

    assert seen
    assert not any(seen)


@pytest.mark.parametrize("layout", ["packed", "plain"])
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
