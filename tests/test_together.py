"""Several tasks in one training: how they are drawn, what is learnt of each, and what the adapter holds for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_adapters import resealed
from test_few_shot import backend
from test_tuning import examples, recommender, settings

from fewrec_prompt import few_shot, tasks
from fewrec_prompt.backends import Backend
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, TaskError
from fewrec_prompt.evaluation import Options, evaluate, row_of
from fewrec_prompt.few_shot import tune_task
from fewrec_prompt.recommender import choose
from fewrec_prompt.shots import check_apart, shots_of, shots_together
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune, tune_together
from fewrec_prompt.tuning.mixture import Mixture, shares
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.passes import OverAnswers
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Domain

LORA = Settings("lora", rank=2, epochs=2, learning_rate=1e-2)
BOOKS = Domain("book", "books", "read")


# --- who is drawn ----------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    """T = 1 is proportional, T = 2 by square roots, a large T equal."""
    assert shares((90, 10), 1.0) == pytest.approx([0.9, 0.1])
    assert shares((90, 10), 2.0) == pytest.approx([0.75, 0.25])
    assert shares((90, 10), 1e6) == pytest.approx([0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1e6])
def test_draws_are_in_proportion_to_the_formula(temperature: float) -> None:
    sizes = (64, 16, 7)
    mixture = Mixture(sizes, temperature, 0)
    expected = sum(sizes) * shares(sizes, temperature)
    counts = np.array([mixture.counts(epoch) for epoch in range(1, 1001)])
    assert (counts.sum(axis=1) == sum(sizes)).all()
    assert (np.abs(counts - expected) < 1).all(), "a pass has a task's share, rounded up or down"
    assert np.abs(counts.mean(axis=0) - expected).max() < 0.05
    drawn = Counter(draw.task for draw in mixture.draws(3))
    assert [drawn[task] for task in range(3)] == counts[2].tolist()


def test_nobody_is_drawn_again_before_all_others_of_the_task_were() -> None:
    mixture = Mixture((30, 4), 3.0, 1)
    for task, size in enumerate(mixture.sizes):
        places = [draw.place for epoch in range(1, 8) for draw in mixture.draws(epoch) if draw.task == task]
        assert len(places) > size
        for start in range(0, len(places) - size, size):
            assert sorted(places[start : start + size]) == list(range(size))


def test_at_temperature_one_a_pass_is_everybody_once() -> None:
    draws = Mixture((5, 3), 1.0, 0).draws(2)
    assert sorted((draw.task, draw.place) for draw in draws) == [(0, n) for n in range(5)] + [(1, n) for n in range(3)]
    assert {draw.turn for draw in draws} == {2}


# --- what is learnt --------------------------------------------------------------------------------------------------


def lessons(n_held: int = 0) -> list[Lesson]:
    """Films, and over the same model books, whose scores are means over tokens and so of another scale."""
    films = recommender()
    _, reader, _ = choose("films-complete", None, "none", None, "mean")
    books = replace(films, domain=BOOKS, verbalizer=reader)
    people = tuple(examples(6))
    held = people[6 - n_held :]
    return [
        Lesson(films, people[: 6 - n_held], held, name="films"),
        Lesson(books, people[:3], held, name="books"),
    ]


def weights(tuned: Tuned) -> torch.Tensor:
    return torch.cat([values.flatten() for _, values in sorted(tuned.learner.export().items())])


def test_the_loss_of_each_task_falls() -> None:
    tuned = tune_together(lessons(), settings("lora", epochs=8, targets="all", learning_rate=3e-2, temperature=2.0))
    first, last = tuned.passes[0], tuned.passes[-1]
    assert all(last.losses[name] < first.losses[name] for name in ("films", "books"))
    assert tuned.learned
    assert tuned.not_learned == []
    by_hand = np.dot(list(last.losses.values()), shares((6, 3), 2.0))
    assert last.loss == pytest.approx(by_hand)


def test_a_list_of_one_is_one_task() -> None:
    one = lessons()[0]
    alone = tune(one.recommender, one.examples, settings("lora", epochs=2))
    assert torch.equal(weights(alone), weights(tune_together([lessons()[0]], settings("lora", epochs=2))))


def test_each_task_has_a_scale_of_its_own() -> None:
    """Each begins at the loss that it has alone, though the one's scores are sums and the other's means."""
    films, books = lessons()
    scales = [one.suited(one.recommender, one.examples)[0] for one in (films, books)]
    assert abs(scales[0] - scales[1]) > 0.5
    alone = [tune_together([one], settings("lora", epochs=1)).passes[0].loss for one in (films, books)]
    both = tune_together([films, books], settings("lora", epochs=1))
    assert list(both.passes[0].losses.values()) == pytest.approx(alone)


def test_the_same_seed_gives_the_same_bits_and_a_temperature_others() -> None:
    how = settings("lora", epochs=2, temperature=3.0, dropout=0.1)
    one, two = (tune_together(lessons(), how) for _ in range(2))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(tune_together(lessons(), replace(how, temperature=1.0))))


def test_an_interrupted_training_of_two_tasks_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    how = settings("lora", epochs=4, temperature=3.0, dropout=0.1, patience=9)

    class StoppedError(Exception):
        pass

    def stop(epoch: int, _value: float) -> None:
        if epoch == 2:
            raise StoppedError

    whole = tune_together(lessons(2), how, folder=tmp_path / "whole")
    with pytest.raises(StoppedError):
        tune_together(lessons(2), how, folder=tmp_path / "cut", watch=stop)
    resumed = tune_together(lessons(2), how, folder=tmp_path / "cut")
    assert torch.equal(weights(whole), weights(resumed))
    assert [(one.losses, one.metrics) for one in whole.passes] == [(one.losses, one.metrics) for one in resumed.passes]


def test_the_best_pass_is_that_of_the_mean_over_tasks() -> None:
    films, books = lessons(2)
    how = settings("lora", epochs=5, patience=9)
    tuned = tune_together([films, books], how)
    means = [float(np.mean([*done.metrics.values()])) for done in tuned.passes]
    assert [done.metric for done in tuned.passes] == means
    assert tuned.best_epoch == means.index(max(means))
    mixed = tune_together([films, replace(books, metric="MRR")], replace(how, epochs=1))
    assert mixed.passes[0].metrics["films"] == tuned.passes[0].metrics["films"]
    assert mixed.passes[0].metrics["books"] == replace(books, metric="MRR").measured(books.recommender)
    partly = tune_together([films, replace(books, held_out=())], how)
    assert all(set(done.metrics) == {"films"} for done in partly.passes), "who holds nobody out is not in the mean"


def test_a_task_that_did_not_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is made to look as if it had been low before."""
    real = Lesson.suited

    def suited(lesson: Lesson, *people: object) -> tuple[float, float]:
        scale, _ = real(lesson, *people)  # type: ignore[arg-type]
        return scale, -1.0 if lesson.name == "books" else 10.0

    monkeypatch.setattr(Lesson, "suited", suited)
    said: list[str] = []
    tuned = tune_together(lessons(), settings("lora", epochs=1), say=said.append)
    assert tuned.learned
    assert tuned.not_learned == ["books"]
    assert said[-1] == "lora did not learn books, but the others"


def test_answers_of_another_task_are_no_negatives() -> None:
    """In-batch negatives of a step that both tasks share are those of the own task."""
    asked: list[set[str]] = []
    other = [
        replace(
            one, query=replace(one.query, candidates=tuple(replace(i, id=f"b{i.id}") for i in one.query.candidates))
        )
        for one in examples(3)
    ]
    films, books = lessons()
    pair = [replace(films, negatives="in-batch"), replace(books, negatives="in-batch", examples=tuple(other))]
    how = settings("lora", epochs=1, batch=9)
    with pytest.MonkeyPatch.context() as patch:
        real = OverAnswers.losses
        patch.setattr(
            OverAnswers,
            "losses",
            lambda self, asker, people, scale: (
                asked.extend({i.id[0] for i in one.query.candidates} for one in people)
                or real(self, asker, people, scale)
            ),
        )
        tune_together(pair, how)
    assert len(asked) == 9
    assert all(len(kinds) == 1 for kinds in asked)


# --- from tasks to an adapter ----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tasks about books and songs; gus and ann are tested and learnt from the other way round
    than in the films."""
    monkeypatch.chdir(tmp_path)
    shipped = tasks.load_task("tiny").path.parent / "tiny"
    names = {"books": ("book", "books", "read"), "songs": ("song", "songs", "play")}
    for name, (singular, plural, verb) in names.items():
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        text = (shipped / "selection.csv").read_text()
        (folder / "items.csv").write_text((shipped / "items.csv").read_text())
        (folder / "selection.csv").write_text(text.replace("gus,", "ann,").replace("hal,", "pia,"))
        (folder / "queries.csv").write_text((shipped / "queries.csv").read_text().replace("ann,", "gus,"))
        (tmp_path / "eval" / f"{name}.toml").write_text(
            f'[data]\nitems = "{name}/items.csv"\nqueries = "{name}/queries.csv"\n'
            f'selection = "{name}/selection.csv"\n'
            f'domain = {{ singular = "{singular}", plural = "{plural}", verb = "{verb}" }}\n'
        )
    return tmp_path


def load(model: Path, *names: str) -> list[tasks.Task]:
    return [Options(model=str(model)).applied(tasks.load_task(name)) for name in names]


def train(model: Path, out: Path, *names: str, **how: object) -> Tuned:
    first, *also = load(model, *names)
    how = {"backend": backend(model)} | how
    return tune_task(first, LORA, how.pop("shots", 3), out, also=also, **how)  # type: ignore[arg-type]


def test_who_is_tested_in_any_task_is_learnt_from_in_none(model: Path, here: Path) -> None:
    films, books = load(model, "tiny", "books")
    alone = {one.query.person for one in shots_of(films, 8).learnt}
    assert "gus" in alone
    one, two = shots_together([films, books], [7, 7])
    learnt = {example.query.person for shots in (one, two) for example in shots.learnt}
    assert not learnt & {"gus", "ann"}
    for task in (films, books):
        for shots in (one, two):
            check_apart(shots, tasks.load_queries(task))


def test_who_is_held_out_of_one_task_is_learnt_from_in_none(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewrec_prompt.tuning.examples.SMALLEST_SPLIT", 4)
    found = shots_together(load(model, "books", "songs"), [7, 4], held_out=0.25)
    held = {one.query.person for shots in found for one in shots.held_out}
    assert held
    assert not held & {one.query.person for shots in found for one in shots.learnt}


def test_an_adapter_of_two_tasks_stands_for_both_and_for_no_third(model: Path, here: Path) -> None:
    out = here / "x"
    tuned = train(model, out, "tiny", "books", shots=[3, 2])
    about = adapters.read(out).about
    assert {name: one["shots"] for name, one in about["tasks"].items()} == {"tiny": 3, "books": 2}
    assert [len(lesson.examples) for lesson in tuned.lessons] == [3, 2]
    for name in ("tiny", "books"):
        (task,) = load(model, name)
        run = evaluate(task, Options(adapters=(out,)), out=here / f"run-{name}", backend=backend(model))
        assert [row["name"] for row in run.rows][-1].endswith("+ x")
        assert run.record["adapters"][run.rows[-1]["name"]]["forced"] == []
    (third,) = load(model, "songs")
    with pytest.raises(AdapterError, match=r"\(of tiny, books nearest to tiny\): domain was .*film"):
        evaluate(third, Options(adapters=(out,)), out=here / "no", backend=backend(model))
    run = evaluate(third, Options(adapters=(out,), force=True), out=here / "forced", backend=backend(model))
    (forced,) = run.record["adapters"][run.rows[-1]["name"]]["forced"]
    assert forced.startswith("domain was")


def test_saved_questions_are_checked_for_the_task_that_is_asked(model: Path, here: Path) -> None:
    train(model, here / "x", "tiny", "books")

    def change(note: dict[str, dict[str, list[dict[str, list[float]]]]]) -> None:
        note["probes"]["books"][0]["scores"][0] += 1.0

    resealed(here / "x", change)
    films, books = load(model, "tiny", "books")
    one: Backend = backend(model)
    row = row_of(here / "x")
    few_shot.recommender_of(films, row, one).adapted(here / "x")
    with pytest.raises(AdapterError, match="saved questions now get other scores"):
        few_shot.recommender_of(books, row, one).adapted(here / "x")


def test_a_folder_of_one_task_as_it_was_written_before_is_read(model: Path, here: Path) -> None:
    train(model, here / "x", "tiny")
    now = adapters.read(here / "x")

    path = here / "x" / adapters.NOTE
    note = json.loads(path.read_text())
    del note["seal"]
    own = note["about"].pop("tasks")["tiny"]
    note["about"] |= {"task": "tiny"} | {key: own[key] for key in adapters.OF_A_TASK}
    note |= {"schema": 1, "bound": note["bound"]["tiny"], "probes": note["probes"]["tiny"]}
    path.write_text(json.dumps(note | {"seal": adapters._seal(note)}))
    then = adapters.read(here / "x")
    assert then.bound == now.bound
    assert then.probes == now.probes
    assert then.about["tasks"]["tiny"].items() <= now.about["tasks"]["tiny"].items()
    (films,) = load(model, "tiny")
    run = evaluate(films, Options(adapters=(here / "x",)), out=here / "run", backend=backend(model))
    assert run.rows[-1]["name"].endswith("+ x")


def test_a_second_round_of_two_tasks_goes_on_with_the_people_of_each(model: Path, here: Path) -> None:
    train(model, here / "first", "tiny", "books")
    earlier = few_shot.Round(here / "first", replay=1.0)
    second = train(model, here / "second", "books", "tiny", earlier=earlier)
    assert [(lesson.name, len(lesson.earlier)) for lesson in second.lessons] == [("books", 3), ("tiny", 3)]
    assert [len(lesson.examples) for lesson in second.lessons] == [6, 6]
    assert second.earlier_loss is not None
    with pytest.raises(AdapterError, match="was learnt from 'books', too; name that task"):
        train(model, here / "third", "tiny", earlier=earlier)
    with pytest.raises(AdapterError, match="nearest to"):
        train(model, here / "third", "tiny", "books", "songs", earlier=earlier)


def test_what_cannot_be_learnt_together_is_said(model: Path, here: Path) -> None:
    with pytest.raises(TaskError, match="'tiny' is named twice"):
        train(model, here / "x", "tiny", "books", "tiny")
    with pytest.raises(DataError, match="books: 8 shots were asked, but there are 7 people"):
        train(model, here / "x", "tiny", "books", shots=[3, 8])
    with pytest.raises(TaskError, match="2 numbers of shots for 3 tasks"):
        train(model, here / "x", "tiny", "books", "songs", shots=[3, 4])
    films, books = load(model, "tiny", "books")
    other = Options(model="other").applied(books)
    with pytest.raises(TaskError, match=r"tiny, books name the models .*other"):
        tune_task(films, LORA, 3, here / "x", also=[other])
    with pytest.raises(FewrecError, match=r"temperature is 0\.5"):
        Settings("lora", temperature=0.5)
    assert not (here / "x").exists()


def test_the_command_takes_several_tasks(model: Path, here: Path) -> None:
    from typer.testing import CliRunner

    run, plain = CliRunner().invoke, ["--model", str(model), "--precision", "fp32"]
    flags = ["--method", "lora", "--shots", "3", "--shots", "2", "--temperature", "2", "--epochs", "1", "--out", "a/x"]
    done = run(app, ["tune", "tiny", "books", *flags, *plain])
    assert done.exit_code == 0, done.output
    assert "use it   fewrec eval books --adapter a/x" in done.output
    assert "loss before" in done.output
    listed = run(app, ["adapters", "list", "a"])
    assert "tiny, books" in listed.output
    assert "3 + 2" in listed.output
    refused = run(app, ["tune", "tiny", "books", "--search", "2", "--out", "a/y", *plain])
    assert refused.exit_code != 0
    assert "--search tries settings on the shots of one task, and tests the best; leave other tasks out" in str(
        refused.exception
    )
