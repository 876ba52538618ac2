"""What a mix is made of, by name; under the prior's weights it ranks as the row it starts from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _tiny import FILMS, query

from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning.features import features_of, popularity_of, prior_of
from fewrec_prompt.tuning.mix import Mix
from fewrec_prompt.tuning.mixed import MixRecommender


def recommender(prompt="complete", *, calibrate="pmi", alpha=0.5, length=None):
    template, verbalizer, calibration = choose(prompt, None, calibrate, alpha if calibrate == "pmi" else None, length)
    return Recommender(template, verbalizer, ToyBackend({"Yes": 0.3, "no": 0.2}), FILMS, calibration)


def test_features_of_whole_titles_are_worked_out_by_hand():
    """Every word of the toy has one probability, a tenth; a title of two words and one of three."""
    one = recommender()
    asked = query(candidates=("Up (2009)", "Ronin and Brat"))

    found = features_of("complete", one, one.answers(asked))

    log = math.log(0.1)
    assert list(found) == ["complete sum", "complete mean", "complete tokens", "complete twin"]
    assert found["complete tokens"].tolist() == [2, 3]
    assert found["complete sum"] == pytest.approx([2 * log, 3 * log])
    assert found["complete mean"] == pytest.approx([log, log])
    assert found["complete twin"] == pytest.approx([2 * log, 3 * log])


@pytest.mark.parametrize(
    ("prompt", "more"),
    [
        ("complete", {}),
        ("complete", {"length": "mean"}),
        ("complete", {"calibrate": "none"}),
        ("judge", {}),
        ("rate", {}),
    ],
)
def test_under_the_priors_weights_a_mix_scores_as_the_row_does(prompt, more):
    one = recommender(prompt, **more)
    answers = one.answers(query())
    features = features_of("a row", one, answers)
    prior = prior_of("a row", one)

    mixed = sum(weight * features[name] for name, weight in prior.items())

    assert mixed == pytest.approx(np.asarray(one.scores(answers)))


def test_popularity_is_the_logarithm_of_a_count_and_zero_for_what_nobody_took():
    found = popularity_of(query(candidates=("Up (2009)", "Heat (1995)")), {"i-Up (2009)": 3})
    assert found["popularity"].tolist() == [math.log(4), 0.0]


def test_a_mix_of_two_rows_ranks_by_the_weighted_sum_of_both():
    rows = {"complete": recommender(calibrate="none"), "judge": recommender("judge", calibrate="none")}
    names = ("complete sum", "complete mean", "complete tokens", "judge score", "popularity")
    weights = (1.0, 0.0, 0.0, 2.0, -0.5)
    made = MixRecommender(rows, Mix(names, weights, 0.0, 3.0, 1.0, 2.0, 4), {"i-Up (2009)": 3})
    asked = query(candidates=("Up (2009)", "Ronin and Brat"))

    ranking = made.rank(asked)

    by_id = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    judged = np.asarray(rows["judge"].scores(rows["judge"].answers(asked)))
    assert by_id["i-Up (2009)"] == pytest.approx(2 * math.log(0.1) + 2 * judged[0] - 0.5 * math.log(4))
    assert by_id["i-Ronin and Brat"] == pytest.approx(3 * math.log(0.1) + 2 * judged[1])
    assert ranking.n_history == 2
