"""Several prompts as one row: what its scores are, that nothing is asked twice, and what the record says of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_evaluation import WordyBackend, rankings_in, record_in
from typer.testing import CliRunner

from fewrec_prompt import comparison, ensembles, report
from fewrec_prompt.cli import app
from fewrec_prompt.errors import TaskError
from fewrec_prompt.evaluation import Options, Run, evaluate
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.sharing import export
from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
from fewrec_prompt.tasks import load_task
from fewrec_prompt.types import Item, Query, Ranking

PLAIN, FILMS = RowSettings(prompt="complete"), RowSettings(prompt="films-complete")
PMI = RowSettings(prompt="complete", calibrate="pmi", alpha=0.6)
JUDGE = RowSettings(prompt="judge")
BOTH = EnsembleSettings(members=(PLAIN, FILMS))


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


def run_of(out: Path, *rows: RowSettings, ensembles=(BOTH,), backend=None) -> Run:
    options = Options(rows=rows or (PLAIN,), ensembles=ensembles)
    return evaluate(load_task("eval/tiny.toml"), options, out=out, backend=backend or WordyBackend())


def scores_of(run: Run, row: str) -> dict[tuple[str, str], float]:
    lines = pq.read_table(run.folder / "rankings.parquet").to_pylist()
    return {(line["user_id"], line["item_id"]): line["score"] for line in lines if line["row"] == row}


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_brought_together_as_choices_worked_out_by_hand():
    """One row says 3 : 1, another 1 : 1 : 2; each as logarithms with a constant that means nothing."""
    query = Query("u", (), (Item("a", "A"), Item("b", "B")))
    one = Ranking.from_scores(query, [math.log(3) + 40, 40.0], 5)
    other = Ranking.from_scores(query, [-7.0, math.log(4) - 7], 2)

    found = ensembles._together(query, [one, other])

    assert found.item_ids == ("b", "a")
    by_id = dict(zip(found.item_ids, found.scores, strict=True))
    assert by_id["a"] == pytest.approx((math.log(3 / 4) + math.log(1 / 5)) / 2)
    assert by_id["b"] == pytest.approx((math.log(1 / 4) + math.log(4 / 5)) / 2)
    assert found.n_history == 2


def test_scores_too_far_apart_for_a_softmax_stay_finite():
    assert np.isfinite(ensembles.log_choice(np.array([0.0, -2000.0, 2000.0]))).all()


def test_an_ensemble_of_a_table_is_the_mean_of_its_members_rows(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", PLAIN, FILMS)

    plain, films, both = (scores_of(run, row) for row in ("complete", "films-complete", "complete + films-complete"))
    assert both.keys() == plain.keys()
    for user in {user for user, _ in both}:
        keys = [key for key in both if key[0] == user]
        gaps = [both[key] - (plain[key] + films[key]) / 2 for key in keys]
        assert np.ptp(gaps) == pytest.approx(0.0, abs=1e-9), "but for what all candidates of a user share"


# --- asking ------------------------------------------------------------------------------------------------------


def test_what_members_ask_is_asked_once_also_where_rows_ask_it(tmp_path: Path) -> None:
    alone, beside = WordyBackend(), WordyBackend()

    run_of(tmp_path / "alone", PMI, FILMS, ensembles=(), backend=alone)
    run_of(tmp_path / "beside", PMI, ensembles=(BOTH, EnsembleSettings(members=(PMI, FILMS))), backend=beside)

    assert Counter(map(str, beside.asked)) == Counter(map(str, alone.asked))


def test_members_that_are_no_rows_are_asked_and_do_not_show(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", JUDGE)

    names = [row["name"] for row in run.rows]
    assert names == ["random", "popularity", "judge", "complete + films-complete"]


def test_a_run_that_stopped_goes_on_to_the_same_rankings(tmp_path: Path) -> None:
    class Stops(WordyBackend):
        most = 1000

        def logprobs(self, questions, *, grad=False):
            if len(self.asked) > self.most:
                raise KeyboardInterrupt
            return super().logprobs(questions, grad=grad)

    first, rest = Stops(), Stops()
    first.most = 7
    whole = run_of(tmp_path / "whole", backend=Stops())
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "cut", backend=first)
    run = run_of(tmp_path / "cut", backend=rest)

    assert rankings_in(run.folder) == rankings_in(whole.folder)
    assert 0 < len(rest.asked) < 12, "of the 12 questions of 6 people some were saved"


# --- what is written down ----------------------------------------------------------------------------------------


def test_the_record_names_the_members_with_all_that_decides_their_scores(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", JUDGE)

    record = record_in(run.folder)
    row = record["rows"][-1]
    filled = [RowSettings(prompt=name, verbalizer="title", length="sum") for name in ("complete", "films-complete")]
    expected = [member.model_dump(mode="json") for member in filled]
    assert row["members"] == expected
    assert record["settings"]["ensembles"] == [{"members": expected, "mix": None}]
    assert set(record["templates"]) == {"judge", "complete", "films-complete"}
    assert "title" in record["verbalizers"]
    assert row["ms_per_user"] > 0


def test_another_member_is_another_run(tmp_path: Path) -> None:
    first = run_of(tmp_path / "one").record
    second = run_of(tmp_path / "two", ensembles=(EnsembleSettings(members=(PLAIN, JUDGE)),)).record
    assert first["settings"]["ensembles"] != second["settings"]["ensembles"]


def test_an_ensemble_is_compared_reported_and_shared_like_any_prompt_row(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", PLAIN, FILMS)
    other = run_of(tmp_path / "other", ensembles=(EnsembleSettings(members=(PLAIN, JUDGE)),))

    name = "complete + films-complete"
    found = comparison.compare(run.folder, other.folder, rows=[f"{name}=complete + judge"])
    assert "members" in [key for key, _, _ in found.pairs[0].changed]
    assert "films-complete" in FinishedRun(run.folder).prompt_rows[-1]
    report.write(tmp_path / "report.html", [FinishedRun(run.folder)])
    assert name in (tmp_path / "report.html").read_text(encoding="utf-8")
    export(run.folder, tmp_path / "shared", share=True)
    shared = json.loads((tmp_path / "shared" / "run.json").read_text(encoding="utf-8"))
    assert [member["prompt"] for member in shared["rows"][-1]["members"]] == ["complete", "films-complete"]


def test_where_templates_of_members_lie_is_not_shared(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    own = secret / "own.jinja"
    own.write_text(Path("prompts/complete.jinja").read_text(encoding="utf-8"), encoding="utf-8")
    one = EnsembleSettings(members=(PLAIN, RowSettings(prompt=str(own))))
    run = run_of(tmp_path / "run", ensembles=(one,))

    export(run.folder, tmp_path / "shared", share=True)

    for path in (tmp_path / "shared").iterdir():
        assert b"secret" not in path.read_bytes(), path.name


# --- refusing ----------------------------------------------------------------------------------------------------


def test_members_called_the_same_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="two members of an ensemble are called 'complete'"):
        run_of(tmp_path / "run", ensembles=(EnsembleSettings(members=(PLAIN, PLAIN)),), backend=None)


def test_the_same_ensemble_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"two rows are called 'complete \+ films-complete'"):
        run_of(tmp_path / "run", ensembles=(BOTH, BOTH))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('members = [{ prompt = "complete" }]', "two `members` or more"),
        ('members = [{ prompt = "complete" }, { promt = "judge" }]', "unknown key 'promt'.*Did you mean 'prompt'"),
        ('parts = [{ prompt = "complete" }]', "unknown key 'parts'; known: members, mix"),
    ],
)
def test_a_task_file_is_read_strictly_here_too(tmp_path: Path, lines: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'[data]\ndataset = "ml-100k"\n[[ensembles]]\n{lines}\n')
    with pytest.raises(TaskError, match=says):
        load_task(file)


# --- the command line --------------------------------------------------------------------------------------------


def test_the_flag_makes_an_ensemble_for_every_calibration() -> None:
    from fewrec_prompt.cli.evaluation import ensemble_settings

    found = ensemble_settings(["complete,films-complete"], ["none", "pmi"], [0.5], None)

    assert found is not None
    assert [[row.prompt for row in one.members] for one in found] == [["complete", "films-complete"]] * 2
    assert [one.members[0].alpha for one in found] == [None, 0.5]
    assert ensemble_settings([], ["pmi"], [0.5], None) is None


def test_an_ensemble_of_one_is_a_plain_mistake() -> None:
    found = CliRunner().invoke(app, ["eval", "eval/tiny.toml", "--ensemble", "complete"])
    assert found.exit_code != 0
    assert "name two templates or more" in str(found.exception or found.output)
