"""A mix from 4 to 256 people against fixed alphas: MovieLens-100K, SmolLM2-135M, 20 draws of people, one test.

    .venv/bin/python bench/mix.py

The model is asked once, a second or two a person, unless its answers are kept from elsewhere, and what it said is kept
as features in bench/results/. A cell (prior, what is known of items, k) is fitted in milliseconds a draw and kept in
bench/few_shot/mix.json, so a run that stopped goes on. Of items nothing is known, or what those who are learnt from
took (`item effect`, which a mix has by itself), or what everybody took (`popularity`). People to learn from are drawn
from those whom the task does not test. The best fixed alpha is chosen on the test users
themselves: a rival that has seen the answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fewrec_prompt import Numerics, load_task
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.training import Training
from fewrec_prompt.evaluation import load_backend
from fewrec_prompt.few_shot import default_row, recommender_of
from fewrec_prompt.files import write_text
from fewrec_prompt.metrics.ranking import ndcg
from fewrec_prompt.runs import dump
from fewrec_prompt.score_cache import score_cache
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.significance import paired_interval
from fewrec_prompt.study import Kept
from fewrec_prompt.tasks import load_queries
from fewrec_prompt.tuning.effects import key_of, takers
from fewrec_prompt.tuning.examples import Example, examples_of
from fewrec_prompt.tuning.features import EFFECT, POPULARITY, effect_of, features_of, popularity_of
from fewrec_prompt.tuning.mix import Features, fit

TASK = "movielens-100k"
SHOTS, SEEDS, PRIORS = (4, 16, 64, 256), 20, (0.5, 0.0)  # of alpha, 0.5 is the verbalizer's own and 0 knows nothing
ALPHAS = tuple(tenths / 10 for tenths in range(11))
FEATURES = ("sum", "mean", "tokens", "twin", POPULARITY)
OF_ITEMS = {"": None, " and those learnt from": EFFECT, " and popularity": POPULARITY}  # what is known of them
ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class People:
    """Examples, and what was logged about their candidates."""

    examples: tuple[Example, ...]
    logged: tuple[Features, ...]
    training: Training | None

    def only(self, places: Sequence[int]) -> People:
        """Those at these places."""
        examples = tuple(self.examples[at] for at in places)
        return replace(self, examples=examples, logged=tuple(self.logged[at] for at in places))

    def values(self, weights: Mapping[str, float]) -> np.ndarray:
        """nDCG@10 of each person under these weights."""
        return np.array([_ndcg(weights, one, own) for one, own in zip(self.examples, self.logged, strict=True)])


def _ndcg(weights: Mapping[str, float], example: Example, features: Features) -> float:
    scores = sum(weight * features[name] for name, weight in weights.items())
    marks = np.isin(np.arange(len(example.query.candidates)), example.relevant)
    return ndcg(np.asarray(scores), marks, len(example.relevant), 10)


def people(split: str, n: int | None, folder: Path) -> People:
    """Everybody of a part of the task, or the last n of them; what was logged of them is looked up, or asked."""
    queries = load_queries(load_task(TASK), split)  # type: ignore[arg-type]  # one of the splits
    examples = examples_of(queries)[-n if n else 0 :]
    file = folder / f"mix-{split}-{len(examples)}.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        asked = _ask(examples, queries)
        np.savez(file, **{name: np.stack([one[name] for one in asked]) for name in FEATURES})
    with np.load(file) as table:
        columns = {name: table[name] for name in FEATURES}
    logged = [{name: columns[name][at] for name in FEATURES} for at in range(len(examples))]
    return People(examples, tuple(logged), queries.training)


def _ask(examples: Sequence[Example], queries: QuerySet) -> list[Features]:
    task, found = load_task(TASK), []
    with score_cache(print) as cache:
        backend = load_backend(task, Numerics("fp32"), print)
        asker = recommender_of(task, default_row(task), backend)
        asker = replace(asker, backend=Kept(backend, cache))  # type: ignore[arg-type]  # all of a Backend
        for n, example in enumerate(examples, 1):
            features = features_of("", asker, asker.answers(example.query))
            found.append({name.strip(): column for name, column in features.items()})
            found[-1] |= popularity_of(example.query, queries.popularity)
            print(f"\r{n} of {len(examples)} people asked", end="", flush=True)
    return found


def cell(learn: People, test: People, alpha: float, of_items: str | None, shots: int) -> dict[str, Any]:
    """A mix of `shots` people, over all draws: its nDCG@10, and what it gains on the fixed alphas (mean over draws)."""
    values, shares = [], []
    for seed in range(SEEDS):
        drawn = rng_for(seed, "shots").permutation(len(learn.examples))[:shots].tolist()
        heard, asked = _known(of_items, learn.only(drawn), test)
        mix = fit(heard.examples, heard.logged, {"sum": 1.0, "twin": -alpha})
        values.append(asked.values(dict(zip(mix.names, mix.weights, strict=True))))
        shares.append(mix.prior_share)
    fixed = {one: test.values({"sum": 1.0, "twin": -one}) for one in ALPHAS}
    best = max(ALPHAS, key=lambda one: fixed[one].mean())
    mean = np.mean(values, axis=0)
    rivals = {"start": alpha, "alpha 0.5": 0.5, f"best alpha, {best:g}": best}
    return {
        "value": float(mean.mean()),
        "deviation": float(np.std(np.mean(values, axis=1), ddof=1)),
        "draws": [float(one.mean()) for one in values],
        "prior_share": float(np.mean(shares)),
        "gains": {name: _gain(mean, fixed[one]) for name, one in rivals.items()},
    }


def _known(of_items: str | None, learn: People, test: People) -> tuple[People, People]:
    """Both with what is known of items among their features, and nothing else of them."""
    names = FEATURES if of_items == POPULARITY else FEATURES[:-1]
    heard, asked = ([{name: one[name] for name in names} for one in who.logged] for who in (learn, test))
    if of_items == EFFECT:
        others = takers(learn.examples, learn.training)
        for example, own in zip(learn.examples, heard, strict=True):
            keys = map(key_of, example.query.candidates)
            own |= effect_of(example.query, others.without(example.query.person, keys))
        for example, own in zip(test.examples, asked, strict=True):
            own |= effect_of(example.query, others.effects)
    return replace(learn, logged=tuple(heard)), replace(test, logged=tuple(asked))


def _gain(mean: np.ndarray, fixed: np.ndarray) -> list[float]:
    found = paired_interval(mean, fixed, seed=0)
    return [found.value, found.low, found.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--learn", type=int, help="people to draw from, the last of the selection split; else all of it"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "few_shot" / "mix.json")
    asked = parser.parse_args()
    known = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {"cells": {}}
    learn, test = (people(split, n, ROOT / "results") for split, n in (("selection", asked.learn), ("test", None)))
    known |= {"task": TASK, "row": "complete", "drawn_from": len(learn.examples), "tested": len(test.examples)}
    known["fixed"] = {f"{one:g}": float(test.values({"sum": 1.0, "twin": -one}).mean()) for one in ALPHAS}
    known["popularity"] = float(test.values({POPULARITY: 1.0}).mean())
    for alpha, of_items, shots in product(PRIORS, OF_ITEMS, SHOTS):
        name = f"prior {alpha:g}{of_items}, k = {shots}"
        if name not in known["cells"]:
            known["cells"][name] = cell(learn, test, alpha, OF_ITEMS[of_items], shots)
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(asked.out, dump(known))
        print(_line(name, known["cells"][name]))


def _line(name: str, found: Mapping[str, Any]) -> str:
    points = {who: [100 * one for one in gain] for who, gain in found["gains"].items()}
    gains = (f"{who} {at:+.1f} ({low:+.1f} to {high:+.1f})" for who, (at, low, high) in points.items())
    return f"{name}: {100 * found['value']:.1f} ± {100 * found['deviation']:.1f}; against {'; '.join(gains)}"


if __name__ == "__main__":
    main()
