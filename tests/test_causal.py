"""The causal backend: questions in, log-probabilities out, the same in any company, and those of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, TITLES, chat, model, plain, tokenizer

from fewrec_prompt.backends import head
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.errors import NumericError

MODE = NumericMode(precision="fp32", reason="a test", device="cpu")

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
