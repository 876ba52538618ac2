"""What is learnt: every method on every family it is offered for, on random models small enough for a second."""

from __future__ import annotations

import numpy as np
import pytest
from _tiny import FAMILIES, FILMS, TITLES, model, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

METHODS = ("soft-prompt", "p-tuning", "prefix", "lora", "adalora", "full")
RATES = {"soft-prompt": 3e-2, "p-tuning": 1e-2, "prefix": 3e-2, "lora": 1e-2, "adalora": 5e-2, "full": 1e-2}


def backend(family: str = "llama") -> CausalBackend:
    words = tokenizer()
    mode = NumericMode("fp32", "made for a test", "cpu")
    return CausalBackend(model(family, "sdpa", n_words=len(words)), words, mode)


def recommender(family: str = "llama", prompt: str = "films-complete", calibrate: str = "none") -> Recommender:
    template, reader, calibration = choose(prompt, None, calibrate, None, None)
    return Recommender(template, reader, backend(family), FILMS, calibration)


def examples(n: int = 6) -> list[Example]:
    """People who saw two films and took a third: which one follows from the first of the two."""
    items = [Item(f"i{place}", title) for place, title in enumerate(TITLES)]
    made = []
    for at in range(n):
        seen = (items[at % 4], items[(at + 1) % 4])
        query = Query(f"u{at}", tuple(map(Interaction, seen)), (items[4], items[5], items[6]))
        made.append(Example(query, (at % 4 % 3,)))
    return made


def settings(method: str, **changes: object) -> Settings:
    plain = {"tokens": 4, "rank": 4, "epochs": 6, "batch": 2, "learning_rate": RATES[method]}
    return Settings(method, **(plain | changes))  # type: ignore[arg-type]  # method is one of METHODS


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_method_falls_on_every_family(method: str, family: str) -> None:
    tuned = tune(recommender(family), examples(), settings(method))
    first, last = tuned.passes[1].loss, tuned.passes[-1].loss
    assert last < first


@pytest.mark.parametrize("method", METHODS)
def test_the_recommender_that_was_tuned_stays_as_it_was(method: str) -> None:
    start = recommender()
    before = start.scores(start.answers(examples()[0].query))
    tuned = tune(start, examples(), settings(method))
    after = tuned.recommender.scores(tuned.recommender.answers(examples()[0].query))
    assert not np.allclose(before, after)
    if method != "full":  # which changes the model itself
        assert np.array_equal(before, start.scores(start.answers(examples()[0].query)))
