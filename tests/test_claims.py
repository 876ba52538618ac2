"""Results of one study stand together: what they are of is told by its content, and a damaged note is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pyarrow import parquet
from test_few_shot import backend
from typer.testing import CliRunner

from fewrec_prompt import Options, Recommender, evaluate, tasks, tune_search
from fewrec_prompt.cells import ZERO
from fewrec_prompt.cli import app
from fewrec_prompt.curve import curve
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, RunError, StorageError, TaskError
from fewrec_prompt.few_shot import default_row, recommender_of, tune_task
from fewrec_prompt.mixing import tune_mix
from fewrec_prompt.tasks import Task
from fewrec_prompt.tune_search import search
from fewrec_prompt.tuning import adapters, examples
from fewrec_prompt.tuning.mixed import MixRecommender
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Domain

ONCE = {"epochs": 1, "held_out": 0.0}
SOFT = Settings("soft-prompt", tokens=4, epochs=1)
LORA = Settings("lora", rank=2, epochs=1, learning_rate=1e-2)
Change: TypeAlias = Callable[[], object]


@pytest.fixture
def own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The tiny task as a person's own files, in their own working directory."""
    shipped = tasks.load_task("tiny")
    shutil.copy(shipped.path, tmp_path / "mine.toml")
    shutil.copytree(shipped.path.parent / "tiny", tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "scores"))
    monkeypatch.setattr(examples, "SMALLEST_SPLIT", 4)
    return Options(model=str(model)).applied(tasks.load_task("mine.toml"))


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(*words: str) -> Any:
    """A command as a person types it; its errors are messages, so whatever else it raises is raised."""
    done = CliRunner().invoke(app, [*words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# --- the same study --------------------------------------------------------------------------------------------------


def other_people() -> None:
    lines = Path("tiny/selection.csv").read_text(encoding="utf-8").splitlines()
    Path("tiny/selection.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")


def other_demos() -> None:
    replaced(Path("prompts/complete-demos.jinja"), "{{ demo.answer }}", "{{ demo.answer }}!")


def other_words() -> None:
    replaced(Path("verbalizers/title.toml"), 'length = "sum"', 'length = "mean"')


@pytest.mark.parametrize(
    ("change", "differs"), [(other_people, "people"), (other_demos, "demos"), (other_words, "asked")]
)
def test_a_study_of_other_people_words_or_examples_is_not_gone_on_with(
    change: Change, differs: str, own: Task, model: Path, tmp_path: Path
) -> None:
    """All of them by content: the names are the same."""
    home = tasks.load_task("tiny").path.parent.parent
    for kind, name in (("prompts", "complete-demos.jinja"), ("verbalizers", "title.toml")):
        (tmp_path / kind).mkdir()
        shutil.copy(home / kind / name, tmp_path / kind / name)

    def study(shots: list[int]) -> None:
        curve(own, [ZERO, "mix"], shots, 1, tmp_path / "out", backend=backend(model))

    study([2])
    change()
    with pytest.raises(RunError, match=f"holds another study, which differs in .*{differs}"):
        study([2, 3])


def test_a_study_from_before_all_of_this_was_written_goes_on_and_says_it_now(
    own: Task, model: Path, tmp_path: Path
) -> None:
    curve(own, [ZERO, "mix"], [2], 1, tmp_path / "out", backend=backend(model))
    note = tmp_path / "out" / "study.json"
    whole = json.loads(note.read_text())
    note.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("people", "asked")}))
    curve(own, [ZERO, "mix"], [3], 1, tmp_path / "out", backend=backend(model))
    assert json.loads(note.read_text()) == whole


def test_a_search_over_other_people_is_not_gone_on_with_and_their_winner_not_kept(
    own: Task, model: Path, tmp_path: Path
) -> None:
    search(own, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    other_people()
    with pytest.raises(RunError, match="holds another search, which differs in people"):
        search(own, SOFT, 8, tmp_path / "x", 2, backend=backend(model))


# --- what is damaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_note_of_a_study_is_said(text: str, own: Task, model: Path, tmp_path: Path) -> None:
    curve(own, [ZERO, "mix"], [2], 1, tmp_path / "out", backend=backend(model))
    (tmp_path / "out" / "study.json").write_text(text)
    with pytest.raises(RunError, match=r"study\.json: damaged .*remove"):
        curve(own, [ZERO, "mix"], [2], 1, tmp_path / "out", backend=backend(model))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}"])
def test_a_damaged_cell_is_said(text: str, own: Task, model: Path, tmp_path: Path) -> None:
    curve(own, [ZERO, "mix"], [2], 1, tmp_path / "out", backend=backend(model))
    (tmp_path / "out" / "cells" / "mix-2-0.json").write_text(text)
    with pytest.raises(RunError, match=r"mix-2-0\.json: damaged .*remove it to run the cell again"):
        curve(own, [ZERO, "mix"], [2], 1, tmp_path / "out", backend=backend(model))


@pytest.mark.parametrize("name", ["search.json", "trials.sqlite"])
def test_a_damaged_search_is_said(name: str, own: Task, model: Path, tmp_path: Path) -> None:
    search(own, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    (tmp_path / "x.search" / name).write_text("no such thing")
    with pytest.raises(RunError, match=rf"{name}: damaged"):
        search(own, SOFT, 8, tmp_path / "x", 2, backend=backend(model))


# --- before the work -------------------------------------------------------------------------------------------------


def test_somebody_who_is_tested_is_not_learnt_from_under_another_question(own: Task, tmp_path: Path) -> None:
    tested = tasks.load_queries(own).queries[0].user_id
    first = tasks.load_queries(own, "selection").queries[0].user_id
    replaced(Path("tiny/selection.csv"), f"{first},", f"{tested}#2,")
    with pytest.raises(TaskError, match=f"such as '{tested}#2'"):
        tune_mix(own, 4, tmp_path / "x")


@pytest.mark.parametrize(
    ("methods", "shots", "metrics", "says"),
    [
        ([ZERO], [2], ("nope",), "nope"),
        ([ZERO, "recency"], [2], ("nDCG@10",), "time"),
        ([ZERO, "mix"], [0, 2], ("nDCG@10",), "of 1 at least"),
        ([ZERO, "mix"], [-3], ("nDCG@10",), "of 1 at least"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_asked(
    methods: list[str],
    shots: list[int],
    metrics: tuple[str, ...],
    says: str,
    own: Task,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = backend(model)
    monkeypatch.setattr(type(base), "logprobs", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(FewrecError, match=says):
        curve(own, methods, shots, 1, tmp_path / "out", metrics=metrics, backend=base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["tiny/items.csv/x", "/proc/no/x"])
def test_a_folder_that_cannot_be_made_is_said_before_anybody_is_learnt_from(
    place: str, own: Task, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "load_queries", lambda *_, **__: pytest.fail("it was begun"))
    for learn in (
        lambda: tune_task(own, LORA, 4, Path(place), backend=backend(model)),
        lambda: tune_mix(own, 4, Path(place), backend=backend(model)),
    ):
        with pytest.raises(StorageError, match="cannot be written"):
            learn()


def test_a_share_that_holds_nobody_out_is_no_search(own: Task, tmp_path: Path) -> None:
    few = Settings("soft-prompt", tokens=4, epochs=1, held_out=0.01)
    with pytest.raises(DataError, match=r"of these 8 people, the share 0.01 held out, there are none"):
        search(own, few, 8, tmp_path / "x", 1)
    assert not (tmp_path / "x.search").exists()


def test_held_out_people_of_whom_nothing_can_be_told_fail_a_trial(
    own: Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewrec_prompt.tuning.lessons.Lesson.measured", lambda *_: float("nan"))
    with pytest.raises(RunError, match="every trial failed: nDCG@10 of the 2 held out cannot be told"):
        search(own, SOFT, 8, tmp_path / "x", 1, backend=backend(model))


# --- adapters, as one uses them --------------------------------------------------------------------------------------


def test_a_mix_and_the_adapter_that_it_weighs_stand_in_one_table(own: Task, model: Path, tmp_path: Path) -> None:
    """A mix keeps its rows with defaults filled in, and a copy of the adapter: they are the same rows."""
    tune_task(own, LORA, 3, tmp_path / "lora", backend=backend(model))
    tune_mix(own, 4, tmp_path / "mix", backend=backend(model))
    row = default_row(own).model_copy(update={"adapter": str(tmp_path / "lora")})
    tune_mix(own, 3, tmp_path / "both", rows=(row,), backend=backend(model))
    for folders in (("lora", "mix"), ("mix", "lora"), ("lora", "both"), ("both", "mix", "lora")):
        options = Options(adapters=tuple(tmp_path / name for name in folders))
        rows = options.applied(own).settings.rows
        assert len(rows) == 2, folders
        assert [bool(one.adapter) for one in rows] == [False, True]
        words = [word for name in folders for word in ("--adapter", name)]
        done = run("eval", "mine.toml", *words, "--model", str(model), "--precision", "fp32")
        assert done.exit_code == 0, done.output


def test_an_adapter_brings_how_it_asks(own: Task, model: Path, tmp_path: Path) -> None:
    tune_task(own, LORA, 4, tmp_path / "lora", backend=backend(model))
    found = Recommender.load(str(model), adapter=tmp_path / "lora", precision="fp32", device="cpu")
    meant = recommender_of(own, default_row(own), backend(model)).adapted(tmp_path / "lora")
    query = tasks.load_queries(own).queries[0]
    assert found.domain == Domain("film", "films", "watch")
    assert (found.scores(found.answers(query)) == meant.scores(meant.answers(query))).all()
    with pytest.raises(AdapterError, match="calibration was"):
        Recommender.load(str(model), prompt="complete", adapter=tmp_path / "lora", precision="fp32", device="cpu")
    with pytest.raises(AdapterError, match="domain was"):
        Recommender.load(str(model), domain=Domain("book"), adapter=tmp_path / "lora", precision="fp32", device="cpu")


def test_how_what_was_learnt_is_used_is_said_with_its_model(own: Task, model: Path) -> None:
    asked = ["--method", "lora", "--shots", "4", "--epochs", "1", "--model", str(model), "--precision", "fp32"]
    done = run("tune", "mine.toml", *asked, "--out", "x")
    use = next(line for line in done.output.splitlines() if line.startswith("use it"))
    assert use.split(maxsplit=2)[2] == f"fewrec eval mine.toml --adapter x --model {model} --precision fp32"
    assert run(*use.split()[3:]).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--calibrate", "foo"], "no such calibration"), (["--alpha", "0.3", "--calibrate", "none"], "--alpha is the")],
)
def test_how_a_prompt_is_read_is_checked(flags: list[str], says: str, own: Task) -> None:
    with pytest.raises(FewrecError, match=says):
        run("tune", own.path.name, "--prompt", "complete", *flags, "--method", "mix", "--shots", "4", "--out", "x")


def test_of_a_winner_only_the_same_people_are_taken_for_it(own: Task, model: Path, tmp_path: Path) -> None:
    """What lies at `out` may be of other data than the trials."""
    search(own, SOFT, 8, tmp_path / "x", 1, backend=backend(model))
    about = adapters.described(tmp_path / "x")
    assert tune_search._holds(tmp_path / "x", dict(about["tasks"]["mine"]), own, Settings(**about["settings"]))
    other = dict(about["tasks"]["mine"]) | {"data": {"selection.csv": "0" * 64}}
    assert not tune_search._holds(tmp_path / "x", other, own, Settings(**about["settings"]))


def test_a_mix_is_loaded_with_the_rows_and_adapters_that_it_weighs(own: Task, model: Path, tmp_path: Path) -> None:
    tune_task(own, LORA, 3, tmp_path / "lora", backend=backend(model))
    row = default_row(own).model_copy(update={"adapter": str(tmp_path / "lora")})
    tune_mix(own, 3, tmp_path / "both", rows=(row, default_row(own)), popularity=True, backend=backend(model))
    how: dict[str, Any] = {"precision": "fp32", "device": "cpu"}
    with pytest.raises(AdapterError, match="weighs popularity"):
        MixRecommender.load(tmp_path / "both", str(model), **how)
    with pytest.raises(AdapterError, match="holds no mix"):
        MixRecommender.load(tmp_path / "lora", str(model), **how)
    with pytest.raises(AdapterError, match=r"MixRecommender\.load"):
        Recommender.load(str(model), adapter=tmp_path / "both", **how)
    queries = tasks.load_queries(own)
    found = MixRecommender.load(tmp_path / "both", str(model), popularity=queries.popularity, **how)
    run = evaluate(own, Options(adapters=(tmp_path / "both",)), out=tmp_path / "run", backend=backend(model))
    told = parquet.read_table(run.folder / "rankings.parquet").to_pylist()
    for query in queries.queries:
        own_rows = [one for one in told if one["row"].endswith("mix both") and one["user_id"] == query.user_id]
        best = max(own_rows, key=lambda one: one["score"])
        assert found.rank(query).item_ids[0] == best["item_id"]
        assert found.rank(query).scores[0] == pytest.approx(best["score"])


def test_a_study_reads_the_people_it_learns_from_once(
    own: Task, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = tasks.load_queries
    monkeypatch.setattr(
        tasks, "load_queries", lambda task, split="test", *a, **k: read.append(split) or real(task, split, *a, **k)
    )
    curve(own, [ZERO, "mix", "demos"], [2, 3], 2, tmp_path / "out", backend=backend(model))
    assert read.count("selection") == 1
