"""What a mix is made of: numbers that were logged about each candidate, under names that stay.

| name | of | unit |
|---|---|---|
| ROW sum, ROW mean | a row that scores whole titles | nats, nats a token |
| ROW tokens | the same | tokens of the title and what closes it |
| ROW score | any other row | its verbalizer's: nats, or stars |
| ROW twin | a row with a calibration | what the row scores without the history |
| history rating | questions of one candidate | the mean rating of the history; of likes and dislikes the share liked |
| item effect | those who are learnt from | log(1 + how many took it); of likes, how much more (effects.py) |
| popularity | the training part, where it is allowed | log(1 + interactions) |

ROW is what the table calls the row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fewrec_prompt.recommender import Answers, Recommender
from fewrec_prompt.tuning.effects import key_of
from fewrec_prompt.tuning.mix import Floats
from fewrec_prompt.types import Query

MOST_STARS = 5  # of one at least: a star of the history's mean is a quarter of all likes
POPULARITY, HISTORY, EFFECT = "popularity", "history rating", "item effect"


def features_of(row: str, recommender: Recommender, answers: Answers) -> dict[str, Floats]:
    """The features (n_candidates,) that a row's answers to one query hold; none of them is calibrated."""
    if recommender.verbalizer.kind == "complete":
        (titles,) = answers.asked
        found = {
            f"{row} sum": np.array([title.sum() for title in titles]),
            f"{row} mean": np.array([title.mean() for title in titles]),
            f"{row} tokens": np.array([float(len(title)) for title in titles]),
            f"{row} {recommender.verbalizer.length}": np.asarray(recommender.raw_scores(answers)),
        }
    else:
        found = {f"{row} score": np.asarray(recommender.raw_scores(answers))}
    if recommender.calibration.needs_twin:
        found[f"{row} twin"] = np.asarray(recommender.prior_scores(answers))
    return found


def prior_of(row: str, recommender: Recommender) -> dict[str, float]:
    """The weights under which a mix ranks as the row does: its score, less alpha of its twin's."""
    own = getattr(recommender.verbalizer, "length", "score")  # whole titles are read by their sum or their mean
    prior = {f"{row} {own}": 1.0}
    if recommender.calibration.needs_twin:
        prior[f"{row} twin"] = -recommender.calibration.alpha
    return prior


def baseline_estimate() -> dict[str, float]:
    """The weights under which a mix ranks likes and dislikes without a model: how much of the history was liked, and
    how much more than that others like the item (Koren 2010, section 2.1)."""
    return {HISTORY: 1 / (MOST_STARS - 1), EFFECT: 1.0}


def history_of(query: Query, usual: float) -> dict[str, Floats]:
    """How much of the history was liked, the same for all candidates: it counts where questions are compared.

    `usual` is what other people's histories have, for one without a rating.
    """
    return {HISTORY: np.full(len(query.candidates), usual if query.mean_rating is None else query.mean_rating)}


def effect_of(query: Query, effects: Mapping[str, float]) -> dict[str, Floats]:
    """What others say of each candidate by itself; 0 for what none of them took or judged."""
    return {EFFECT: np.array([effects.get(key_of(item), 0.0) for item in query.candidates])}


def popularity_of(query: Query, counts: Mapping[str, int]) -> dict[str, Floats]:
    """How often each candidate was taken. The counts must hold nobody's answer: those of a query set do not."""
    return {POPULARITY: np.log1p([float(counts.get(item.id, 0)) for item in query.candidates])}
