"""What shares a pass, what is kept between passes, what stands before them, and what they need of memory."""

import pytest
import torch
from _tiny import model
from _trees import EVERY_ATTENTION, EVERY_FAMILY, crowd, distance

from fewrec_prompt.backends import head
from fewrec_prompt.backends.attention import NAME as TREE
from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence, plan
from fewrec_prompt.backends.prefix import Kept, KeyValues, SoftTokens
from fewrec_prompt.errors import BudgetError

# --- several users in a pass ------------------------------------------------------------------------------------------


@EVERY_FAMILY
@EVERY_ATTENTION
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_trees_of_several_users_side_by_side_are_scored_as_if_alone(family, attention, budget):
    made, sequences = model(family, attention), crowd(4)
    side_by_side = Engine(made, unit="throughput", token_budget=budget)

    with torch.inference_mode():
        assert distance(side_by_side.logprobs(sequences), Engine(made, "plain").logprobs(sequences)) < 1e-4


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


# --- what is kept -----------------------------------------------------------------------------------------------------


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


# --- learned prefixes -------------------------------------------------------------------------------------------------


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


# --- memory -----------------------------------------------------------------------------------------------------------


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


# --- the head ---------------------------------------------------------------------------------------------------------


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
