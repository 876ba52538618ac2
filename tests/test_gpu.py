"""What runs on a GPU, where there is one (`make test-gpu`): the same scores, the same learning, real memory.

Everywhere else the same code runs on a CPU, in the tests of its own files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import FAMILIES, FILMS, save_model
from test_tuning import METHODS, examples, settings, slopes
from typer.testing import CliRunner

from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cli import app
from fewrec_prompt.evaluation import Options
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.shots import shots_of
from fewrec_prompt.tasks import load_queries, load_task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.methods import begin
from fewrec_prompt.types import Query

pytestmark = pytest.mark.gpu
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
PRECISIONS = ("fp32", "bf16", "int8", "int4")
APART = {"fp32": 1e-4, "bf16": 0.2, "int8": 0.3, "int4": 0.3}  # nats a title, packed from plain


@pytest.fixture(scope="module", autouse=True)
def _there_is_one() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this machine cannot: it has no GPU that torch knows")


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose layers are as wide as a block of 4-bit weights."""
    return save_model(tmp_path_factory.mktemp("wide") / "model", "llama", **WIDE)


def recommender(folder: Path | str, name: str = "fp32", prompt: str = "films-complete", **how: object) -> Recommender:
    template, reader, calibration = choose(prompt, None, "pmi", None, None)
    backend = causal.load(str(folder), Numerics(name, device="cuda", **how))  # type: ignore[arg-type]
    return Recommender(template, reader, backend, FILMS, calibration)


def scores(asker: Recommender, at: int = 0) -> np.ndarray:
    return np.asarray(asker.scores(asker.answers(examples()[at].query)))


def plain_scores(asker: Recommender, query: Query) -> np.ndarray:
    """What the same model gives one sequence at a time."""
    engine = asker.backend.engine  # type: ignore[attr-defined]
    packed, engine.layout = engine.layout, "plain"
    try:
        return np.asarray(asker.scores(asker.answers(query)))
    finally:
        engine.layout = packed


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_gpu_scores_as_a_cpu_does_packed_and_plain(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", family)
    here = recommender(folder)
    there = replace(here, backend=causal.load(str(folder), Numerics("fp32", device="cpu")))
    assert here.backend.mode.device == "cuda"
    assert scores(here) == pytest.approx(scores(there), abs=1e-4)
    assert scores(here) == pytest.approx(plain_scores(here, examples()[0].query), abs=1e-4)


@pytest.mark.parametrize("name", PRECISIONS)
def test_units_of_one_and_of_many_score_alike(name: str, wide: Path) -> None:
    together, alone = (recommender(wide, name, unit=unit) for unit in ("throughput", "canonical"))
    assert together.backend.mode.users_per_unit > 1
    found = together.answers_all([one.query for one in examples()])
    for at, own in enumerate(found):
        assert together.scores(own) == pytest.approx(scores(alone, at), abs=APART[name])


def test_nothing_said_means_8_bits_on_a_gpu(smollm2: Path) -> None:
    backend = causal.load(str(smollm2), Numerics())
    assert (backend.mode.precision, backend.mode.device, backend.mode.unit) == ("int8", "cuda", "throughput")
    kinds = {weights.dtype for name, weights in backend.model.named_parameters() if "_proj" in name}
    assert kinds == {torch.int8}
    assert all(weights.device.type == "cuda" for weights in backend.model.parameters())


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_embedded_model_packs_on_a_gpu(name: str, smollm2: Path, ml_100k: Path) -> None:
    """Real prompts of real people; apart from plain by no more than rounding in these bits makes them."""
    asker = recommender(smollm2, name, "complete")
    task = Options(users=4).applied(load_task("movielens-100k"))
    for query in load_queries(task).queries:
        found = asker.scores(asker.answers(query))
        apart = np.abs(found - plain_scores(asker, query)).max()
        assert apart < {"fp32": 1e-3, "bf16": 1.5, "int8": 10.0, "int4": 3.0}[name]  # 8 bits: 4.8 was seen


def test_a_pass_that_does_not_fit_is_made_in_halves(smollm2: Path, ml_100k: Path) -> None:
    """Real memory that really runs out; the scores are the same, and the budget stays halved."""
    task = Options(users=32).applied(load_task("movielens-100k"))
    queries = list(load_queries(task).queries)
    asker = recommender(smollm2, "fp32", "complete", token_budget=65536)
    expected = [asker.scores(own) for own in asker.answers_all(queries)]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 4e8) / total)
    asker.backend.forget()  # type: ignore[attr-defined]
    found = [asker.scores(own) for own in asker.answers_all(queries)]
    assert asker.backend.token_budget < 65536  # type: ignore[attr-defined]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-2)


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_method_falls_on_a_gpu_and_is_read_back(
    method: str, name: str, wide: Path, tmp_path: Path
) -> None:
    if method == "full" and name != "fp32":
        pytest.skip("this machine cannot, nor can any: all weights are learnt in fp32 alone")
    start = recommender(wide, name)
    bound = {"films": adapters.bindings(start)}
    tuned = tune(start, examples(), settings(method, epochs=8))
    assert tuned.passes[-1].loss < tuned.passes[1].loss
    assert {weights.device.type for weights in tuned.learner.parameters().values()} == {"cuda"}
    expected = scores(tuned.recommender)
    config, kept = tuned.learner.config(), tuned.learner.export()
    adapters.save(tmp_path / "a", method, bound, kept, config=config, about={})
    again = recommender(wide, name).adapted(tmp_path / "a")
    assert scores(again) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_packed_gradients_on_a_gpu_are_those_of_the_plain_path(method: str, wide: Path) -> None:
    start = recommender(wide)
    learner = begin(start.backend, settings(method).complete(), instruction="Films they like", n_steps=9)  # type: ignore[arg-type]
    found = slopes(start, learner)
    steepest = max(float(plain.abs().max()) for _, plain in found)
    assert all(float((packed - plain).abs().max()) < 1e-4 * max(1.0, steepest) for packed, plain in found)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(smollm2: Path, ml_100k: Path, tmp_path: Path) -> None:
    """As close as two trainings in one go are to each other: kernels of a GPU may add up in another order."""
    people = list(shots_of(load_task("movielens-100k"), 8, 0).learnt)
    asked = settings("lora", epochs=3, batch=4, learning_rate=1e-3, negatives="given")

    def stop(epoch: int, _value: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    def learnt(folder: Path) -> list[float]:
        done = tune(recommender(smollm2, "fp32", "complete"), people, asked, folder=folder)
        return [one.loss for one in done.passes]

    whole = learnt(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(recommender(smollm2, "fp32", "complete"), people, asked, folder=tmp_path / "cut", watch=stop)
    assert learnt(tmp_path / "cut") == pytest.approx(whole, abs=2e-3)


def test_tune_and_eval_by_command(smollm2: Path, ml_100k: Path, tmp_path: Path) -> None:
    """8 bits, as nothing is said: what was learnt is used again by eval."""
    learnt = ["--method", "lora", "--shots", "8", "--epochs", "1", "--out", str(tmp_path / "a")]
    run("tune", "movielens-100k", "--prompt", "complete", *learnt)
    assert "int8" in run("adapters", "show", str(tmp_path / "a"))
    told = run("eval", "movielens-100k", "--users", "20", "--out", tmp_path / "run", "--adapter", tmp_path / "a")
    assert "int8" in told


def run(*words: str | Path) -> str:
    """What the command says."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output
