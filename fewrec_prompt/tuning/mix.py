"""Learn how much each logged number counts: a handful of weights over what a model has said. No model, no torch.

A candidate's score is a weighted sum of its features (features.py). The weights minimise the listwise cross-entropy of
the answers plus `strength` times the squared distance from a prior, such as title scoring with a fixed alpha. A few
people cannot tell seven weights, and left alone they drag them anywhere. So the strength is chosen on people whom the
weights have not seen, one left out at a time, and "the prior as it is" is one of the choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import DataError
from fewrec_prompt.tuning.examples import Example

Floats: TypeAlias = npt.NDArray[np.float64]
Features: TypeAlias = Mapping[str, Floats]
"""Numbers about each candidate of one query, (n_candidates,), by name."""

MOST = 16  # weights
STRENGTHS = (math.inf, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)  # nats for a weight one standard deviation away
SCALES = np.geomspace(0.01, 5.0, 60)  # of the prior: nats a standard deviation of its scores
LONGEST = 2.0  # step, in nats a standard deviation
_MOST_STEPS, _TOLERANCE, _CLOSE = 100, 1e-9, 1e-4


@dataclass(frozen=True, slots=True)
class Mix:
    """Weights of features, by name, and how they were found."""

    names: tuple[str, ...]
    weights: tuple[float, ...]  # nats for one unit of the feature
    strength: float  # inf: the prior as it is
    loss: float  # nats a person, each left out in turn
    prior_loss: float  # the same of the prior
    n_users: int

    def scores(self, features: Features) -> Floats:
        """Scores (n_candidates,). Raises DataError for features that are not those it was fitted on."""
        return np.asarray(_columns(features, self.names) @ np.array(self.weights))

    def to_tensors(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Arrays by name, and what JSON can say of them; `from_tensors` takes both."""
        arrays = {"weights": np.array(self.weights)}
        strength = self.strength if math.isfinite(self.strength) else None  # JSON has no infinity
        return arrays, {
            "names": list(self.names),
            "strength": strength,
            "loss": self.loss,
            "prior_loss": self.prior_loss,
            "n_users": self.n_users,
        }

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, Floats], meta: Mapping[str, Any]) -> Mix:
        """What `to_tensors` gave. Raises DataError where arrays and names do not belong together."""
        weights, names = np.asarray(arrays["weights"], dtype=np.float64), tuple(meta["names"])
        if weights.shape != (len(names),) or not np.isfinite(weights).all():
            raise DataError(f"a mix of {len(names)} features needs as many finite weights, not {weights.tolist()}")
        strength = math.inf if meta["strength"] is None else float(meta["strength"])
        return cls(names, tuple(weights.tolist()), strength, meta["loss"], meta["prior_loss"], meta["n_users"])


def fit(examples: Sequence[Example], logged: Sequence[Features], prior: Mapping[str, float]) -> Mix:
    """The mix that these people's answers speak for, close to `prior`: weights by feature name, 0 where not named.

    Scores keep their order when all weights grow, so of the prior only the direction is meant: its scale is fitted
    first, and does not count as distance. Distances are in standard deviations of a feature within a person's
    candidates. Deterministic; a millisecond for 4 people, a second for 256. Raises DataError for nobody, for features
    that differ between people, more than MOST of them, and a prior over none of them.
    """
    names = _checked(examples, logged, prior)
    problem, spread = _problem(examples, logged, names)
    direction = np.array([prior.get(name, 0.0) for name in names]) * spread
    start = _scale_of(problem, direction) * direction
    losses = {strength: _left_out(problem, start, strength) for strength in STRENGTHS}
    strength = _chosen(losses)
    weights = start if math.isinf(strength) else _fitted(problem, start, strength)
    found = tuple(float(weight) for weight in weights / spread)
    return Mix(names, found, strength, _mean(losses[strength]), _mean(losses[math.inf]), len(examples))


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """All candidates of n people, the lists padded to one length: features (n, length, p), who is right, who is there.

    Weights may be (p,), or (f, p) for f fits at once.
    """

    features: Floats
    targets: Floats  # (n, length); a person's sum to 1
    there: npt.NDArray[np.bool_]

    def losses(self, weights: Floats) -> Floats:
        """Cross-entropy of each person's answer in nats, (…, n)."""
        logits = self._logits(weights)
        top = logits.max(-1)
        norm = top + np.log(np.exp(logits - top[..., None]).sum(-1))
        return np.asarray(norm - (self.targets * np.where(self.there, logits, 0.0)).sum(-1))

    def derivatives(self, weights: Floats) -> tuple[Floats, Floats]:
        """First (…, n, p) and second (…, n, p, p) derivatives of each person's loss."""
        logits = self._logits(weights)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        means = np.einsum("nlp,...nl->...np", self.features, shares, optimize=True)
        squares = np.einsum("nlp,...nl,nlq->...npq", self.features, shares, self.features, optimize=True)
        right = np.einsum("nlp,nl->np", self.features, self.targets)
        return means - right, squares - means[..., :, None] * means[..., None, :]

    def _logits(self, weights: Floats) -> Floats:
        return np.where(self.there, np.einsum("nlp,...p->...nl", self.features, weights, optimize=True), -np.inf)


def _problem(examples: Sequence[Example], logged: Sequence[Features], names: Sequence[str]) -> tuple[_Problem, Floats]:
    """The lists, and the standard deviation of each feature within them, by which it is divided (1 where it is 0).

    A softmax does not see what all candidates of a list share, so each list is centred.
    """
    lists = [_columns(features, names) for features in logged]
    lists = [columns - columns.mean(0) for columns in lists]
    spread = np.sqrt(np.concatenate(lists).var(0))
    spread[spread < _TOLERANCE] = 1.0
    shape = (len(lists), max(map(len, lists)))
    features, targets, there = np.zeros((*shape, len(names))), np.zeros(shape), np.zeros(shape, dtype=bool)
    for place, (example, columns) in enumerate(zip(examples, lists, strict=True)):
        features[place, : len(columns)] = columns / spread
        targets[place, list(example.relevant)] = 1 / len(example.relevant)
        there[place, : len(columns)] = True
    return _Problem(features, targets, there), spread


def _scale_of(problem: _Problem, direction: Floats) -> float:
    """How many nats a unit of the prior's scores is worth to these people, above 0 whatever they say."""
    scores = problem.features[problem.there] @ direction
    scales = SCALES / max(float(scores.std()), _TOLERANCE)
    losses = problem.losses(scales[:, None] * direction).sum(-1)
    return float(scales[int(losses.argmin())])


def _fitted(problem: _Problem, start: Floats, strength: float, weights: Floats | None = None) -> Floats:
    """The weights of least penalised loss, by Newton steps; the loss is convex, so there is one such place."""
    weights = start if weights is None else weights
    for _ in range(_MOST_STEPS):
        slopes, curvatures = problem.derivatives(weights)
        step = _step(slopes.sum(0), curvatures.sum(0), weights - start, strength)
        weights = weights - step
        if np.abs(step).max() < _TOLERANCE:
            break
    return weights


def _left_out(problem: _Problem, start: Floats, strength: float) -> Floats:
    """Each person's loss (n,) under the weights that the others alone lead to.

    Those fits are made at once, from where everybody leads to. The first step is the usual approximation of leaving one
    out (Rad & Maleki 2020, arXiv 1801.10243); it is good for many people, and it is for few that this matters.
    """
    if math.isinf(strength):
        return problem.losses(start)
    n = len(problem.features)
    weights = np.repeat(_fitted(problem, start, strength)[None], n, axis=0)
    for _ in range(_MOST_STEPS):
        slopes, curvatures = problem.derivatives(weights)
        own = np.arange(n), np.arange(n)
        others = slopes.sum(1) - slopes[own], curvatures.sum(1) - curvatures[own]
        step = _step(*others, weights - start, strength)
        weights = weights - step
        if np.abs(step).max() < _CLOSE:
            break
    return problem.losses(weights)[np.arange(n), np.arange(n)]


def _step(slope: Floats, curvature: Floats, moved: Floats, strength: float) -> Floats:
    """A Newton step (…, p) of the penalised loss, no longer than LONGEST: far from the least it would be too long."""
    pulled = curvature + strength * np.eye(slope.shape[-1])
    step = np.linalg.solve(pulled, (slope + strength * moved)[..., None])[..., 0]
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.asarray(step * np.minimum(1.0, LONGEST / np.maximum(length, LONGEST)))


def _chosen(losses: Mapping[float, Floats]) -> float:
    """The strongest pull whose loss is no more than a standard error above the least."""
    best = min(losses, key=lambda strength: _mean(losses[strength]))
    return max(strength for strength in losses if _no_worse(losses[strength] - losses[best]))


def _no_worse(gaps: Floats) -> bool:
    return bool(gaps.mean() <= gaps.std() / math.sqrt(len(gaps)))


def _mean(values: Floats) -> float:
    return float(values.mean())


def _columns(features: Features, names: Sequence[str]) -> Floats:
    """The features (n_candidates, n_names) in this order."""
    if set(features) != set(names):
        raise DataError(f"features are {', '.join(features)}, but the mix is one of {', '.join(names)}")
    return np.stack([np.asarray(features[name], dtype=np.float64) for name in names], axis=-1)


def _checked(examples: Sequence[Example], logged: Sequence[Features], prior: Mapping[str, float]) -> tuple[str, ...]:
    """The names of the features. Raises DataError for what cannot be fitted."""
    assert len(examples) == len(logged), "features for each example"
    if not examples:
        raise DataError("there is nobody to learn from; give at least one example")
    names = tuple(logged[0])
    if len(names) > MOST:
        raise DataError(f"{len(names)} features; a mix has {MOST} weights at most, so name fewer rows")
    if unknown := sorted(prior.keys() - set(names)):
        raise DataError(f"the prior weighs {unknown[0]!r}, which is none of the features: {', '.join(names)}")
    if not any(prior.values()):
        raise DataError("the prior weighs nothing; give at least one feature a weight that is not 0")
    for example in examples:
        if not 0 < len(example.relevant) < len(example.query.candidates):
            raise DataError(
                f"user {example.query.user_id!r}: {len(example.relevant)} of {len(example.query.candidates)} "
                "candidates are right, which says nothing of the others; leave this user out"
            )
    return names
