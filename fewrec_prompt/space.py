"""What a search may choose from, and in which order it tries: template × verbalizer × length × calibration × alpha.

Settings only: no model and no users. What a candidate is worth is told by whoever calls `run_trials` (searching.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from fewrec_prompt import templates, verbalizers
from fewrec_prompt.calibration import NAMES, WEIGHED, Calibration, CalibrationName
from fewrec_prompt.errors import TaskError, did_you_mean
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.verbalizers import Length, Orders

if TYPE_CHECKING:
    import optuna

ALPHAS = tuple(round(tenths / 10, 1) for tenths in range(1, 11))
N_STEPS = 20  # of a range: finer than any number of users could tell apart
N_MOST = 2_000  # candidates: each has a value for each user


@dataclass(frozen=True, slots=True)
class Space:
    """What a search tries. Nothing named: the prompts of the task, as they are read by default, plain and with pmi.

    A verbalizer goes with every prompt of its kind; a prompt for whose kind none is named is read by its own.
    """

    prompts: tuple[str, ...] = ()  # none: those of the task's rows
    verbalizers: tuple[str, ...] = ()
    calibrations: tuple[CalibrationName, ...] = ("none", "pmi")
    alphas: tuple[float, ...] = ALPHAS  # weights of calibrations; with alpha 0 each is "none" again
    lengths: tuple[Length, ...] = ()  # of whole titles; none: the verbalizer's own rule

    @staticmethod
    def between(low: float, high: float) -> tuple[float, ...]:
        """The alphas of a range: both ends and what lies between them in twentieths. Raises TaskError for no range."""
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise TaskError(f"alpha from {low} to {high} is no range; give two finite numbers, the lower one first")
        return tuple(round(low + (high - low) * step / N_STEPS, 12) for step in range(N_STEPS + 1))

    def to_dict(self) -> dict[str, list[Any]]:
        """JSON-ready, in an order of its own: it does not matter in which order things were named."""
        names = ("prompts", "verbalizers", "calibrations", "alphas", "lengths")
        return {name: sorted(set(getattr(self, name))) for name in names}


@dataclass(frozen=True, slots=True)
class Asked:
    """One set of questions, and the rules by which its answers may be read (None: there is no such rule)."""

    prompt: str
    verbalizer: str
    lengths: tuple[Length | None, ...]
    orders: Orders | None
    calibrations: tuple[CalibrationName, ...]  # those of the space that mean something for it


@dataclass(frozen=True, slots=True)
class Grid:
    """A space over the prompts of a task, with every default filled in."""

    asked: tuple[Asked, ...]
    alphas: tuple[float, ...]

    def rows(self) -> list[RowSettings]:
        """Every candidate once, the plainest first: that order decides between equals."""
        rows = [
            _row(asked, length, calibration, alpha)
            for asked in self.asked
            for length, (calibration, alpha) in product(asked.lengths, self.readings(asked))
        ]
        return sorted(rows, key=_plainness)

    def readings(self, asked: Asked) -> Iterator[tuple[CalibrationName, float | None]]:
        """Every calibration of these questions, with every alpha."""
        for calibration in asked.calibrations:
            yield from ((calibration, alpha) for alpha in (self.alphas if calibration in WEIGHED else (None,)))

    def suggest(self, trial: optuna.trial.Trial) -> RowSettings:
        """The candidate that a sampler wants to see next. What does not matter to it is not asked for."""
        asked = self.asked[trial.suggest_categorical("questions", range(len(self.asked)))]
        length = asked.lengths[trial.suggest_categorical(f"length {asked.verbalizer}", range(len(asked.lengths)))]
        named = asked.calibrations
        calibration = named[trial.suggest_categorical(f"calibrate {len(named)}", range(len(named)))]
        if calibration not in WEIGHED:
            return _row(asked, length, calibration, None)
        return _row(asked, length, calibration, self.alphas[trial.suggest_int("alpha", 0, len(self.alphas) - 1)])


def _row(asked: Asked, length: Length | None, calibration: CalibrationName, alpha: float | None) -> RowSettings:
    return RowSettings(
        prompt=asked.prompt,
        verbalizer=asked.verbalizer,
        calibrate=calibration,
        alpha=alpha,
        length=length,
        orders=asked.orders,
    )


def _plainness(row: RowSettings) -> tuple[Any, ...]:
    return (
        row.calibrate != "none",
        abs(row.alpha or 0.0),
        row.length not in (None, "sum"),
        row.prompt,
        str(row.verbalizer),
    )


def grid(space: Space, rows: Sequence[RowSettings]) -> Grid:
    """The candidates of a space; `rows` are those of the task. Raises TaskError for what cannot be searched."""
    _check_known("calibration", space.calibrations, NAMES)
    _check_known("length rule", space.lengths, get_args(Length))
    prompts = sorted(set(space.prompts) or {row.prompt for row in rows})
    own = {(row.prompt, row.verbalizer) for row in rows} if not space.prompts and not space.verbalizers else set()
    asked = tuple(sorted(_asked(prompts, space, own), key=lambda one: (one.prompt, one.verbalizer)))
    _check_used("verbalizer", space.verbalizers, {one.verbalizer for one in asked})
    if space.lengths and not any(set(one.lengths) & set(space.lengths) for one in asked):
        raise TaskError("a length rule is for prompts that score whole titles (kind 'complete'), and none is tried")
    _check_used("calibration", space.calibrations, {name for one in asked for name in one.calibrations})
    made = Grid(tuple(one for one in asked if one.calibrations), _alphas(space))
    n = sum(len(one.lengths) * sum(1 for _ in made.readings(one)) for one in made.asked)
    if not 0 < n <= N_MOST:
        raise TaskError(f"{n} candidates are to be tried; name 1 to {N_MOST}")
    return made


def _asked(prompts: Sequence[str], space: Space, own: set[tuple[str, str | None]]) -> Iterator[Asked]:
    named = {name: verbalizers.load(name) for name in sorted(set(space.verbalizers))}
    for prompt in prompts:
        template = templates.load(prompt)
        fitting = {name for name, one in named.items() if one.kind == template.kind}
        fitting = fitting or {verbalizer or template.front.verbalizer for its, verbalizer in own if its == prompt}
        for name in fitting or {template.front.verbalizer}:
            reader = named.get(name) or verbalizers.load(name)
            usual = verbalizers.of_rows(reader)
            lengths = tuple(sorted(set(space.lengths))) if usual["length"] and space.lengths else (usual["length"],)
            calibrations = tuple(one for one in sorted(set(space.calibrations)) if Calibration(one).fits(reader))
            yield Asked(prompt, name, lengths, usual["orders"], calibrations)


def _alphas(space: Space) -> tuple[float, ...]:
    if unknown := [alpha for alpha in space.alphas if not math.isfinite(alpha)]:
        raise TaskError(f"alpha is {unknown[0]}; give finite numbers")
    alphas = sorted(set(space.alphas) - ({0.0} if "none" in space.calibrations else set()))
    if not alphas and (weighed := [name for name in space.calibrations if name in WEIGHED]):
        raise TaskError(f"{weighed[0]} is to be tried, but with no alpha other than 0; name one, such as 0.5")
    return tuple(alphas)


def _check_known(what: str, named: Sequence[str], known: Sequence[str]) -> None:
    if unknown := sorted(set(named) - set(known)):
        raise TaskError(f"unknown {what} {unknown[0]!r}; {did_you_mean(unknown[0], known)}")


def _check_used(what: str, named: Sequence[str], used: set[str]) -> None:
    if idle := sorted(set(named) - used):
        raise TaskError(f"none of the prompts fits {what} {idle[0]!r}; name one of its kind, or leave it out")


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was tried, and what it came to (NaN: it has no value)."""

    row: RowSettings
    value: float


def run_trials(
    grid: Grid, n_trials: int, seed: int, worth: Callable[[RowSettings], float], *, more: bool = True
) -> list[Trial]:
    """Every candidate if they are no more than the trials; else those that a tree-structured Parzen estimator picks.

    (TPE: Bergstra et al. 2011, by Optuna.) A candidate that comes up again is a trial too. The same seed picks the
    same; so nothing needs to be kept of a study that stopped: repeated, it takes the same way. `more` is better, or
    less.
    """
    rows = grid.rows()
    if len(rows) <= n_trials:
        return [Trial(row, worth(row)) for row in rows]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=int(rng_for(seed, "search").integers(2**31)))
    study = optuna.create_study(direction="maximize" if more else "minimize", sampler=sampler)
    trials = []
    for _ in range(n_trials):
        asked = study.ask()
        row = grid.suggest(asked)
        trials.append(Trial(row, worth(row)))
        failed = optuna.trial.TrialState.FAIL if math.isnan(trials[-1].value) else None
        study.tell(asked, None if failed else trials[-1].value, state=failed)
    return trials
