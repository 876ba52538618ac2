"""What a search may choose from: every combination once, and the same trials for the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fewrec_prompt.errors import TaskError
from fewrec_prompt.space import ALPHAS, Space, grid, run_trials
from fewrec_prompt.task_settings import RowSettings

OWN = (RowSettings(prompt="complete", verbalizer="title"), RowSettings(prompt="judge", verbalizer="yes-no"))
WIDE = Space(prompts=("complete", "judge", "choose"), alphas=Space.between(0, 1), lengths=("sum", "mean"))


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


def bump(row: RowSettings) -> float:
    """Highest for titles summed with alpha 0.35, a little lower for everything that is near."""
    return -abs((row.alpha or 0.0) - 0.35) - (row.prompt != "complete") - (row.length == "mean") / 10


def test_nothing_named_is_the_prompts_of_the_task_plain_and_with_pmi() -> None:
    rows = grid(Space(), OWN).rows()

    assert len(rows) == len({row.model_dump_json() for row in rows}) == 2 * (1 + len(ALPHAS))
    assert rows[:2] == [RowSettings(prompt="complete", verbalizer="title", length="sum"), OWN[1]]
    assert {row.prompt for row in rows} == {"complete", "judge"}


def test_a_verbalizer_goes_with_the_prompts_of_its_kind_and_no_other() -> None:
    space = Space(prompts=("complete", "judge"), verbalizers=("yes-no", "title"), calibrations=("none",))
    rows = grid(space, OWN).rows()
    assert [(row.prompt, row.verbalizer) for row in rows] == [("complete", "title"), ("judge", "yes-no")]
    with pytest.raises(TaskError, match="none of the prompts fits verbalizer 'letters'"):
        grid(Space(prompts=("complete",), verbalizers=("title", "letters")), OWN)


def test_the_prompts_of_a_task_keep_the_verbalizers_it_reads_them_with(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('kind = "complete"\ndescription = "d"\nlength = "mean"\n')
    rows = grid(Space(calibrations=("none",)), (RowSettings(prompt="complete", verbalizer=str(mine)),)).rows()
    assert [(row.verbalizer, row.length) for row in rows] == [(str(mine), "mean")]


def test_length_rules_are_for_titles() -> None:
    rows = grid(Space(lengths=("mean", "sum"), calibrations=("none",)), OWN).rows()
    assert [(row.prompt, row.length) for row in rows] == [("complete", "sum"), ("judge", None), ("complete", "mean")]
    with pytest.raises(TaskError, match="a length rule is for prompts that score whole titles"):
        grid(Space(prompts=("judge",), lengths=("sum",)), OWN)


def test_alpha_0_is_no_candidate_beside_none() -> None:
    assert 0.0 not in {row.alpha for row in grid(Space(alphas=(0.0, 0.5)), OWN).rows()}
    assert {row.alpha for row in grid(Space(calibrations=("pmi",), alphas=(0.0, 0.5)), OWN).rows()} == {0.0, 0.5}
    with pytest.raises(TaskError, match="with no alpha other than 0"):
        grid(Space(alphas=(0.0,)), OWN)


def test_a_range_has_both_its_ends_and_twentieths_between_them() -> None:
    alphas = Space.between(0.2, 0.6)
    assert (len(alphas), alphas[0], alphas[10], alphas[-1]) == (21, 0.2, 0.4, 0.6)
    for low, high in ((1.0, 0.0), (0.5, 0.5), (0.0, math.inf)):
        with pytest.raises(TaskError, match="is no range; give two finite numbers"):
            Space.between(low, high)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Space(calibrations=("pmy",)), "unknown calibration 'pmy'.*Did you mean 'pmi'"),  # type: ignore[arg-type]
        (Space(lengths=("median",)), "unknown length rule 'median'; known: chars, mean, sum"),  # type: ignore[arg-type]
        (Space(alphas=(math.nan,)), "alpha is nan; give finite numbers"),
        (Space(alphas=tuple(map(float, range(3000)))), "candidates are to be tried; name 1 to 2000"),
        (Space(calibrations=()), "0 candidates"),
    ],
)
def test_what_cannot_be_searched_is_said(space: Space, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        grid(space, OWN)


def test_it_does_not_matter_in_which_order_things_are_named() -> None:
    other = Space(prompts=WIDE.prompts[::-1], alphas=WIDE.alphas[::-1], lengths=("mean", "sum"))
    other_rows = grid(other, OWN[::-1]).rows()
    assert grid(WIDE, OWN).rows() == other_rows
    assert WIDE.to_dict() == other.to_dict()
    assert run_trials(grid(WIDE, OWN), 20, 3, bump) == run_trials(grid(other, OWN), 20, 3, bump)


def test_few_candidates_are_all_tried_and_each_once() -> None:
    few = grid(Space(), OWN)
    trials = run_trials(few, len(few.rows()), 0, bump)
    assert [trial.row for trial in trials] == few.rows()


def test_the_same_seed_picks_the_same_and_more_trials_begin_with_fewer() -> None:
    wide = grid(WIDE, OWN)
    assert len(wide.rows()) > 60
    trials = run_trials(wide, 60, 7, bump)
    assert len(trials) == 60
    assert run_trials(wide, 30, 7, bump) == trials[:30]
    assert run_trials(wide, 30, 8, bump) != trials[:30]


@pytest.mark.parametrize("more", [True, False])
def test_what_is_picked_comes_near_to_the_best(more: bool) -> None:
    def worth(row: RowSettings) -> float:
        return bump(row) if more else -bump(row)

    trials = run_trials(grid(WIDE, OWN), 60, 0, worth, more=more)
    best = (max if more else min)(trials, key=lambda trial: trial.value).row
    assert (best.prompt, best.length) == ("complete", "sum")
    assert best.alpha == pytest.approx(0.35, abs=0.051)


def test_a_candidate_without_a_value_is_a_trial_like_others() -> None:
    trials = run_trials(grid(WIDE, OWN), 30, 0, lambda row: math.nan if row.prompt == "complete" else bump(row))
    assert any(math.isnan(trial.value) for trial in trials)
    assert any(not math.isnan(trial.value) for trial in trials)
