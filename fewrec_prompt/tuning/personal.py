"""One new person, from the first few things they took: weights or a soft prompt of their own, if that helps them.

Each thing they took is a question whose answer is known: what came before it, among items they did not take. The latest
one is not learnt from; on it the person's own recommender has to be better than the one for everybody, or it is not
used. What is learnt is small and can be thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.errors import DataError, FewrecError
from fewrec_prompt.given import taken_of
from fewrec_prompt.recommender import Answers, Ranker, Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.features import features_of, prior_of
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.losses import best_scale
from fewrec_prompt.tuning.mix import fit
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

MOST_LEARNT = 5  # questions, the latest ones: more would take longer than a person waits
N_OTHERS = 6  # that each is asked among
TOKENS, MOST_BYTES = 8, 65536  # of a personal soft prompt: of a model over 2,048 wide it has fewer tokens

PersonalMethod = Literal["mix", "soft-prompt"]
Own: TypeAlias = tuple[Ranker, Any, int]
"""A person's own recommender, how it scores the latest question, (n_candidates,), and its size in bytes."""


@dataclass(frozen=True, slots=True)
class Personal:
    """A person's own recommender, or everybody's where it does not help."""

    ranker: Ranker
    helped: bool
    loss: float  # nats, of the person's latest interaction
    zero_shot_loss: float
    n_bytes: int  # of what was learnt; 0 where it was thrown away


def adapt_user(
    recommender: Recommender,
    history: Sequence[Item | str],
    catalogue: Sequence[Item | str] | None = None,
    *,
    method: PersonalMethod = "mix",
    seed: int = 0,
) -> Personal:
    """Learn from what one person took, oldest first; `catalogue` is what they might have taken instead.

    Without one it is the recommender's own. With fewer than three interactions there is nothing to learn from and
    something to test on, so everybody's recommender stays. Raises DataError where the catalogue has too few other
    items, or is missed.
    """
    if method not in ("mix", "soft-prompt"):
        raise FewrecError(f"unknown method {method!r} for one person; take 'mix' or 'soft-prompt'")
    offered = recommender.offered(catalogue)
    if len(history) < 3:
        return Personal(recommender, helped=False, loss=np.nan, zero_shot_loss=np.nan, n_bytes=0)
    questions = _questions(taken_of(offered, history), offered, seed)
    asked = recommender.answers_all([one.query for one in questions])
    zero_shot_loss = _loss(recommender.scores(asked[-1]), questions[-1])
    own, scores, n_bytes = (_mix if method == "mix" else _soft_prompt)(recommender, questions, asked, seed)
    loss = _loss(scores, questions[-1])
    helped = loss < zero_shot_loss
    return Personal(own if helped else recommender, helped, loss, zero_shot_loss, n_bytes if helped else 0)


def _questions(history: Sequence[Item], catalogue: Sequence[Item], seed: int) -> list[Example]:
    """What came next, after each beginning of the history: the latest few of these questions.

    Those that are learnt from are asked among the same others, whose titles have to be scored by themselves only once.
    The last one, which tests what was learnt, is asked among others that nothing was learnt of.
    """
    taken = {item.id for item in history}
    free = [item for item in catalogue if item.id not in taken]
    if len(free) < 2 * N_OTHERS:
        raise DataError(
            f"the catalogue has {len(free)} items that this person did not take; {2 * N_OTHERS} are needed to ask"
        )
    drawn = rng_for(seed, "personal", *(item.id for item in history)).choice(len(free), 2 * N_OTHERS, replace=False)
    others = [free[at] for at in drawn.tolist()]
    places = range(max(1, len(history) - MOST_LEARNT - 1), len(history))
    learnt = [_question(history[:at], history[at], others[:N_OTHERS], seed) for at in places[:-1]]
    return [*learnt, _question(history[:-1], history[-1], others[N_OTHERS:], seed)]


def _question(before: Sequence[Item], answer: Item, others: Sequence[Item], seed: int) -> Example:
    items = [answer, *others]
    order = rng_for(seed, "personal", answer.id).permutation(len(items)).tolist()
    query = Query("person", tuple(map(Interaction, before)), tuple(items[at] for at in order))
    return Example(query, (order.index(0),))


def _mix(recommender: Recommender, questions: Sequence[Example], asked: Sequence[Answers], _seed: int) -> Own:
    name = recommender.template.name
    logged = [features_of(name, recommender, answers) for answers in asked[:-1]]
    made = fit(questions[:-1], logged, prior_of(name, recommender))
    own = MixRecommender({name: recommender}, made)
    return own, own.scores(questions[-1].query, asked[-1:]), 8 * len(made.weights)


def _soft_prompt(recommender: Recommender, questions: Sequence[Example], _asked: Sequence[Answers], seed: int) -> Own:
    backend = recommender.backend
    tokens = min(TOKENS, MOST_BYTES // (4 * backend.vector_width)) if isinstance(backend, LocalBackend) else TOKENS
    settings = Settings("soft-prompt", tokens=tokens, batch=1, held_out=0.0, seed=seed)
    tuned = tune(recommender, questions[:-1], settings)
    own = tuned.recommender
    return own, own.scores(own.answers(questions[-1].query)), 4 * tuned.n_weights


def _loss(scores: Any, latest: Example) -> float:
    """Of the answer, in nats, at the scale that suits the scores best: their order alone would hardly tell."""
    return best_scale("listwise", [np.asarray(scores)], [latest.relevant])[1]
