"""The people of a training step: who is asked together, and that it changes nothing but time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import FILMS
from test_tuning import backend, examples, settings

from fewrec_prompt.backends.body import Body
from fewrec_prompt.data.training import Training
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import loop, passes
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.types import Item

MORE = tuple(Item(f"n{n}", f"Film {n}") for n in range(24))


@dataclass
class Seen:
    """What a training did: how many people it asked at a time, the slopes of each step, the tokens of each pass."""

    asked: list[int] = field(default_factory=list)
    slopes: list[list[torch.Tensor]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    for kind in (passes.OverAnswers, passes.OverHistories):
        monkeypatch.setattr(kind, "losses", counting(kind.losses, found))
    monkeypatch.setattr(loop._Training, "_add_up", lambda training: found.slopes.append(slopes_of(training)))
    hidden = Body.hidden

    def counted(self: Body, ids: Any, **how: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            found.tokens.append(ids.size)
        return hidden(self, ids, **how)

    monkeypatch.setattr(Body, "hidden", counted)
    return found


def counting(losses: Callable[..., torch.Tensor], found: Seen) -> Callable[..., torch.Tensor]:
    def counted(self: Any, recommender: Recommender, asked: list[Example], log_scale: torch.Tensor) -> torch.Tensor:
        found.asked.append(len(asked))
        return losses(self, recommender, asked, log_scale)

    return counted


def slopes_of(training: Any) -> list[torch.Tensor]:
    return [weights.grad.clone() for weights in training.learner.parameters().values()]


def start(**how: Any) -> Recommender:
    template, reader, calibration = choose("films-complete", None, "pmi", None, None)
    return Recommender(template, reader, backend(**how), FILMS, calibration)


def same_slopes(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    assert max(float(slope.abs().max()) for slope in one) > 1e-2
    return all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(one, other, strict=True))


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
    warm_up: int, how: dict[str, Any], together: int, seen: Seen
) -> None:
    """With the same loss and slopes, but for rounding; never more at once than the token budget holds.

    Later steps are not compared: where a slope is nothing but rounding, Adam makes a whole step of it.
    """

    def learnt(**how: Any) -> Tuned:
        epochs = 0 if warm_up else 2
        return tune(start(**how), examples(4), settings("lora", epochs=epochs, warm_up=warm_up, batch=4))

    found = learnt(**how)
    assert max(seen.asked) == together
    seen.asked.clear()
    alone = learnt()
    assert set(seen.asked) == {1}
    assert found.passes[1].loss == pytest.approx(alone.passes[1].loss, abs=1e-5)
    assert found.passes[-1].loss == pytest.approx(alone.passes[-1].loss, rel=0.05)
    assert same_slopes(seen.slopes[0], seen.slopes[2])


def test_people_who_share_negatives_are_asked_together_from_fewer_tokens(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a canonical unit, too: titles by themselves once a step; loss and slopes as one by one."""
    people = [
        replace(one, query=replace(one.query, candidates=(*one.query.candidates, *MORE[:5]))) for one in examples(4)
    ]
    films = {film.id: film for film in [*people[0].query.candidates, *MORE]}
    none = np.array([], dtype=np.int64)
    training = Training(films, tuple(films), (), none, none)
    how = settings("lora", epochs=1, batch=4, negatives="shared")
    found = tune(start(), people, how, training=training)
    assert seen.asked == [4]
    together = sum(seen.tokens)
    seen.asked.clear()
    seen.tokens.clear()
    monkeypatch.setattr(passes.OverAnswers, "together", False)
    alone = tune(start(), people, how, training=training)
    assert seen.asked == [1, 1, 1, 1]
    assert together < 0.8 * sum(seen.tokens)
    assert found.passes[1].loss == pytest.approx(alone.passes[1].loss, abs=1e-5)
    assert same_slopes(*seen.slopes)
