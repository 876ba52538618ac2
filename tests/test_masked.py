"""A masked model reads each token where a mask stands, and what shares a pass or a mask changes no number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from _encoders import MASKED, MODE, ending_tokenizer, masked, save
from _tiny import FILMS, TITLES, plain, query

from fewrec_prompt.backends import masked as module
from fewrec_prompt.backends.masked import PLL_L2R
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import BudgetError, ModelError
from fewrec_prompt.recommender import Recommender, choose

L2R = replace(MODE, layout=PLL_L2R)
LABELS = plain("Question: Yes or No? Answer:", " Yes", " No", labels=True)
ASKED = [
    plain("Here is a list of films: Heat (1995),", *TITLES[1:]),
    LABELS,
    plain("one person likes", " Amélie", " xyz"),
]


def by_hand(backend, question, *, rest_of_word=False):
    """Straight from transformers: one sequence a token, no padding, the whole table of words."""
    words = ending_tokenizer("word_piece", before=True)
    text, rows = question.prompt.text, []
    start = len(words(text, add_special_tokens=False)["input_ids"]) + 1
    for continuation in question.continuations:
        encoded = words(text + continuation, return_tensors="pt")
        ids, word_ids, row = encoded["input_ids"], encoded.word_ids(), []
        for at in range(start, ids.shape[1] - 1):
            shown = ids.clone()
            shown[0, at] = words.mask_token_id
            if rest_of_word:
                shown[0, [n for n in range(at, ids.shape[1]) if word_ids[n] == word_ids[at]]] = words.mask_token_id
            with torch.no_grad():
                row.append(backend.model(input_ids=shown).logits[0, at].log_softmax(-1)[ids[0, at]].item())
        rows.append(np.array(row))
    return rows


@pytest.mark.parametrize("family", MASKED)
def test_every_family_agrees_with_transformers_alone(family):
    backend = masked(family)
    for question, answered in zip(ASKED, backend.logprobs(ASKED), strict=True):
        for row, expected in zip(answered, by_hand(backend, question), strict=True):
            assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_the_later_tokens_of_a_word_are_masked_too_where_that_is_wanted(family):
    backend = masked(family, mode=L2R)
    (answered,) = backend.logprobs([ASKED[0]])
    hand = by_hand(backend, ASKED[0], rest_of_word=True)
    assert all(row == pytest.approx(expected, abs=1e-5) for row, expected in zip(answered, hand, strict=True))
    alone = by_hand(backend, ASKED[0])
    assert any(abs(row - other).max() > 1e-2 for row, other in zip(hand, alone, strict=True)), "titles have long words"


def test_a_label_of_one_token_is_read_at_one_mask_for_all_labels():
    """One masked sequence answers for both, and is the same as writing the mask into the prompt."""
    backend = masked()
    words = ending_tokenizer("word_piece", before=True)
    shown = words("Question: Yes or No? Answer: <mask>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        table = backend.model(input_ids=shown).logits[0, -2].log_softmax(-1)
    yes, no = (table[words.convert_tokens_to_ids(word)].item() for word in ("yes", "no"))

    ((one, other),) = backend.logprobs([LABELS])

    assert [*one, *other] == pytest.approx([yes, no], abs=1e-5)
    assert backend.n_computed([LABELS]) == shown.shape[1] == backend.n_tokens(LABELS)


def test_equal_masked_sequences_are_computed_once():
    backend = masked()
    assert backend.n_computed([ASKED[0], ASKED[0]]) == backend.n_computed([ASKED[0]])
    lengths = []
    backend.model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["attention_mask"].sum().item()), with_kwargs=True
    )
    backend.logprobs([*ASKED, *ASKED])
    assert sum(lengths) == backend.n_computed(ASKED)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_company_order_and_budget_change_no_answer(family):
    together = masked(family).logprobs(ASKED)
    for budget in (1, 60, 100_000):
        backend = masked(family, mode=replace(MODE, token_budget=budget))
        apart = [backend.logprobs([question])[0] for question in ASKED]
        turned = backend.logprobs(ASKED[::-1])[::-1]
        for rows in (apart, turned):
            for answered, expected in zip(rows, together, strict=True):
                assert np.concatenate(answered) == pytest.approx(np.concatenate(expected), abs=1e-5)


def test_the_order_of_questions_changes_no_bit():
    backend = masked()
    assert [row.tobytes() for answered in backend.logprobs(ASKED[::-1])[::-1] for row in answered] == [
        row.tobytes() for answered in backend.logprobs(ASKED) for row in answered
    ]


def test_a_title_that_names_a_mask_is_text():
    """It would be read at the wrong place, or fill the blank."""
    backend = masked()
    (sequence,) = backend.tokens.encode(plain("likes", " <mask> </s>"))
    mask = ending_tokenizer("word_piece", before=True).mask_token_id
    assert mask not in sequence.ids
    assert len(sequence.ids) > 4


def test_gradients_flow_and_their_rows_are_the_same():
    backend = masked()
    plainly, learned = backend.logprobs(ASKED), backend.logprobs(ASKED, grad=True)
    for rows, expected in zip(learned, plainly, strict=True):
        assert torch.cat(rows).tolist() == pytest.approx(np.concatenate(expected).tolist(), abs=1e-6)
    torch.cat([row for rows in learned for row in rows]).sum().backward()
    assert all(weights.grad is not None for weights in backend.model.bert.encoder.parameters())


def test_hidden_states_are_means_over_a_prompt_whatever_it_is_padded_with():
    backend = masked()
    prompts = [question.prompt for question in ASKED]
    words = ending_tokenizer("word_piece", before=True)
    with torch.no_grad():
        alone = [
            backend.model.bert(**words(prompt.text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            for prompt in prompts
        ]
    found = backend.hidden(prompts)
    assert found.shape == (3, 32)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.stack(alone), abs=1e-5)
    assert backend.hidden(prompts, grad=True).requires_grad


@pytest.mark.parametrize(("family", "window"), [("bert", 256), ("modernbert", 256), ("roberta", None)])
def test_the_window_counts_only_positions_that_a_token_can_have(family, window):
    """RoBERTa numbers positions from behind its padding token: a table of 514 holds 512 tokens."""
    backend = masked(family)
    expected = window or 256 - 1 - ending_tokenizer("word_piece", before=True).pad_token_id
    assert backend.context_window == expected
    fits = plain(" ".join(["likes"] * (expected - 3)), " one")
    assert backend.n_tokens(fits) == expected
    backend.logprobs([fits])


def test_a_prompt_is_cut_to_the_window():
    template, verbalizer, _ = choose("complete", None, "none", None, None)
    backend = masked(max_position_embeddings=60)
    ranking = Recommender(template, verbalizer, backend, FILMS).rank(query(TITLES[:2] * 9, TITLES[2:5]))
    assert 0 < ranking.n_history < 18
    with pytest.raises(BudgetError, match="does not fit 20 tokens"):
        Recommender(template, verbalizer, masked(max_position_embeddings=20), FILMS).rank(query())


def test_a_pass_that_does_not_fit_is_halved_where_bits_do_not_depend_on_it(monkeypatch):
    backend = masked(mode=replace(MODE, unit="throughput"))
    expected = backend.logprobs(ASKED)
    small = masked(mode=replace(MODE, unit="throughput"))
    forward = small.model.forward

    def scarce(input_ids, **others):
        if len(input_ids) > 2:
            raise RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory")
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(small.model, "forward", scarce)
    for rows, others in zip(small.logprobs(ASKED), expected, strict=True):
        assert np.concatenate(rows) == pytest.approx(np.concatenate(others), abs=1e-5)
    whole = masked()
    monkeypatch.setattr(whole.model, "forward", scarce)
    with pytest.raises(BudgetError, match="--token-budget"):
        whole.logprobs(ASKED)


def test_a_model_from_files_answers_as_in_memory_and_has_a_name_for_it(tmp_path):
    made = masked("roberta")
    backend = module.load(str(save(made, tmp_path)), Numerics("fp32"))
    for rows, expected in zip(backend.logprobs(ASKED), made.logprobs(ASKED), strict=True):
        assert np.concatenate(rows) == pytest.approx(np.concatenate(expected), abs=1e-5)
    l2r = module.load_l2r(str(tmp_path), Numerics("fp32"))
    keys = [one.identity(ASKED).key for one in (backend, backend, l2r)]
    assert keys[0] == keys[1] != keys[2]
    assert backend.identity(ASKED[::-1]).key == keys[0]
    assert made.identity(ASKED) is None


def test_a_catalogue_is_not_searched_by_a_masked_model():
    with pytest.raises(ModelError, match="causal"):
        masked().best_continuations(LABELS, None, 1)


def test_a_tokenizer_without_a_mask_is_refused():
    from _tiny import tokenizer

    with pytest.raises(ModelError, match="names no mask token"):
        module.MaskedBackend(masked().model, tokenizer("word_piece"), MODE)
