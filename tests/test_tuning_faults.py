"""What goes wrong in a training, or is asked wrongly, is said where it happens, and leaves nothing wrong behind."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, TITLES, save_model
from test_adapters import load
from test_tuning import examples, recommender, settings

from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.data.training import from_pairs
from fewrec_prompt.errors import AdapterError, DataError, FewrecError, ModelError, NumericError, StorageError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning import adapters, checkpoint
from fewrec_prompt.tuning.adapters import bindings
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.identity import Earlier
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import adapt, tune, tune_together
from fewrec_prompt.tuning.mix import fit
from fewrec_prompt.tuning.negatives import Negatives
from fewrec_prompt.tuning.placing import adapted, merge
from fewrec_prompt.types import Item, Query

PAIRS = [(one.query, one.relevant) for one in examples()]


def identity(asked: Recommender) -> str | None:
    """The name that answers of this recommender are kept under."""
    found = asked.backend.identity(list(asked.questions(examples()[0].query)))
    return None if found is None else found.key


# --- whose answers these are -----------------------------------------------------------------------------------------


def test_a_model_whose_own_weights_learnt_keeps_no_answers_and_binds_nothing(tmp_path: Path) -> None:
    """Under its files' name they would be taken for the untrained model's, today and by every later run."""
    start = load(save_model(tmp_path / "model"))
    before = identity(start)
    assert before is not None
    tuned = tune(start, examples(), settings("full", epochs=1)).recommender
    assert identity(tuned) is None
    assert identity(start) is None, "it is over the same weights"
    with pytest.raises(AdapterError, match="own weights were changed by a training or a merge"):
        bindings(start)
    with pytest.raises(DataError, match="has learnt already"):
        tune(start, examples(), settings("lora"))
    assert identity(load(tmp_path / "model")) == before


def test_weights_of_a_whole_model_have_a_name_of_their_own(tmp_path: Path) -> None:
    start = load(save_model(tmp_path / "model"))
    before, bound = identity(start), {"made": bindings(start)}
    tuned = tune_together([Lesson(start, tuple(examples()), name="made")], settings("full", epochs=1))
    folder = adapters.save(tmp_path / "full", "full", bound, tuned.learner.export(), about={"tasks": {"made": {}}})
    placed = adapted(load(tmp_path / "model"), folder).recommender
    assert identity(placed) not in (None, before)
    view = replace(placed, backend=placed.backend.view())  # type: ignore[attr-defined]  # it is a local one
    assert identity(view) == identity(placed)
    with pytest.raises(DataError, match="has learnt already"):
        tune(placed, examples(), settings("lora"))


def test_a_model_that_was_merged_into_keeps_no_answers(tmp_path: Path) -> None:
    start = load(save_model(tmp_path / "model"))
    bound = {"made": bindings(start)}
    tuned = tune_together([Lesson(start, tuple(examples()), name="made")], settings("lora", epochs=1))
    folder = adapters.save(
        tmp_path / "lora",
        "lora",
        bound,
        tuned.learner.export(),
        config=tuned.learner.config(),
        about={"tasks": {"made": {}}},
    )
    base = load(tmp_path / "model")
    merge(base, folder, tmp_path / "merged")
    assert identity(base) is None


@pytest.mark.parametrize("method", ["full", "adalora"])
def test_methods_that_need_a_model_of_their_own_refuse_one_that_holds_an_adapter(method: str, tmp_path: Path) -> None:
    start = load(save_model(tmp_path / "model"))
    tune(start, examples(), settings("lora", epochs=1))
    with pytest.raises(ModelError, match=r"load the model anew|cannot be put into this model"):
        tune(start, examples(), settings(method))


def test_adalora_refuses_a_model_in_which_one_was_placed(tmp_path: Path) -> None:
    start = load(save_model(tmp_path / "model"))
    bound = {"made": bindings(start)}
    tuned = tune_together([Lesson(start, tuple(examples()), name="made")], settings("adalora"))
    about, learner = {"tasks": {"made": {}}}, tuned.learner
    folder = adapters.save(tmp_path / "ada", "adalora", bound, learner.export(), config=learner.config(), about=about)
    base = load(tmp_path / "model")
    adapted(base, folder)
    with pytest.raises(ModelError, match="holds no other adapter yet"):
        tune(base, examples(), settings("adalora"))


# --- models as they are loaded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("method", ["soft-prompt", "lora"])
def test_every_family_learns_as_it_is_loaded(method: str, family: str, tmp_path: Path) -> None:
    """With its own dropout (GPT-2's attention has some) and the attention that was chosen for it."""
    save_model(tmp_path / "model", family)
    start = replace(recommender(), backend=causal.load(str(tmp_path / "model"), Numerics("fp32", "cpu")))
    low_rank = {"targets": "all"} if method == "lora" else {}
    tuned = tune(start, examples(), settings(method, epochs=1, **low_rank))
    assert np.isfinite(tuned.passes[1].loss)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_of_attention_is_what_the_configuration_says(precision: Any, tmp_path: Path) -> None:
    losses = []
    for share in (0.0, 0.5):
        off = {"attn_pdrop": share, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        save_model(tmp_path / str(share), "gpt2", **off)
        start = replace(recommender(), backend=causal.load(str(tmp_path / str(share)), Numerics(precision, "cpu")))
        losses.append([done.loss for done in tune(start, examples(), settings("soft-prompt", epochs=1)).passes])
    (before, without), (same, dropped) = losses
    assert before == same, "nothing is dropped when it answers"
    assert dropped != without


# --- numbers that are none -------------------------------------------------------------------------------------------


def test_an_answer_that_is_not_finite_names_pass_and_person() -> None:
    start = recommender()
    start.backend.model.get_input_embeddings().weight.data[:] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(NumericError, match="not finite"):
        tune(start, examples(), settings("lora"))

    start, n_asked = recommender(), 0

    def break_it(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
        nonlocal n_asked
        n_asked += start.backend.model.training  # type: ignore[attr-defined]
        return out * float("nan") if n_asked > 2 else out

    start.backend.model.get_input_embeddings().register_forward_hook(break_it)  # type: ignore[attr-defined]
    with pytest.raises(NumericError, match=r"pass 1, user 'u\d': the model returned .*saved before is intact"):
        tune(start, examples(), settings("lora"))


def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(recommender(), examples(), settings("lora", epochs=3), folder=tmp_path / "whole")
    n_steps = 0
    step = torch.nn.utils.clip_grad_norm_

    def burst(weights: Any, *given: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 5:
            next(iter(weights)).grad[:] = float("inf")
        return step(weights, *given)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", burst)
        with pytest.raises(NumericError, match=r"pass 2, user 'u\d', 'u\d': the gradient is (inf|nan)"):
            tune(recommender(), examples(), settings("lora", epochs=3), folder=tmp_path / "cut")
    tune(recommender(), examples(), settings("lora", epochs=3), folder=tmp_path / "cut")
    whole, cut = (checkpoint.load(tmp_path / name) for name in ("whole", "cut"))
    assert whole is not None
    assert cut is not None
    assert all(torch.equal(weights, cut[0]["weights"][name]) for name, weights in whole[0]["weights"].items())


def test_a_metric_that_cannot_be_told_chooses_nothing_and_is_said(tmp_path: Path) -> None:
    """All who are held out like what they are asked about, so there is no AUC."""
    said: list[str] = []
    likes = [
        Example(replace(one.query, user_id=f"p{at}", candidates=one.query.candidates[:1]), (0,) if at % 3 else ())
        for at, one in enumerate(examples() * 2)
    ]
    asked, held = settings("lora", epochs=3, loss="binary"), [one for one in likes if one.relevant][:2]
    judge = recommender(prompt="films-judge")
    tuned = tune(judge, likes, asked, held_out=held, metric="pooled-AUC", folder=tmp_path, say=said.append)
    assert tuned.best_epoch == 3
    assert [done.metric for done in tuned.passes] == [None] * 4
    assert sum("pooled-AUC cannot be told of the people held out" in line for line in said) == 1
    assert checkpoint.load(tmp_path) is not None


def test_a_mix_of_numbers_that_are_not_finite_is_refused() -> None:
    numbers = {"log p": np.array([0.0, -np.inf, 1.0]), "prior": np.zeros(3)}
    with pytest.raises(DataError, match="user 'u0': 'log p' is not finite"):
        fit(examples(1), [numbers], {"log p": 1.0})


# --- the disk --------------------------------------------------------------------------------------------------------


@contextmanager
def no_more_than(n_bytes: int) -> Iterator[None]:
    """Files of this process may not grow beyond this: what a full disk looks like to a library's own writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_under_safetensors_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    checkpoint.save(tmp_path / "x", {"weights": {"a": torch.zeros(3)}}, {"n": 1})
    with no_more_than(1000), pytest.raises(StorageError, match=r"training.safetensors: cannot be written"):
        checkpoint.save(tmp_path / "x", {"weights": {"a": torch.zeros(5000)}}, {"n": 2})
    found = checkpoint.load(tmp_path / "x")
    assert found is not None
    assert found[1] == {"n": 1}
    with no_more_than(1000), pytest.raises(StorageError, match="adapter: cannot be written"):
        adapters.save(tmp_path / "adapter", "soft-prompt", {}, {"a": torch.zeros(5000)}, about={})
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "training.safetensors"]


# --- rounds and warm-ups ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "size"), [("lora", "rank"), ("prefix", "tokens"), ("soft-prompt", "tokens")])
@pytest.mark.parametrize("n", [1, 4])
def test_a_round_of_another_size_is_refused(method: str, size: str, n: int) -> None:
    first = tune(recommender(), examples(), settings(method, epochs=1, **{size: n})).learner.export()
    lesson = Lesson(recommender(), tuple(examples()), earlier=tuple(examples(2)))
    with pytest.raises(ModelError, match=rf"{n}\b.* (were|was) learnt earlier|learnt earlier \(rank {n},"):
        tune_together([lesson], settings(method, epochs=1, **{size: 8}), earlier=Earlier(first))


def test_a_round_without_people_of_the_earlier_one_tells_nothing_of_them() -> None:
    first = tune(recommender(), examples(), settings("lora", epochs=1)).learner.export()
    tuned = tune(recommender(), examples(), settings("lora", epochs=1), earlier=Earlier(first))
    assert tuned.earlier_loss is None


def test_patience_begins_with_the_passes_that_count() -> None:
    """A warm-up may make those held out no better, and is not what is waited for."""
    worse = iter([0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])

    class Flat(Lesson):
        def measured(self, recommender: Recommender) -> float:
            return next(worse)

    lesson = Flat(recommender(), tuple(examples(4)), tuple(examples(6)[4:]), name="made")
    tuned = tune_together([lesson], settings("lora", warm_up=4, epochs=3, patience=2))
    assert [done.of for done in tuned.passes] == ["start", *["histories"] * 4, *["answers"] * 2]
    assert tuned.best_epoch == 0


# --- what is asked wrongly -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(7,), (-1,), (0, 0), (0.5,)])
def test_places_that_are_no_candidates_are_refused(places: tuple[Any, ...]) -> None:
    pairs = [*PAIRS[:3], (PAIRS[3][0], places)]
    with pytest.raises(DataError, match=r"user 'u3': answers are at .*places among the 3 candidates"):
        adapt(recommender(), pairs, method="lora", epochs=1)


def test_nobody_and_settings_nobody_knows_are_refused() -> None:
    with pytest.raises(DataError, match="nobody to learn from"):
        adapt(recommender(), [], method="lora")
    with pytest.raises(FewrecError, match=r"unknown tuning setting 'learningrate'.*learning_rate"):
        adapt(recommender(), PAIRS, learningrate=0.1)


def test_a_warm_up_of_somebody_without_a_history_is_refused() -> None:
    people = [*examples(3), Example(replace(examples(4)[3].query, history=()), (0,))]
    assert tune(recommender(), people, settings("lora", epochs=1)).passes
    with pytest.raises(DataError, match="user 'u3' has no history for a warm-up"):
        tune(recommender(), people, settings("lora", warm_up=1, epochs=1))


@pytest.mark.parametrize("name", ["uniform", "popularity", "shared", "hard"])
def test_who_took_the_whole_catalogue_has_nothing_to_learn_against(name: Any) -> None:
    items = {f"i{at}": Item(f"i{at}", title) for at, title in enumerate(TITLES[:5])}
    training = from_pairs(items, [("u", item_id) for item_id in [*items][:4]])
    whole = Example(Query("u", (), (items["i4"], items["i0"])), (0,))
    with pytest.raises(DataError, match="user 'u' has taken all 5 items of the catalogue"):
        Negatives(name, training, 0)([whole], 1, recommender().rank)
