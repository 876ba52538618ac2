"""Whole runs under every kind and calibration: what is asked, what is known, what is ranked, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from _tiny import FILMS, model, plain, query, tokenizer
from test_evaluation import PLAIN, PMI, WordyBackend, rankings_in, record_in, tiny
from test_kept_answers import Named

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.errors import BudgetError, VerbalizerError
from fewrec_prompt.evaluation import Run, evaluate
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.score_cache import Kept
from fewrec_prompt.scoring import Asking
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.types import Question, TokenLogprobs

CONTEXTUAL = RowSettings(prompt="complete", calibrate="contextual")
CHOOSE, BALANCED = RowSettings(prompt="choose"), RowSettings(prompt="choose", verbalizer="letters-balanced")
SETTLED = RowSettings(prompt="choose", verbalizer="letters-settled")
PAIRS, SETS = RowSettings(prompt="pairwise"), RowSettings(prompt="setwise")
ROUNDS = (SETTLED, PAIRS, SETS)
KINDS = (
    CHOOSE,
    BALANCED,
    RowSettings(prompt="channel"),
    RowSettings(prompt="judge"),
    RowSettings(prompt="rate"),
    PLAIN,
)


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "cache"))


def run_of(out: Path, *rows: RowSettings, backend: WordyBackend | None = None, **how: Any) -> Run:
    return evaluate(tiny(*rows), out=out, backend=backend or Named(), **how)


def asked_by(out: Path, *rows: RowSettings, **changes: Any) -> int:
    """How many questions a run puts to the model that were not answered before."""
    backend = Named()
    evaluate(tiny(*rows, **changes), out=out, backend=backend)
    return len(backend.asked)


# --- what a reading costs ----------------------------------------------------------------------------------------


def test_another_calibration_asks_at_most_the_twins_that_are_not_logged(tmp_path: Path) -> None:
    """Six users: their questions, the twin without history, and two more that say nothing."""
    costs = [
        asked_by(tmp_path / str(at), RowSettings(prompt="complete", calibrate=name))  # type: ignore[arg-type]
        for at, name in enumerate(["none", "pmi", "contextual", "batch", "pmi"])
    ]
    assert costs == [6, 6, 12, 0, 0]


@pytest.mark.parametrize("name", ["pmi", "contextual", "batch"])
def test_another_alpha_length_or_metric_asks_nothing(tmp_path: Path, name: Any) -> None:
    asked_by(tmp_path / "first", RowSettings(prompt="complete", calibrate=name))
    rows = [RowSettings(prompt="complete", calibrate=name, alpha=alpha) for alpha in (-1.0, 0.3, 2.0)]
    rows += [RowSettings(prompt="complete", calibrate=name, length=length) for length in ("mean", "chars")]
    assert asked_by(tmp_path / "again", *rows, metrics=("MRR", "nDCG@3", "HR@2")) == 0


def test_rows_of_one_run_share_the_twin_without_history(tmp_path: Path) -> None:
    backend = WordyBackend()
    run_of(tmp_path / "run", PLAIN, PMI, CONTEXTUAL, backend=backend)
    assert len(backend.asked) == 6 * 4
    assert max(Counter(backend.asked).values()) == 1


@pytest.mark.parametrize("row", ROUNDS, ids=lambda row: row.verbalizer or row.prompt)
def test_a_second_run_of_many_rounds_asks_nothing_and_gives_the_same(tmp_path: Path, row: RowSettings) -> None:
    assert asked_by(tmp_path / "first", row) > 6
    assert asked_by(tmp_path / "again", row) == 0
    assert asked_by(tmp_path / "batch", row.model_copy(update={"calibrate": "batch", "alpha": 0.5})) == 0
    assert rankings_in(tmp_path / "first") == rankings_in(tmp_path / "again")


@pytest.mark.parametrize("row", ROUNDS, ids=lambda row: row.verbalizer or row.prompt)
def test_a_run_of_many_rounds_that_stopped_goes_on_where_it_was(tmp_path: Path, row: RowSettings) -> None:
    whole = Named()
    run_of(tmp_path / "whole", row, backend=whole, cache=False)

    class Stops(Named):
        def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
            if len(self.asked) > len(whole.asked) // 2:
                raise KeyboardInterrupt
            return super().logprobs(questions)

    Stops.__name__ = "Named"
    first, second = Stops(), Named()
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", row, backend=first)
    run_of(tmp_path / "run", row, backend=second)

    assert Counter(first.asked + second.asked) == Counter(whole.asked)  # nothing twice, nothing left out
    assert rankings_in(tmp_path / "run") == rankings_in(tmp_path / "whole")


def test_rounds_of_several_users_are_asked_together_and_come_to_the_same(tmp_path: Path) -> None:
    class Together(WordyBackend):
        def __init__(self) -> None:
            super().__init__()
            self.mode = NumericMode("fp32", "a test", "cpu", unit="throughput")
            self.sizes: list[int] = []

        def logprobs(self, questions: Sequence[Question], *, grad: bool = False) -> list[TokenLogprobs]:
            self.sizes.append(len(questions))
            return super().logprobs(questions)

    together = Together()
    one = run_of(tmp_path / "one", PAIRS, backend=WordyBackend())
    many = run_of(tmp_path / "many", PAIRS, backend=together)

    assert together.sizes[0] == 6 * 2
    assert rankings_in(one.folder) == rankings_in(many.folder)


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [*KINDS, *ROUNDS], ids=lambda row: row.verbalizer or row.prompt)
def test_every_ranking_is_a_full_finite_permutation(tmp_path: Path, row: RowSettings) -> None:
    run = run_of(tmp_path / "run", row)
    frame = pq.read_table(run.folder / "rankings.parquet").to_pandas().query(f"row == {run.rows[-1]['name']!r}")
    shown = pq.read_table(run.folder / "candidates.parquet").to_pandas().set_index("user_id")["candidates"]
    assert frame["score"].abs().lt(1e9).all()
    for user_id, one in frame.groupby("user_id"):
        assert sorted(one["item_id"]) == sorted(shown[user_id])
        assert list(one["rank"]) == list(range(1, len(one) + 1))


@pytest.mark.parametrize("name", ["batch", "position"])
def test_what_depends_on_the_other_users_is_flagged(tmp_path: Path, name: Any) -> None:
    run = run_of(tmp_path / "run", CHOOSE, RowSettings(prompt="choose", calibrate=name, alpha=0.5))
    plain, calibrated = record_in(run.folder)["rows"][2:]
    assert (plain["name"], calibrated["name"]) == ("choose", f"choose {name} 0.5 (transductive)")
    assert (plain["transductive"], calibrated["transductive"]) == (False, True)


@pytest.mark.parametrize("name", ["batch", "position"])
def test_a_transductive_row_changes_with_the_other_users_and_no_other_row_does(tmp_path: Path, name: Any) -> None:
    rows = (CHOOSE, RowSettings(prompt="choose", calibrate=name))
    scores = {}
    for n in (3, 6):
        run = evaluate(tiny(*rows, users=n), out=tmp_path / str(n), backend=WordyBackend())
        frame = pq.read_table(run.folder / "rankings.parquet").to_pandas().query("user_id == 'ann'")
        scores[n] = [
            frame[frame["row"] == row["name"]].sort_values("item_id")["score"].tolist() for row in run.rows[2:]
        ]
    assert scores[3][0] == scores[6][0]
    assert scores[3][1] != scores[6][1]


def test_position_bias_is_told_of_rows_that_show_candidates_together(tmp_path: Path) -> None:
    """A model that always says the first letter: what stands first is ranked first; all orders undo it."""

    class First(WordyBackend):
        def _told(self, question: Question, continuation: str) -> Any:
            return np.array([-1.0 - ord(continuation.strip()[0]) / 64])  # sums of these are exact, so ties are ties

    run = run_of(tmp_path / "run", CHOOSE, BALANCED, PLAIN, backend=First())
    first, all_orders, whole = (row["notes"].get("position_bias") for row in run.rows[2:])
    assert first == pytest.approx(1.0)
    assert all_orders == pytest.approx(0.0, abs=1e-9)
    assert whole is None


def test_a_row_says_how_many_orders_it_asks(tmp_path: Path) -> None:
    backend = WordyBackend()
    run = run_of(tmp_path / "run", RowSettings(prompt="choose", orders=4), backend=backend)
    assert run.rows[-1]["name"] == "choose 4 orders"
    assert run.rows[-1]["orders"] == 4
    assert len(backend.asked) == 6 * 4
    with pytest.raises(VerbalizerError, match="orders are for verbalizers of kind 'choose', not 'complete'"):
        run_of(tmp_path / "other", RowSettings(prompt="complete", orders=4))


def test_rounds_that_are_known_cost_what_each_took_and_one_that_is_not_makes_the_unit_scored() -> None:
    class Shelf:
        """Knows the first question, and that it took 40 ms."""

        def get(self, key: str) -> Any:
            return Kept((np.array([-1.0]), np.array([-2.0])), 40.0) if key == known else None

        def put(self, *_: object) -> None: ...

    first, second = (plain(text, " A", " B") for text in ("one", "two"))
    backend = Named()
    known = backend.identity([first]).key
    asking = Asking(backend, Shelf())  # type: ignore[arg-type]  # what it needs of a ScoreCache

    asking([first])
    asking([first])
    assert (asking.source, asking.ms, backend.asked) == ("cached", 80.0, [])
    asking([second])
    assert asking.source == "scored"
    assert asking.ms > 80.0


# --- a real model, tiny and random -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [*KINDS, *ROUNDS], ids=lambda row: row.verbalizer or row.prompt)
def test_every_kind_ranks_with_a_transformer(row: RowSettings) -> None:
    backend = CausalBackend(
        model(n_words=len(tokenizer()), max_position_embeddings=512), tokenizer(), NumericMode("fp32", "a test", "cpu")
    )
    template, reader, _ = choose(row.prompt, row.verbalizer, "none", None, None)
    ranking = Recommender(template, reader, backend, FILMS).rank(query())
    assert sorted(ranking.item_ids) == sorted(item.id for item in query().candidates)
    assert len({round(score, 9) for score in ranking.scores}) == 3


def test_a_comparison_that_turns_out_too_long_is_an_error_that_names_the_user() -> None:
    """What fits is judged by the longest titles in letters; the toy counts words, and the two of most words meet."""
    template, reader, _ = choose("pairwise", None, "none", None, None)
    asked = query(history=("Heat",), candidates=("abcdefghijkl", "abcdefghij", "a b c d e f", "a b c d e"))
    roomy = Recommender(template, reader, WordyBackend(), FILMS)
    window = max(roomy.backend.n_tokens(question) for question in roomy.questions(asked))
    with pytest.raises(BudgetError, match=f"user 'u1': a comparison of 2 candidates does not fit {window} tokens"):
        Recommender(template, reader, WordyBackend(context_window=window), FILMS).rank(asked)
