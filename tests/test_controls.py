"""What a model knows anyway: the same questions without history, or with numbers for titles."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_evaluation import PLAIN, WordyBackend, tiny

from fewrec_prompt import tasks
from fewrec_prompt.comparison import compare
from fewrec_prompt.data.controls import Control, controlled
from fewrec_prompt.errors import TaskError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.published import beside
from fewrec_prompt.searching import search


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


def asked(out: Path, control: Control | None) -> tuple[Path, str]:
    """The run, and all that the model was asked."""
    backend = WordyBackend()
    run = evaluate(tiny(PLAIN), Options(control=control), out=out, backend=backend)
    said = [str(question.prompt) + "".join(question.continuations) for question in backend.asked]
    return run.folder, "\n".join(said)


def test_masked_titles_say_nothing_of_an_item_but_which_it_is(tmp_path: Path) -> None:
    items = tasks.load_catalogue(tiny())
    _, real = asked(tmp_path / "real", None)
    _, masked = asked(tmp_path / "masked", "masked-titles")
    assert any(item.title in real for item in items.values())
    assert not any(item.title in masked for item in items.values())
    queries = tasks.load_queries(tiny())
    masks = {item.id: item for query in controlled(queries, "masked-titles", 0).queries for item in query.candidates}
    assert len({item.title for item in masks.values()}) == len(masks)
    assert len({len(item.title) for item in masks.values()}) == 1
    assert not any(item.fields for item in masks.values())


def test_without_history_everybody_is_asked_about_nobody(tmp_path: Path) -> None:
    queries = controlled(tasks.load_queries(tiny()), "no-history", 0)
    assert not any(query.history for query in queries.queries)
    folder, _ = asked(tmp_path / "run", "no-history")
    assert (folder / "run.json").is_file()


@pytest.mark.parametrize("control", ["no-history", "masked-titles"])
def test_a_control_is_paired_with_the_real_run_and_is_a_run_of_its_own(tmp_path: Path, control: Control) -> None:
    real, _ = asked(tmp_path / "real", None)
    other, _ = asked(tmp_path / "other", control)
    (pair,) = compare(real, other).pairs
    one = pair.differences[0]
    assert one.difference.n_users == 6
    assert one.difference.low <= one.difference.value <= one.difference.high
    record = evaluate(tiny(PLAIN), Options(control=control), out=tmp_path / "again", backend=WordyBackend()).record
    assert record["control"] == control
    assert [row["name"] for row in record["rows"]] == ["complete"]
    assert beside(record) == ()


def test_what_is_no_control_is_refused() -> None:
    with pytest.raises(TaskError, match=r"unknown control 'masked-title'; .*Did you mean 'masked-titles'"):
        controlled(tasks.load_queries(tiny()), "masked-title", 0)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TaskError, match="candidates out, and any control"):
        search(tiny(), options=Options(control="no-history"), backend=WordyBackend())
