"""How a cell comes about: whom a method learns from, what it learns, and how the test users are ranked then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewrec_prompt.assets import counted
from fewrec_prompt.cells import NOT_LEARNED, ZERO, Cell, name_of
from fewrec_prompt.demos import DemosName
from fewrec_prompt.few_shot import recommender_of, trainable, tune_task, with_demos
from fewrec_prompt.mixing import fit_mix
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.study import Kept, Study
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import METHODS

WEIGHED: Mapping[str, str] = {f"{name}-mix": name for name, one in METHODS.items() if not one.classifies}
SHOWN: Mapping[str, DemosName] = {"demos": "similar", "demos-random": "random", "demos-diverse": "diverse"}


def still(study: Study, method: str) -> Cell:
    """What nobody's shots change: the row before anything is learnt, or a baseline."""
    if method == ZERO:
        return study.cell(ZERO, 0, 0, study.start.rank)
    return study.cell(method, 0, 0, study.baseline(method).rank)


def _mix(study: Study, shots: int, seed: int) -> Cell:
    """Weights over the row's logged scores."""
    found = study.people(shots, seed)
    rows = {study.row.prompt: study.start}
    people = counted(found.learnt, f"{name_of('mix', shots, seed)}, to learn from", study.say)
    answers = [[study.start.answers(one.query)] for one in people]
    begin = time.perf_counter()
    made = fit_mix(found, rows, answers)
    about: dict[str, Any] = {"n_weights": made.n_weights, "train_seconds": round(time.perf_counter() - begin, 4)}
    note = f"prior counts {made.prior_share:.2f}"
    return study.cell("mix", shots, seed, MixRecommender(rows, made).rank, note=note, **about)


def _shown(method: str) -> Callable[[Study, int, int], Cell]:
    """Examples in the prompt: nothing is trained."""

    def run(study: Study, shots: int, seed: int) -> Cell:
        found = study.people(shots, seed)
        recommender = with_demos(study.start, found.learnt, SHOWN[method], seed=seed)
        return study.cell(method, shots, seed, recommender.rank)

    return run


def _tuned(method: str) -> Callable[[Study, int, int], Cell]:
    """A method whose weights are kept as an adapter."""

    def run(study: Study, shots: int, seed: int) -> Cell:
        made = _adapted(study, method, shots, seed)
        return study.cell(method, shots, seed, made.recommender.rank, made.kept, **made.about)

    return run


def _weighed(method: str, below: str) -> Callable[[Study, int, int], Cell]:
    """A mix over what an adapter's row scores. The adapter knows the answers that it was learnt from, so weights are
    fitted on the people held out of it; of items all are heard."""

    def run(study: Study, shots: int, seed: int) -> Cell:
        made = _adapted(study, below, shots, seed)
        found = study.shots_of(below, shots, seed)
        rows = {study.row.prompt: made.recommender}
        people = counted(found.held_out, f"{name_of(method, shots, seed)}, to learn from", study.say)
        answers = [[made.recommender.answers(one.query)] for one in people]
        begin = time.perf_counter()
        mix = fit_mix(replace(found, learnt=found.held_out), rows, answers, also=found.learnt)
        about = dict(made.about)
        about["train_seconds"] += round(time.perf_counter() - begin, 4)
        about["n_weights"] += mix.n_weights
        return study.cell(method, shots, seed, MixRecommender(rows, mix).rank, made.kept, **about)

    return run


@dataclass(frozen=True, slots=True)
class _Adapted:
    """What an adapter makes of the row, its answers kept, and what a cell says of it."""

    recommender: Recommender
    kept: Kept
    about: Mapping[str, Any]


def _adapted(study: Study, method: str, shots: int, seed: int) -> _Adapted:
    """The adapter of a cell, learnt unless it is there."""
    from fewrec_prompt.tuning.adapters import described

    folder = study.out / "adapters" / name_of(method, shots, seed)
    backend = study.backend
    if not folder.is_dir():
        tune_task(
            study.task,
            study.settings_of(method, seed),
            shots,
            folder,
            row=study.row,
            backend=trainable(backend, method, study.task, study.say),
            say=study.say,
        )
    about = described(folder)
    row = RowSettings(**about["tasks"][study.task.name]["row"])  # a classifier leaves its calibration out
    recommender = recommender_of(study.task, row, backend).adapted(folder)
    kept = Kept(recommender.backend, study.cache)
    asking = replace(recommender, backend=kept)  # type: ignore[arg-type]  # all of a Backend
    note = "" if about["learned"] else NOT_LEARNED
    more = {"n_weights": about["n_weights"], "train_seconds": about["seconds"], "note": note}
    return _Adapted(asking, kept, more)


WAYS: Mapping[str, Callable[[Study, int, int], Cell]] = {
    **{name: _shown(name) for name in SHOWN},
    "mix": _mix,
    **{name: _tuned(name) for name in METHODS},
    **{name: _weighed(name, below) for name, below in WEIGHED.items()},
}
