"""A mix over an adapter in a curve: one training for both, weights from people whom the adapter was not learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fewrec_prompt.mixing as mixing
import fewrec_prompt.ways as ways
from fewrec_prompt import tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cells import ZERO, read_cell
from fewrec_prompt.curve import curve
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.few_shot import recommender_of
from fewrec_prompt.mixing import fit_mix
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.effects import key_of
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.ways import WEIGHED

PMI = RowSettings(prompt="complete", calibrate="pmi")
HALF = {"epochs": 1, "held_out": 0.5}


@pytest.fixture(autouse=True)
def _few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six people some are held out: the tiny task has eight to learn from."""
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "scores"))
    monkeypatch.setattr("fewrec_prompt.tuning.examples.SMALLEST_SPLIT", 4)


@pytest.fixture
def how(model: Path) -> dict[str, Any]:
    return {"row": PMI, "settings": HALF, "backend": causal.load(str(model), Numerics("fp32", "cpu"))}


def test_every_method_with_an_adapter_has_one_and_no_classifier() -> None:
    assert set(WEIGHED) == {f"{name}-mix" for name in ("soft-prompt", "p-tuning", "prefix", "lora", "adalora", "full")}


def test_it_is_a_mix_of_the_adapters_scores_fitted_on_those_held_out(
    task: tasks.Task, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, fitted = [], []
    learn, fit = ways.tune_task, mixing.fit
    monkeypatch.setattr(ways, "tune_task", lambda *a, **k: trained.append(a) or learn(*a, **k))
    monkeypatch.setattr(mixing, "fit", lambda examples, *a: fitted.append(examples) or fit(examples, *a))
    lines = curve(task, [ZERO, "lora", "lora-mix"], [6], 1, tmp_path / "out", **how)

    assert [line.method for line in lines] == [ZERO, "lora", "lora-mix"]
    assert len(trained) == 1, "the adapter is that of the other cell"
    people = shots_of(task, 6, 0, held_out=0.5)
    assert [tuple(one.query.user_id for one in people.held_out)] == [
        tuple(one.query.user_id for one in examples) for examples in fitted
    ]
    asking = recommender_of(task, PMI, how["backend"]).adapted(tmp_path / "out" / "adapters" / "lora-6-0")
    answers = [[asking.answers(one.query)] for one in people.held_out]
    mix = fit_mix(replace(people, learnt=people.held_out), {"complete": asking}, answers, also=people.learnt)
    known = {key_of(seen.item) for one in people.learnt + people.held_out for seen in one.query.history}
    assert known <= set(mix.effects), "of items all of them are heard"
    lora, weighed = (read_cell(tmp_path / "out" / "cells" / f"{name}-6-0.json") for name in ("lora", "lora-mix"))
    assert weighed.n_weights == lora.n_weights + len(mix.names) + len(mix.effects)
    ranker = MixRecommender({"complete": asking}, mix)
    for query, scores in zip(tasks.load_queries(task).queries, weighed.scores, strict=True):
        found = dict(zip(ranker.rank(query).item_ids, ranker.rank(query).scores, strict=True))
        assert scores == pytest.approx([found[item.id] for item in query.candidates], abs=1e-4)
    assert not np.allclose(np.concatenate(lora.scores), np.concatenate(weighed.scores))


def test_where_nobody_is_held_out_it_is_refused_before_anything_is_run(
    task: tasks.Task, tmp_path: Path, how: dict[str, Any]
) -> None:
    for shots, held_out in ((3, 0.5), (6, 0.0)):
        asked = how | {"settings": HALF | {"held_out": held_out}}
        with pytest.raises(FewrecError, match=rf"'lora-mix' weighs its scores on people held out of {shots}, and"):
            curve(task, [ZERO, "lora", "lora-mix"], [shots], 1, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
