"""The people of a training step: who is asked together, and that it changes nothing but time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _tiny import FILMS
from test_tuning import backend, examples, settings

from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import loop, passes
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.outcome import Tuned


@pytest.mark.parametrize(
    ("warm_up", "how", "together"),
    [
        (warm_up, how, together)
        for warm_up, two_fit in ((0, 110), (2, 60))
        for how, together in (
            ({}, 1),
            ({"unit": "throughput"}, 4),
            ({"unit": "throughput", "token_budget": two_fit}, 2),
        )
    ],
)
def test_people_of_a_step_are_asked_together_where_the_unit_holds_several(
    warm_up: int, how: dict[str, Any], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same loss and slopes, but for rounding; never more at once than the token budget holds.

    Later steps are not compared: where a slope is nothing but rounding, Adam makes a whole step of it.
    """
    sizes: list[int] = []
    slopes: list[list[torch.Tensor]] = []
    kind = passes.OverHistories if warm_up else passes.OverAnswers
    losses = kind.losses

    def counted(self: Any, recommender: Recommender, asked: list[Example], log_scale: torch.Tensor) -> torch.Tensor:
        sizes.append(len(asked))
        return losses(self, recommender, asked, log_scale)

    def summed(training: Any) -> None:
        slopes.append([weights.grad.clone() for weights in training.learner.parameters().values()])

    def learnt(**how: Any) -> Tuned:
        template, reader, calibration = choose("films-complete", None, "pmi", None, None)
        start = Recommender(template, reader, backend(**how), FILMS, calibration)
        epochs = 0 if warm_up else 2
        return tune(start, examples(4), settings("lora", epochs=epochs, warm_up=warm_up, batch=4))

    monkeypatch.setattr(kind, "losses", counted)
    monkeypatch.setattr(loop._Training, "_add_up", summed)
    found = learnt(**how)
    assert max(sizes) == together
    sizes.clear()
    alone = learnt()
    assert set(sizes) == {1}
    assert found.passes[1].loss == pytest.approx(alone.passes[1].loss, abs=1e-5)
    assert found.passes[-1].loss == pytest.approx(alone.passes[-1].loss, rel=0.05)
    for one, other in zip(slopes[0], slopes[2], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert max(float(one.abs().max()) for one in slopes[0]) > 1e-2
