"""Learn how much each logged number counts: a handful of weights over what a model has said. No model, no torch.

A candidate's score is a weighted sum of its features (features.py). Weights minimise the listwise cross-entropy of the
answers and `strength` / 2 times the squared distance from a prior, such as title scoring with a fixed alpha. A few
people cannot tell five weights: left to themselves they drag them anywhere. So several strengths are fitted, "the prior
as it is" among them, and averaged by how well each foretells people it has not seen, one left out at a time: pseudo-BMA
(Yao et al. 2018, arXiv 1704.02030). With 4 people that stays near the prior, with 256 it is the best strength alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewrec_prompt.errors import DataError
from fewrec_prompt.tuning.examples import Example

Floats: TypeAlias = npt.NDArray[np.float64]
Features: TypeAlias = Mapping[str, Floats]
"""Numbers about each candidate of one query, (n_candidates,), by name."""

MOST = 16  # weights
STRENGTHS = (300.0, 100.0, 30.0, 10.0, 3.0)  # nats for a weight that is off by a nat a standard deviation
TRUST = 0.5  # in priors as they are, before anybody is heard
SCALES = np.geomspace(0.2, 3.0, 30)  # of the prior, in nats a standard deviation of its scores
LONGEST = 2.0  # step of a fit, in nats a standard deviation
_MOST_STEPS, _TINY, _CLOSE = 100, 1e-9, 1e-3


@dataclass(frozen=True, slots=True)
class Mix:
    """Weights of features, by name, and how they were found."""

    names: tuple[str, ...]
    weights: tuple[float, ...]  # nats for one unit of the feature
    prior_share: float  # what priors as they are have in the average
    strength: float  # that has most; inf: the prior as it is
    loss: float  # nats a question, each person left out in turn
    prior_loss: float  # the same of the first prior
    n_users: int  # questions: of likes and dislikes a person may have several
    effects: Mapping[str, float] = field(default_factory=dict)  # of items by their keys, where they are a feature
    usual: float = 0.0  # the history rating of who has none, where it is a feature

    @property
    def n_weights(self) -> int:
        """How many numbers were learnt: weights, and what is known of items."""
        return len(self.names) + len(self.effects)

    def scores(self, features: Features) -> Floats:
        """Scores (n_candidates,). Raises DataError for features that are not those it was fitted on."""
        return np.asarray(_columns(features, self.names) @ np.array(self.weights))

    def to_tensors(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Arrays by name, and what JSON can say of them; `from_tensors` takes both."""
        strength = self.strength if math.isfinite(self.strength) else None  # JSON has no infinity
        meta = asdict(self) | {"names": list(self.names), "strength": strength}
        return {"weights": np.array(meta.pop("weights"))}, meta

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, Floats], meta: Mapping[str, Any]) -> Mix:
        """What `to_tensors` gave. Raises DataError where arrays and names do not belong together."""
        weights, names = np.asarray(arrays["weights"], dtype=np.float64), tuple(meta["names"])
        if weights.shape != (len(names),) or not np.isfinite(weights).all():
            raise DataError(f"a mix of {len(names)} features needs as many finite weights, not {weights.tolist()}")
        effects = {str(item_id): float(effect) for item_id, effect in meta.get("effects", {}).items()}
        if wrong := [item_id for item_id, effect in effects.items() if not math.isfinite(effect)]:
            raise DataError(f"the effect of item {wrong[0]!r} is {effects[wrong[0]]}, and not finite")
        strength = math.inf if meta["strength"] is None else meta["strength"]
        known = {"names": names, "weights": tuple(weights.tolist()), "strength": strength, "effects": effects}
        return cls(**{**meta, **known})


def fit(examples: Sequence[Example], logged: Sequence[Features], *priors: Mapping[str, float]) -> Mix:
    """The mix that these people's answers speak for, near a prior: weights by feature name, 0 where not named.

    Where several priors are given, the answers say how much each of them, and what is fitted near it, counts. Likes and
    dislikes of single candidates are choices between the candidate and the mean of all of them, which is logistic
    regression on what a candidate is off that mean.

    Scores keep their order when all weights grow, so of a prior only the direction is meant: its scale is fitted
    first and is no distance. Distances are in standard deviations of a feature within a person's candidates.
    Deterministic; 5 ms for 4 people, 0.3 s for 256, times the priors. Raises DataError for nobody, for features that
    differ between people, for more than MOST of them, and for a prior over none of them.
    """
    if all(len(example.query.candidates) == 1 for example in examples):
        examples, logged = _against_the_mean(examples, logged)
    names = _checked(examples, logged, priors)
    problem, spread = _problem(examples, logged, names)
    directions = [np.array([prior.get(name, 0.0) for name in names]) * spread for prior in priors]
    # A prior that tells nobody apart has no say; where none does, the first stays as it is.
    units = [one / spread_of for one in directions if (spread_of := problem.deviation(one)) > _TINY] or directions[:1]
    ways = [way for unit in units for way in _ways(problem, unit)]
    losses = np.array([way.losses for way in ways])
    shares = _shares(losses.sum(1))
    means = losses.mean(1)
    weights = (shares @ np.array([way.weights for way in ways])) / spread
    return Mix(
        names,
        tuple(weights.tolist()),
        prior_share=float(shares @ [way.strength == math.inf for way in ways]),
        strength=ways[int(shares.argmax())].strength,
        loss=float(shares @ means),
        prior_loss=float(means[0]),
        n_users=len(examples),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """Weights (p,), in standard deviations, and what each question would cost whom they were not fitted to, (n,)."""

    strength: float  # of the pull to a prior; inf: the prior as it is
    weights: Floats
    losses: Floats


def _ways(problem: _Problem, unit: Floats) -> list[_Way]:
    """A prior, whose scores have a standard deviation of 1, as it is, and what is fitted near it with each strength."""
    (scale,), of_others = _scales(problem, unit)
    places = np.arange(len(problem.whose))
    as_it_is = problem.losses(of_others[:, None] * unit)[problem.whose, places]
    found = [_Way(math.inf, scale * unit, as_it_is)]
    for strength in STRENGTHS:
        weights = _fitted(problem, scale * unit, _pull(strength, scale))
        losses = _left_out(problem, of_others[:, None] * unit, _pull(strength, of_others), weights)
        found.append(_Way(strength, weights, losses))
    return found


def _pull(strength: float, scale: Floats) -> Floats:
    """A prior that few people agree with is scaled down, and must not become easy to overrule by that."""
    return np.asarray(strength / np.minimum(1.0, scale) ** 2)


def _against_the_mean(examples: Sequence[Example], logged: Sequence[Features]) -> tuple[list[Example], list[Features]]:
    """Each judged candidate beside one of mean features, which is right where the candidate was not liked."""
    means = {name: np.mean([features[name] for features in logged]) for name in (logged[0] if logged else ())}
    beside = [{name: np.append(values, means[name]) for name, values in features.items()} for features in logged]
    queries = [replace(one.query, candidates=one.query.candidates * 2) for one in examples]
    pairs = zip(queries, examples, strict=True)
    return [Example(query, (0,) if one.relevant else (1,)) for query, one in pairs], list(beside)


def _shares(losses: Floats) -> Floats:
    """What each way counts in the average: by the loss (nats) over all people who were left out.

    Ways come prior by prior, each as it is first; priors are trusted alike.
    """
    trust = np.array([TRUST, *[(1 - TRUST) / len(STRENGTHS)] * len(STRENGTHS)])
    shares = np.resize(trust, len(losses)) * np.exp(losses.min() - losses)
    return np.asarray(shares / shares.sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """All candidates of n questions, lists padded to one length: features (n, length, p), what is right, what is there,
    and whose each question is."""

    features: Floats
    targets: Floats  # (n, length); a question's sum to 1
    there: npt.NDArray[np.bool_]
    whose: npt.NDArray[np.intp]  # (n,), from 0: what is left out together

    def deviation(self, weights: Floats) -> float:
        """Standard deviation of the scores within lists."""
        return float((self.features[self.there] @ weights).std())

    def losses(self, weights: Floats) -> Floats:
        """Cross-entropy (f, n) in nats of each question's answer under the weights (f, p) of several fits."""
        logits = self._logits(weights)
        top = logits.max(1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(1))
        right = (self.targets[:, :, None] * np.where(self.there[:, :, None], logits, 0.0)).sum(1)
        return np.asarray((norm - right).T)

    def derivatives(self, weights: Floats) -> tuple[Floats, Floats]:
        """First (f, n, p) and second (f, n, p, p) derivatives of each question's loss under the weights (f, p)."""
        logits = self._logits(weights)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        n, length, p = self.features.shape
        pairs = (self.features[..., :, None] * self.features[..., None, :]).reshape(n, length, p * p)
        means = (self.features.transpose(0, 2, 1) @ shares).transpose(2, 0, 1)
        squares = (pairs.transpose(0, 2, 1) @ shares).transpose(2, 0, 1).reshape(-1, n, p, p)
        right = (self.targets[:, None] @ self.features)[:, 0]
        return means - right, squares - means[..., :, None] * means[..., None, :]

    def _logits(self, weights: Floats) -> Floats:
        """(n, length, f)"""
        return np.where(self.there[:, :, None], self.features @ weights.T, -np.inf)


def _problem(examples: Sequence[Example], logged: Sequence[Features], names: Sequence[str]) -> tuple[_Problem, Floats]:
    """The lists, and the standard deviation of each feature within them, by which it is divided (1 where it is 0).

    A softmax does not see what all candidates of a list share, so each list is centred.
    """
    lists = [_columns(features, names) for features in logged]
    lists = [columns - columns.mean(0) for columns in lists]
    spread = np.sqrt(np.concatenate(lists).var(0))
    spread[spread < _TINY] = 1.0
    shape = (len(lists), max(map(len, lists)))
    features, targets, there = np.zeros((*shape, len(names))), np.zeros(shape), np.zeros(shape, dtype=bool)
    for place, (example, columns) in enumerate(zip(examples, lists, strict=True)):
        features[place, : len(columns)] = columns / spread
        targets[place, list(example.relevant)] = 1 / len(example.relevant)
        there[place, : len(columns)] = True
    return _Problem(features, targets, there, _whose(examples)), spread


def _whose(examples: Sequence[Example]) -> npt.NDArray[np.intp]:
    """Which person each question is of, (n,): they are left out together. Where all are of one, each stands alone."""
    people = [example.query.person for example in examples]
    alone = len(set(people)) == 1
    return np.arange(len(people)) if alone else np.unique(people, return_inverse=True)[1]


def _scales(problem: _Problem, unit: Floats) -> tuple[Floats, Floats]:
    """What the prior's scores are worth, in nats a standard deviation: to all, (1,), and to all but each, (n_people,).

    They are of SCALES: never nothing, and never below.
    """
    losses = problem.losses(SCALES[:, None] * unit)  # (n_scales, n)
    own = np.stack([losses[:, problem.whose == person].sum(1) for person in range(problem.whose.max() + 1)])
    everybody = losses.sum(1)
    return SCALES[everybody.argmin()][None], SCALES[(everybody - own).argmin(1)]


def _fitted(problem: _Problem, start: Floats, strength: Floats) -> Floats:
    """The weights of least penalised loss, by Newton steps; the loss is convex, so there is one such place."""
    weights = start
    for _ in range(_MOST_STEPS):
        slopes, curvatures = (one[0].sum(0) for one in problem.derivatives(weights[None]))
        step = _step(slopes, curvatures, weights - start, strength)
        weights = weights - step
        if np.abs(step).max() < _TINY:
            break
    return weights


def _left_out(problem: _Problem, starts: Floats, strengths: Floats, together: Floats) -> Floats:
    """Each question's loss (n,) under the weights that other people's lead to, from their start (n_people, p), pulled
    to it with their strength (n_people,); `together` is where all of them lead to.

    Those fits, one for each person, are made at once, from there on. The first step is the usual approximation of
    leaving one out (Rad & Maleki 2020, arXiv 1801.10243); it is good for many people, and it is for few that this
    matters.
    """
    n_people, n = problem.whose.max() + 1, len(problem.whose)
    others = (problem.whose[None] != np.arange(n_people)[:, None]).astype(float)  # (n_people, n)
    weights = np.repeat(together[None], n_people, axis=0)
    for _ in range(_MOST_STEPS):
        slopes, curvatures = problem.derivatives(weights)
        heard = np.einsum("fn,fnp->fp", others, slopes), np.einsum("fn,fnpq->fpq", others, curvatures)
        step = _step(*heard, weights - starts, strengths)
        weights = weights - step
        if np.abs(step).max() < _CLOSE:
            break
    return np.asarray(problem.losses(weights)[problem.whose, np.arange(n)])


def _step(slope: Floats, curvature: Floats, moved: Floats, strength: Floats) -> Floats:
    """A Newton step (…, p) of the penalised loss, no longer than LONGEST: far from the least it would be too long."""
    pulled = curvature + strength[..., None, None] * np.eye(slope.shape[-1])
    step = np.linalg.solve(pulled, (slope + strength[..., None] * moved)[..., None])[..., 0]
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.asarray(step * np.minimum(1.0, LONGEST / np.maximum(length, LONGEST)))


def _columns(features: Features, names: Sequence[str]) -> Floats:
    """The features (n_candidates, n_names) in this order."""
    if set(features) != set(names):
        raise DataError(f"features are {', '.join(features)}, but the mix is one of {', '.join(names)}")
    return np.stack([np.asarray(features[name], dtype=np.float64) for name in names], axis=-1)


def _checked(
    examples: Sequence[Example], logged: Sequence[Features], priors: Sequence[Mapping[str, float]]
) -> tuple[str, ...]:
    """The names of the features. Raises DataError for what cannot be fitted."""
    assert len(examples) == len(logged), "features for each example"
    if not examples:
        raise DataError("there is nobody to learn from; give at least one example")
    names = tuple(logged[0])
    if len(names) > MOST:
        raise DataError(f"{len(names)} features; a mix has {MOST} weights at most, so name fewer rows")
    if unknown := sorted(set().union(*priors) - set(names)):
        raise DataError(f"the prior weighs {unknown[0]!r}, which is none of the features: {', '.join(names)}")
    if not priors or not all(any(one.values()) and all(map(math.isfinite, one.values())) for one in priors):
        raise DataError("the prior weighs nothing; give at least one feature a weight that is not 0")
    for example, features in zip(examples, logged, strict=True):
        if wrong := [name for name, values in features.items() if not np.isfinite(values).all()]:
            raise DataError(f"user {example.query.user_id!r}: {wrong[0]!r} is not finite for all candidates")
        if not 0 < len(example.relevant) < len(example.query.candidates):
            raise DataError(
                f"user {example.query.user_id!r}: {len(example.relevant)} of {len(example.query.candidates)} "
                "candidates are right, which says nothing of the others; leave this user out"
            )
    return names
