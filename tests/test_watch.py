"""Saves and what follows: the files a task is made of, when one of them has changed, and the command that waits."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _commands import start
from _tiny import save_model
from test_evaluation import record_in
from test_kept_answers import Named

from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.errors import TaskError, TemplateError
from fewrec_prompt.evaluation import Options
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task, load_task
from fewrec_prompt.watch import KeptModel, Watch, files_of

ROOT = Path(__file__).resolve().parent.parent
FRONT = '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "mine"\n#}\n'
LIST = "{% for seen in history %}\n- {{ seen.title }}\n{% endfor %}\n-\n"
WORDS = 'kind = "complete"\ndescription = "d"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a task of its own over made-up films, a template that includes another, and a verbalizer."""
    monkeypatch.setenv("FEWREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "eval" / "tiny", tmp_path / "eval" / "tiny")
    data = (ROOT / "eval" / "tiny.toml").read_text(encoding="utf-8")
    (tmp_path / "eval" / "films.toml").write_text(data + '\n[[rows]]\nprompt = "mine"\n', encoding="utf-8")
    for folder in ("prompts", "verbalizers"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prompts" / "mine.jinja").write_text(FRONT + "Films:\n{% include 'list.jinja' %}")
    (tmp_path / "prompts" / "list.jinja").write_text(LIST)
    (tmp_path / "prompts" / "other.jinja").write_text(FRONT + LIST)
    (tmp_path / "verbalizers" / "mine.toml").write_text(WORDS)
    return tmp_path


class Loading:
    """What loads a model, and how often it was asked to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.backend = Named()

    def __call__(self, task: Task, _numerics: Numerics, _say: Any) -> Named:
        self.asked.append(task.settings.model)
        return self.backend


def watching(loading: Loading | None = None, task: str = "films", options: Options = Options()) -> Watch:  # noqa: B008
    return Watch(task, lambda _: options, load=KeptModel(loading or Loading()))


def acting(*acts: Callable[[], object]) -> Callable[[float], None]:
    """A pause in which the next of these things happens; after the last nothing does, for a while, then it is over."""
    todo, idle = iter(acts), 0

    def pause(_seconds: float) -> None:
        nonlocal idle
        act = next(todo, None)
        if act is not None:
            act()
            return
        idle += 1
        if idle > 5:
            raise TimeoutError("nothing was noticed")

    return pause


def nothing() -> None:
    """An act of a pause."""


def edit(path: str, before: str, after: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert before in text
    Path(path).write_text(text.replace(before, after, 1), encoding="utf-8")


def by_rename(path: str, text: str) -> None:
    Path(f"{path}~").write_text(text)
    Path(f"{path}~").replace(path)


# --- which files -------------------------------------------------------------------------------------------------


def names(files: set[Path]) -> set[str]:
    return {str(path) for path in files if not path.is_absolute()}


def test_a_task_is_made_of_itself_its_templates_with_what_they_include_and_its_verbalizers(here: Path) -> None:
    own = {"eval/films.toml", "prompts/mine.jinja", "prompts/list.jinja", "verbalizers/mine.toml"}
    assert names(files_of("films", lambda _: Options())) == own


def test_a_file_that_would_hide_a_shipped_one_counts_before_it_is_there(here: Path) -> None:
    rows = (RowSettings(prompt="complete"),)
    found = files_of("films", lambda _: Options(rows=rows))
    assert names(found) == {"eval/films.toml", "prompts/complete.jinja", "verbalizers/title.toml"}
    assert ROOT / "prompts" / "complete.jinja" in found


def test_rows_may_depend_on_what_the_task_says(here: Path) -> None:
    def choose(task: Task) -> Options:
        return Options(rows=tuple(RowSettings(prompt="other", verbalizer=None) for _ in task.settings.rows))

    assert "prompts/other.jinja" in names(files_of("films", choose))


def test_of_a_template_that_cannot_be_read_all_beside_it_count(here: Path) -> None:
    (here / "prompts" / "list.jinja").write_text("{% for %}")
    found = names(files_of("films", lambda _: Options()))
    assert {"prompts/mine.jinja", "prompts/list.jinja", "prompts/other.jinja"} <= found


def test_of_a_task_that_cannot_be_read_the_file_itself_counts(here: Path) -> None:
    (here / "eval" / "films.toml").write_text("[")
    assert names(files_of("films", lambda _: Options())) == {"eval/films.toml"}


# --- when --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("prompts/mine.jinja", "Films", "Movies"),
        ("prompts/list.jinja", "- {{", "* {{"),
        ("verbalizers/mine.toml", '"d"', '"another"'),
        ("eval/films.toml", "Made-up", "Invented"),
    ],
)
def test_a_save_of_any_of_them_is_noticed(here: Path, path: str, before: str, after: str) -> None:
    watch = watching()
    watch.run()
    assert watch.wait(acting(nothing, nothing, lambda: edit(path, before, after))) == (Path(path),)


def test_editors_that_write_a_new_file_and_rename_it_are_noticed(here: Path) -> None:
    watch = watching()
    watch.run()
    assert watch.wait(acting(lambda: by_rename("prompts/list.jinja", LIST + "x"))) == (Path("prompts/list.jinja"),)


def test_a_file_in_the_midst_of_being_saved_is_waited_for(here: Path) -> None:
    """Cut, gone, half written, written: one save."""
    path, seen = Path("prompts/list.jinja"), []
    acts = (lambda: path.write_text(""), path.unlink, lambda: path.write_text(LIST[:9]), lambda: path.write_text("x"))
    watch = watching()
    watch.run()
    saved = watch.wait(acting(*(lambda act=act: (seen.append(act), act()) for act in acts)))
    assert saved == (path,)
    assert len(seen) == len(acts)


def test_a_save_that_changes_nothing_and_files_of_others_are_no_saves(here: Path) -> None:
    watch = watching()
    watch.run()
    acts = (
        lambda: by_rename("prompts/list.jinja", LIST),
        lambda: os.utime("prompts/mine.jinja"),
        lambda: Path("prompts/other.jinja").write_text("x"),
        lambda: (Path("prompts/list.jinja").unlink(), Path("prompts/list.jinja").write_text(LIST)),
    )
    with pytest.raises(TimeoutError):
        watch.wait(acting(*acts))


def test_a_save_while_users_are_scored_is_a_save(here: Path) -> None:
    watch = watching()
    watch.run(lambda *_: Path("prompts/list.jinja").write_text(LIST + "x"))
    assert watch.wait(acting()) == (Path("prompts/list.jinja"),)


# --- what follows ------------------------------------------------------------------------------------------------


def test_each_run_has_a_folder_and_the_model_is_loaded_once(here: Path) -> None:
    loading = Loading()
    watch = watching(loading)
    first = watch.run()
    edit("prompts/list.jinja", "- {{", "* {{")
    second = watch.run()
    edit("prompts/mine.jinja", "Films", "{# a note #}Films")
    third = watch.run()
    assert [str(run.folder) for run in (first, second, third)] == ["runs/films-1", "runs/films-2", "runs/films-3"]
    assert [run.record["units"]["scored"] for run in (first, second, third)] == [6, 6, 0]
    assert loading.asked == ["smollm2-135m"]


def test_another_model_in_the_task_is_loaded(here: Path) -> None:
    loading = Loading()
    watch = watching(loading)
    watch.run()
    edit("eval/films.toml", "[data]", 'model = "another"\n[data]')
    watch.run()
    assert loading.asked == ["smollm2-135m", "another"]


def test_a_model_is_kept_as_long_as_the_same_numbers_are_asked_for(here: Path) -> None:
    loading = Loading()
    kept = KeptModel(loading)
    for numerics in (AUTO, AUTO, Numerics("fp32"), AUTO):
        kept(load_task("films"), numerics, print)
    assert len(loading.asked) == 3


def test_after_an_error_the_next_save_is_waited_for(here: Path) -> None:
    watch = watching()
    watch.run()
    edit("prompts/list.jinja", "history", "histroy")
    with pytest.raises(TemplateError, match=r"list\.jinja:1: unknown variable 'histroy'"):
        watch.run()
    saved = watch.wait(acting(lambda: edit("prompts/list.jinja", "histroy", "history")))
    assert saved == (Path("prompts/list.jinja"),)
    assert watch.run().folder == Path("runs/films-1")


def test_a_task_without_its_data_is_an_error_that_a_save_ends(here: Path) -> None:
    watch = watching()
    edit("eval/films.toml", "tiny/items.csv", "tiny/nothing.csv")
    with pytest.raises(TaskError):
        watch.run()
    assert watch.wait(acting(lambda: edit("eval/films.toml", "nothing", "items"))) == (Path("eval/films.toml"),)
    assert watch.run().record["n_users"] == 6


# --- the command -------------------------------------------------------------------------------------------------


class Child:
    """`fewrec eval … --watch` in a process of its own; `until` returns what it says up to a line."""

    def __init__(self, *words: str) -> None:
        self.process = start("eval", *words, "--watch", stderr=subprocess.STDOUT)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def until(self, wanted: str) -> str:
        said = ""
        while wanted not in said:
            try:
                said += self._lines.get(timeout=120)
            except queue.Empty:
                raise AssertionError(f"no {wanted!r} in:\n{said}") from None
        return said

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self._reader.join()
        return code, "".join(self._lines.queue)


WAITING = "waiting for a template, verbalizer or the task to be saved"


def test_the_command_shows_a_new_table_for_every_save_until_ctrl_c(here: Path) -> None:
    save_model(here / "model")
    child = Child("films", "--model", "model", "--precision", "fp32", "--metric", "MRR", "--metric", "nDCG@10")
    try:
        said = child.until(WAITING)
        assert "units   6 scored, 0 known" in said
        assert "difference" not in said

        edit("prompts/mine.jinja", "Films", "Movies")
        said = child.until("difference to runs/films-1") + child.until(WAITING)
        assert "saved: prompts/mine.jinja" in said
        assert "units   6 scored, 0 known" in said
        assert "precision fp32" not in said  # the model is there
        assert "run     runs/films-2/run.json" in said
        assert "95 %" in said

        edit("prompts/mine.jinja", "Movies", "{# a note #}Movies")
        said = child.until(WAITING)
        assert "units   0 scored, 6 known" in said
        assert "+0.0" in said
        assert "the same for every user" in said

        edit("prompts/list.jinja", "history", "histroy")
        assert "list.jinja:1: unknown variable 'histroy'" in child.until(WAITING)

        by_rename("prompts/list.jinja", LIST)
        assert "nothing that decides the result has changed" in child.until(WAITING)

        edit("eval/films.toml", "[data]", "[data]\nusers = 5")
        assert "no difference to the last run: runs/films-3 and runs/films-4 cannot be compared" in child.until(WAITING)
        code, said = child.end()
        assert code == 130
        assert "stopped watching" in said
        assert "Traceback" not in said
    finally:
        child.process.kill()
    assert record_in(here / "runs" / "films-4")["n_users"] == 5


def test_watching_takes_no_folder(here: Path) -> None:
    process = start("eval", "films", "--watch", "--out", "a")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--watch makes a folder for every run" in said
    assert not (here / "a").exists()
