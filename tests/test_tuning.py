"""What is learnt: every method on every family it is offered for, on random models small enough for a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, FILMS, TITLES, model, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.errors import DataError, FewrecError, NumericError, RunError, StorageError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import lessons, loop
from fewrec_prompt.tuning.examples import Example, drawn, parted
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.losses import LOSSES
from fewrec_prompt.tuning.methods import Learner
from fewrec_prompt.tuning.passes import graded
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

METHODS = ("soft-prompt", "p-tuning", "prefix", "lora", "adalora", "full")
RATES = {"soft-prompt": 3e-2, "p-tuning": 1e-2, "prefix": 3e-2, "lora": 1e-2, "adalora": 5e-2, "full": 1e-2}


def backend(family: str = "llama", **how: Any) -> CausalBackend:
    words = tokenizer()
    mode = NumericMode("fp32", "made for a test", "cpu", **how)
    return CausalBackend(model(family, "sdpa", n_words=len(words)), words, mode)


def recommender(family: str = "llama", prompt: str = "films-complete", calibrate: str = "none") -> Recommender:
    template, reader, calibration = choose(prompt, None, calibrate, None, None)
    return Recommender(template, reader, backend(family), FILMS, calibration)


def examples(n: int = 6) -> list[Example]:
    """People who saw two films and took a third: which one follows from the first of the two."""
    items = [Item(f"i{place}", title) for place, title in enumerate(TITLES)]
    made = []
    for at in range(n):
        seen = (items[at % 4], items[(at + 1) % 4])
        query = Query(f"u{at}", tuple(map(Interaction, seen)), (items[4], items[5], items[6]))
        made.append(Example(query, (at % 4 % 3,)))
    return made


def settings(method: str, **changes: object) -> Settings:
    plain = {"tokens": 4, "rank": 4, "epochs": 6, "batch": 2, "learning_rate": RATES[method]}
    return Settings.shared(method, plain | changes)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_method_falls_on_every_family(method: str, family: str) -> None:
    low_rank = {"targets": "all", "learning_rate": 3e-2} if method in ("lora", "adalora") else {}
    tuned = tune(recommender(family), examples(), settings(method, epochs=8, **low_rank))
    first, last = tuned.passes[1].loss, tuned.passes[-1].loss
    assert last < first


@pytest.mark.parametrize("method", METHODS)
def test_the_recommender_that_was_tuned_stays_as_it_was(method: str) -> None:
    start = recommender()
    before = start.scores(start.answers(examples()[0].query))
    tuned = tune(start, examples(), settings(method))
    after = tuned.recommender.scores(tuned.recommender.answers(examples()[0].query))
    assert not np.allclose(before, after)
    if method != "full":  # which changes the model itself
        assert np.array_equal(before, start.scores(start.answers(examples()[0].query)))


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_ends_as_if_it_had_not_been(method: str, tmp_path: Path) -> None:
    """With dropout, too, where the method has it."""
    asked = settings(method, epochs=4, dropout=0.2 if method in ("lora", "adalora") else 0.0)
    whole = tune(recommender(), examples(), asked, folder=tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(epoch: int, _value: float) -> None:
        if epoch == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        tune(recommender(), examples(), asked, folder=tmp_path / "cut", watch=stop)
    resumed = tune(recommender(), examples(), asked, folder=tmp_path / "cut")
    for name, weights in whole.learner.export().items():
        assert torch.equal(weights, resumed.learner.export()[name]), name
    assert [done.loss for done in whole.passes] == [done.loss for done in resumed.passes]


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_an_interrupted_training_goes_on_in_a_model_that_has_other_adapters(method: str, tmp_path: Path) -> None:
    """Their names in the model depend on how many were there before, and a checkpoint's do not."""
    whole = tune(recommender(), examples(), settings(method, epochs=4))

    def stop(epoch: int, _value: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    start = recommender()
    with pytest.raises(KeyboardInterrupt):
        tune(start, examples(), settings(method, epochs=4), folder=tmp_path, watch=stop)
    if method == "adalora":  # of which a model holds one
        start = recommender()
    resumed = tune(start, examples(), settings(method, epochs=4), folder=tmp_path)
    assert [done.loss for done in whole.passes] == [done.loss for done in resumed.passes]


def test_a_disk_that_is_full_at_any_write_loses_nothing_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same model, and whichever write it is, the training goes on to the same end."""
    asked = settings("lora", epochs=2)
    whole = tune(recommender(), examples(), asked, folder=tmp_path / "whole")
    start, n_failed = recommender(), 0
    for n in count(1):
        folder, writes = tmp_path / str(n), count(1)

        def full(do: Callable[..., Any], n: int = n, writes: Iterator[int] = writes) -> Callable[..., Any]:
            def write(*given: Any) -> Any:
                if next(writes) == n:
                    raise OSError(28, "No space left on device")
                return do(*given)

            return write

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full(os.fsync))
            patch.setattr(Path, "replace", full(Path.replace))
            try:
                tune(start, examples(), asked, folder=folder)
            except StorageError:
                n_failed += 1
            else:
                break
        resumed = tune(start, examples(), asked, folder=folder)
        assert [done.loss for done in whole.passes] == [done.loss for done in resumed.passes], n
        for name, weights in whole.learner.export().items():
            assert torch.equal(weights, resumed.learner.export()[name]), (n, name)
    assert n_failed >= 3 * 2  # three states are written, each flushed and then put in its place


@pytest.mark.parametrize("change", ["calibration", "domain", "history", "title", "user", "held out", "precision"])
def test_a_training_that_asked_something_else_is_not_gone_on_with(change: str, tmp_path: Path) -> None:
    tune(recommender(), examples(), settings("lora", epochs=1), folder=tmp_path)
    start, people, held_out = recommender(), examples(), ()
    if change == "calibration":
        start = recommender(calibrate="pmi")
    elif change == "domain":
        start = replace(start, domain=replace(start.domain, verb="see"))
    elif change == "history":
        first = people[0]
        people[0] = replace(first, query=replace(first.query, history=first.query.history[1:]))
    elif change == "title":
        first = people[0].query
        named = replace(first.candidates[0], title="Another (1999)")
        people[0] = replace(people[0], query=replace(first, candidates=(named, *first.candidates[1:])))
    elif change == "user":
        people[0] = replace(people[0], query=replace(people[0].query, user=(("age", 30),)))
    elif change == "held out":
        held_out = people[:1]
    else:
        start.backend.mode = replace(start.backend.mode, precision="bf16")
    with pytest.raises(RunError, match="holds the training of other examples"):
        tune(start, people, settings("lora", epochs=1), held_out=held_out, folder=tmp_path)


def test_a_training_that_is_stopped_leaves_no_dropout_on(monkeypatch: pytest.MonkeyPatch) -> None:
    start = recommender()

    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(start, examples(), settings("soft-prompt"))
    assert not start.backend.model.training


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_all_whatever_torch_drew_before(method: str) -> None:
    losses = []
    for before in (1, 2):
        torch.manual_seed(before)
        losses.append([done.loss for done in tune(recommender(), examples(), settings(method, epochs=2)).passes])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", ["soft-prompt", "lora"])
def test_what_has_learnt_already_is_not_learnt_over(method: str) -> None:
    """The weights that are there would be dropped in silence."""
    learnt = tune(recommender(), examples(), settings(method, epochs=1)).recommender
    with pytest.raises(DataError, match="this recommender has learnt already"):
        tune(learnt, examples(), settings("lora"))


@pytest.mark.parametrize("negatives", ["given", "in-batch"])
def test_losses_before_and_in_training_are_of_the_same_candidates(negatives: str) -> None:
    """With weights that stand still, the first pass has the loss before it, though others' answers came in."""
    tuned = tune(
        recommender(), examples(), settings("lora", epochs=1, learning_rate=1e-8, batch=6, negatives=negatives)
    )
    assert tuned.passes[1].loss == pytest.approx(tuned.passes[0].loss, abs=1e-3)


def test_plain_pairs_hold_people_out_and_judge_single_candidates() -> None:
    said: list[str] = []
    people = [replace(one, query=replace(one.query, user_id=f"p{at}")) for at, one in enumerate(examples(6) * 4)]
    pairs = [(one.query, one.relevant) for one in people]
    tuned = loop.adapt(recommender(), pairs, method="lora", epochs=1, held_out=0.5, say=said.append)
    assert len(tuned.lessons[0].held_out) == len(tuned.lessons[0].examples) == 12
    assert any("nDCG@10 of 12 held out" in line for line in said)
    single = [(replace(query, candidates=query.candidates[:1]), (0,) if 0 in places else ()) for query, places in pairs]
    judge = recommender(prompt="films-judge")
    assert loop.adapt(judge, single[:6], method="lora", epochs=1).lessons[0].loss == "binary"


@pytest.mark.parametrize(
    ("metrics", "stops_by"),
    [
        (["MRR", "nDCG@10"], "nDCG@10"),
        (["log-loss", "HR@5"], "HR@5"),
        (["coverage@10", "user-AUC"], "user-AUC"),
        (["ECE"], "nDCG@10"),
    ],
)
def test_a_training_stops_by_a_metric_that_scores_alone_give(metrics: list[str], stops_by: str) -> None:
    assert lessons.metric_to_stop_by(metrics) == stops_by


def test_a_training_that_stopped_before_its_first_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no state of the optimizer yet."""

    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    whole = tune(recommender(), examples(), settings("lora", epochs=2))
    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(recommender(), examples(), settings("lora", epochs=2), folder=tmp_path)
    resumed = tune(recommender(), examples(), settings("lora", epochs=2), folder=tmp_path)
    assert [done.loss for done in whole.passes] == [done.loss for done in resumed.passes]


def test_a_training_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    tune(recommender(), examples(), settings("lora", epochs=1), folder=tmp_path)
    with pytest.raises(RunError, match="other examples, settings or another model"):
        tune(recommender(), examples(), settings("lora", epochs=2), folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_and_names_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "listwise", lambda scores, relevant: scores.sum() * float("nan"))
    monkeypatch.setattr(lessons, "best_scale", lambda *_: (0.0, 1.0))
    with pytest.raises(NumericError, match=r"pass 1, user 'u\d': the loss of 'u\d' is nan"):
        tune(recommender(), examples(), settings("lora"))


def test_who_did_not_learn_is_told() -> None:
    said: list[str] = []
    tuned = tune(recommender(), examples(), settings("soft-prompt", learning_rate=1e-8, epochs=1), say=said.append)
    assert not tuned.learned
    assert any("did not learn" in line for line in said)


@pytest.mark.parametrize(("losses", "stays", "learned"), [
    ((1.0, 0.9, 1.1), 2, False),
    ((1.0, 1.1, 0.9), 2, True),
    ((1.0, 1.1, 0.9), 1, True),
    ((1.0, 1.1, 1.1, 0.9), 1, False),
    ((1.0, 0.9, 0.8), 0, False),
])  # fmt: skip
def test_what_stays_has_to_have_learned(losses: tuple[float, ...], stays: int, learned: bool) -> None:
    """A pass is measured while it learns, so the one that began with what stays counts, too; no other does."""
    tuned = tune(recommender(), examples(2), settings("lora", epochs=1))
    passes = [
        replace(tuned.passes[min(at, 1)], epoch=at, loss=loss, losses={tuned.lessons[0].name: loss})
        for at, loss in enumerate(losses)
    ]
    found = replace(tuned, passes=tuple(passes), best_epoch=stays)
    assert found.learned == learned
    assert bool(found.not_learned) != learned


def test_the_best_pass_on_those_held_out_stays() -> None:
    people = examples()
    tuned = tune(recommender(), people[:4], settings("lora", epochs=5, patience=9), held_out=people[4:])
    metrics = [done.metric for done in tuned.passes]
    assert tuned.passes[tuned.best_epoch].metric == max(metrics)
    assert tuned.best_epoch == metrics.index(max(metrics))
    scores = lessons.scores_of(tuned.recommender, people[4:])
    again = [lessons.judged(one, own) for one, own in zip(people[4:], scores, strict=True)]
    value = np.mean(lessons.measure_all(["nDCG@10"], again, lessons.Shelf()).per_user["nDCG@10"])
    assert value == pytest.approx(max(metrics))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calibrate", ["none", "pmi"])
def test_gradients_of_the_packed_path_are_those_of_the_plain_path(method: str, calibrate: str) -> None:
    """What a step changes is what one sequence at a time would change, twins too."""
    start = recommender(calibrate=calibrate)
    learner = loop.begin(start.backend, settings(method).complete(), instruction="Films they like", n_steps=9)
    with torch.no_grad():  # away from LoRA's zeros, where half of the gradients vanish
        for weights in learner.parameters().values():
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    found = slopes(start, learner)
    steepest = max(float(plain.abs().max()) for _, plain in found)
    for packed, plain in found:
        assert float((packed - plain).abs().max()) < 1e-5 * max(1.0, steepest)
        assert float(plain.abs().max()) > 1e-6


def slopes(start: Recommender, learner: Learner) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of the loss of one question, for each of the learner's weights: packed, and one sequence at a time."""
    found = []
    for layout in ("packed", "plain"):
        learner.backend.engine.layout = layout
        learner.place()
        asker = graded(replace(start, backend=learner.backend))
        loss = LOSSES["listwise"](asker.scores(asker.answers(examples()[0].query)).float(), (1,))
        found.append(torch.autograd.grad(loss, list(learner.parameters().values())))
    return list(zip(*found, strict=True))


def test_adalora_moves_rank() -> None:
    people = examples()
    tuned = tune(recommender(), people, settings("adalora", epochs=8, batch=1))
    ranks = tuned.learner.ranks.values()
    assert len(set(ranks)) > 1, "some matrices keep more directions than others"
    assert sum(ranks) == 4 * len(ranks), "on average the rank that was asked for"


def test_a_warm_up_learns_from_histories_alone() -> None:
    tuned = tune(recommender(), examples(), settings("lora", warm_up=6, epochs=1))
    warm = [done.loss for done in tuned.passes if done.of == "histories"]
    assert len(warm) == 6
    assert warm[-1] < warm[0]
    with pytest.raises(FewrecError, match="0 passes over answers and 0 over histories"):
        settings("lora", epochs=0)


def test_without_passes_over_answers_none_is_looked_at() -> None:
    """The same weights come of other answers, and whether it learned is told by the titles."""
    made = []
    for shift in (0, 1):
        people = [replace(one, relevant=((one.relevant[0] + shift) % 3,)) for one in examples()]
        made.append(tune(recommender(), people, settings("lora", warm_up=6, epochs=0)))
    first, second = (one.learner.export() for one in made)
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())
    assert made[0].learned
    still = tune(recommender(), examples(), settings("lora", warm_up=1, epochs=0, learning_rate=1e-8, batch=6))
    assert still.passes[1].loss == pytest.approx(still.zero_shot_loss, abs=1e-3)


def test_a_warm_up_takes_whole_titles() -> None:
    with pytest.raises(DataError, match="kind 'complete'"):
        tune(recommender(prompt="films-judge"), examples(), settings("lora", warm_up=1, loss="binary"))


@pytest.mark.parametrize(
    "kind", [("films-judge", "binary"), ("films-choose", "listwise"), ("films-complete", "pairwise")]
)
def test_every_kind_of_question_is_learnt_from(kind: tuple[str, str]) -> None:
    prompt, loss = kind
    tuned = tune(recommender(prompt=prompt), examples(), settings("lora", loss=loss))
    assert tuned.passes[-1].loss < tuned.passes[1].loss


def test_a_list_that_is_all_answers_is_refused() -> None:
    query = examples()[0].query
    with pytest.raises(DataError, match="3 of 3 candidates are answers"):
        tune(recommender(), [Example(query, (0, 1, 2))], settings("lora"))


def test_checkpointing_changes_no_gradient() -> None:
    plain = tune(recommender(), examples(), settings("lora", epochs=2))
    held = tune(recommender(), examples(), settings("lora", epochs=2, checkpointing=True))
    for name, weights in plain.learner.export().items():
        assert torch.allclose(weights, held.learner.export()[name], atol=1e-6)


# --- people --------------------------------------------------------------------------------------------------------


def test_fewer_shots_are_among_more() -> None:
    people = examples(6)
    assert set(drawn(people, 2, 3)) < set(drawn(people, 4, 3)) < set(people)
    assert drawn(people, 4, 3) != drawn(people, 4, 4)
    with pytest.raises(DataError, match="7 shots were asked, but there are 6"):
        drawn(people, 7, 0)


def test_all_questions_of_a_person_are_on_one_side() -> None:
    query = examples()[0].query
    people = [
        Example(replace(query, user_id=f"{n // 2}#{n % 2 + 1}" if n % 2 else f"{n // 2}"), (0,)) for n in range(40)
    ]
    inside, held = parted(people, 0.25, 0)
    persons = [{one.query.user_id.partition("#")[0] for one in side} for side in (inside, held)]
    assert len(persons[1]) == 5
    assert not persons[0] & persons[1]
    assert parted(people[:8], 0.25, 0) == (tuple(people[:8]), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lora2"}, "unknown method 'lora2'.*lora"),
        ({"learning_rate": 0.0}, "learning rate is 0.0; give a number from 1e-08 to 1"),
        ({"learning_rate": float("nan")}, "learning rate is nan"),
        ({"rank": 0}, "rank is 0"),
        ({"epochs": 1.5}, "epochs is 1.5; give a whole number from 0 to 1000"),
        ({"batch": True}, "batch is True; give a whole number"),
        ({"learning_rate": "fast"}, "learning rate is 'fast'; give a number"),
        ({"seed": 2**70}, "seed is"),
        ({"method": "head", "checkpointing": True}, "'head' makes no use of checkpointing"),
        ({"loss": "list"}, "unknown loss 'list'.*listwise"),
        ({"method": "prefix", "checkpointing": True}, "'prefix' makes no use of checkpointing"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(FewrecError, match=message):
        Settings(**change)  # type: ignore[arg-type]  # that is the point
