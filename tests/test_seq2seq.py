"""An encoder-decoder reads the prompt once and answers in its decoder; padding and company change no number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from _encoders import MODE, SEQ2SEQ, ending_tokenizer, save, seq2seq
from _tiny import FILMS, REF, TITLES, plain, query

from fewrec_prompt.backends import seq2seq as module
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import ModelError, NumericError, VerbalizerError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.types import Message, Prompt, Question

LABELS = plain("Question: Yes or No? Answer:", " Yes", " No", labels=True)
TITLED = plain("Here is a list of films: Heat (1995),", *(f" {title}\n" for title in TITLES[1:]))
BEGUN = Question(Prompt((Message("plain", "one person likes"),), "Up", REF), (" (2009)", " or No"))
ASKED = [TITLED, LABELS, BEGUN]


def by_hand(backend, question, *, ends=()):
    """Straight from transformers: one pair of sequences a continuation, no padding, the whole table of words."""
    family, first = backend.model.config.model_type, backend.model.config.decoder_start_token_id
    words = ending_tokenizer("unigram", before=family == "bart")
    prompt = words(question.prompt.text, return_tensors="pt")["input_ids"]
    begun, rows = question.prompt.answer_prefix, []
    before = [words.bos_token_id] if family == "bart" else []
    n_begun = len(words(begun, add_special_tokens=False)["input_ids"])
    for continuation in question.continuations:
        ids = words((begun + continuation).strip(), add_special_tokens=False)["input_ids"]
        answer = [first, *before, *ids, *ends]
        with torch.no_grad():
            logits = backend.model(input_ids=prompt, decoder_input_ids=torch.tensor([answer])).logits[0].log_softmax(-1)
        start = 1 + len(before) + n_begun
        rows.append(np.array([logits[at - 1, answer[at]].item() for at in range(start, len(answer))]))
    return rows


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_every_family_agrees_with_transformers_alone(family):
    backend = seq2seq(family)
    end = (ending_tokenizer("unigram", before=False).eos_token_id,)
    for question, answered in zip(ASKED, backend.logprobs(ASKED), strict=True):
        hand = by_hand(backend, question, ends=end if question is TITLED else ())
        for row, expected in zip(answered, hand, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)


def test_the_prompt_goes_through_the_encoder_once():
    backend, lengths = seq2seq(), []
    backend.model.get_encoder().register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["attention_mask"].sum().item()), with_kwargs=True
    )
    backend.logprobs([TITLED, TITLED, LABELS])
    words = ending_tokenizer("unigram", before=False)
    assert sum(lengths) == sum(len(words(question.prompt.text)["input_ids"]) for question in (TITLED, LABELS))


def test_labels_of_one_token_share_a_row_of_the_decoder():
    backend, rows = seq2seq(), []
    backend.model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    ((one, other),) = backend.logprobs([plain("Question: Yes or No? Answer:", " Yes", " or", labels=True)])
    assert rows == [(1, 1)]
    assert len(one) == len(other) == 1


def test_a_title_is_closed_and_a_label_is_not():
    """Without its end, "Alien" would have all the probability that "Aliens" has."""
    backend = seq2seq()
    ((closed,), (open_,)) = backend.logprobs([plain("likes", " Heat\n"), plain("likes", " Heat")])
    assert len(closed) == len(open_) + 1
    assert closed[:-1] == pytest.approx(open_, abs=1e-6)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_company_order_and_budget_change_no_answer(family):
    together = seq2seq(family).logprobs(ASKED)
    for budget in (1, 60, 100_000):
        backend = seq2seq(family, mode=replace(MODE, token_budget=budget))
        apart = [backend.logprobs([question])[0] for question in ASKED]
        turned = backend.logprobs(ASKED[::-1])[::-1]
        for rows in (apart, turned):
            for answered, expected in zip(rows, together, strict=True):
                assert np.concatenate(answered) == pytest.approx(np.concatenate(expected), abs=1e-5)


def test_the_count_of_tokens_is_what_goes_through_the_model():
    backend, n = seq2seq(), [0]

    def count(_, __, given):
        mask = given["attention_mask"]
        n[0] += int(mask.sum()) if mask is not None else given["input_ids"].numel()

    for part in (backend.model.get_encoder(), backend.model.get_decoder()):
        part.register_forward_pre_hook(count, with_kwargs=True)
    backend.logprobs(ASKED)
    assert n[0] == backend.n_computed(ASKED)


def test_gradients_reach_encoder_and_decoder_and_their_rows_are_the_same():
    backend = seq2seq()
    plainly, learned = backend.logprobs(ASKED), backend.logprobs(ASKED, grad=True)
    for rows, expected in zip(learned, plainly, strict=True):
        assert torch.cat(rows).tolist() == pytest.approx(np.concatenate(expected).tolist(), abs=1e-5)
    torch.cat([row for rows in learned for row in rows]).sum().backward()
    for part in (backend.model.get_encoder(), backend.model.get_decoder()):
        assert all(weights.grad is not None for weights in part.parameters())


def test_hidden_states_are_means_over_the_encoded_prompt():
    backend = seq2seq()
    words = ending_tokenizer("unigram", before=False)
    with torch.no_grad():
        alone = [
            backend.model.get_encoder()(**words(question.prompt.text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for question in ASKED
        ]
    found = backend.hidden([question.prompt for question in ASKED])
    assert found.dtype == np.float32
    assert found == pytest.approx(torch.stack(alone).numpy(), abs=1e-5)
    assert backend.hidden([LABELS.prompt], grad=True).requires_grad


def test_a_person_gets_a_full_ranking_from_every_kind_of_prompt():
    for prompt in ("choose", "judge", "complete"):
        template, verbalizer, _ = choose(prompt, None, "none", None, None)
        made = Recommender(template, verbalizer, seq2seq(kind="byte_level"), FILMS)
        assert len(made.rank(query(candidates=TITLES[2:])).items) == 5


def test_labels_that_begin_one_another_are_refused():
    with pytest.raises(VerbalizerError, match="cannot be told apart"):
        seq2seq().logprobs([plain("likes", " Yes", " Yes or", labels=True)])


def test_numbers_that_are_not_finite_are_an_error():
    backend = seq2seq("mt5")
    backend.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NumericError):
        backend.logprobs([LABELS])


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_a_model_from_files_answers_as_in_memory_and_has_a_name_for_it(tmp_path, family):
    made = seq2seq(family)
    backend = module.load(str(save(made, tmp_path)), Numerics("fp32"))
    for rows, expected in zip(backend.logprobs(ASKED), made.logprobs(ASKED), strict=True):
        assert np.concatenate(rows) == pytest.approx(np.concatenate(expected), abs=1e-5)
    name = backend.identity(ASKED)
    assert name.key == backend.identity(ASKED[::-1]).key
    assert name.key != backend.identity(ASKED[:2]).key
    assert made.identity(ASKED) is None


def test_what_is_prompt_and_what_is_answer_is_part_of_the_name(tmp_path):
    """The same tokens in a row, parted elsewhere, are another question."""
    backend = module.load(str(save(seq2seq("mt5"), tmp_path)), Numerics("fp32"))
    keys = {backend.identity([one]).key for one in (plain("one person", " likes Up"), plain("one person likes", " Up"))}
    assert len(keys) == 2


def test_a_catalogue_is_not_searched_by_an_encoder_decoder():
    with pytest.raises(ModelError, match="causal"):
        seq2seq().best_continuations(LABELS, None, 1)
