"""What is learnt on weights of 8 and 4 bits: through the kernels that answer, and read back to the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _tiny import FILMS, model, tokenizer
from test_tuning import examples, settings

from fewrec_prompt.backends import causal, precision
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import AdapterError, ModelError
from fewrec_prompt.few_shot import save_tuned
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune, tune_together
from fewrec_prompt.tuning.placing import adapted, merge

METHODS = ("soft-prompt", "p-tuning", "prefix", "lora", "adalora")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose layers are as wide as a block of 4-bit weights."""
    made = tmp_path_factory.mktemp("model")
    model("llama", n_words=len(tokenizer()), **WIDE).save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made


def loaded(folder: Path, name: str, prompt: str = "films-complete") -> Recommender:
    if why := precision._missing(name, "cpu"):  # type: ignore[arg-type]  # one of the names
        pytest.skip(f"this machine cannot: {why}")
    template, reader, calibration = choose(prompt, None, "none", None, None)
    return Recommender(template, reader, causal.load(str(folder), Numerics(name, device="cpu")), FILMS, calibration)


@pytest.fixture(params=["int8", "int4"])
def few_bits(request: pytest.FixtureRequest, folder: Path) -> Recommender:
    return loaded(folder, request.param)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_after_the_model_has_answered(few_bits: Recommender, method: str) -> None:
    """Its first answer is what made bitsandbytes lay out 4-bit weights so that no gradient came through."""
    few_bits.rank(examples()[0].query)
    tuned = tune(few_bits, examples(), settings(method, epochs=8))
    assert tuned.passes[-1].loss < tuned.passes[1].loss - 5e-4
    assert {weights.dtype for weights in tuned.learner.parameters().values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learnt_scores_the_same_when_it_is_read_back(
    few_bits: Recommender, method: str, tmp_path: Path
) -> None:
    tuned = tune(few_bits, examples(), settings(method, epochs=2))
    query = examples()[0].query
    expected = tuned.recommender.scores(tuned.recommender.answers(query))
    bound, config = {"films": adapters.bindings(few_bits)}, tuned.learner.config()
    adapters.save(tmp_path / "a", method, bound, tuned.learner.export(), config=config, about={})
    again = few_bits.adapted(tmp_path / "a")
    assert again.scores(again.answers(query)) == pytest.approx(expected, abs=1e-5)


def test_adalora_answers_in_the_type_that_it_was_asked_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 8 bits on a GPU PEFT's layer answers in fp32 whatever it is asked in; one that does so stands in."""
    from peft.tuners.adalora.layer import SVDLinear

    real = SVDLinear.forward
    monkeypatch.setattr(SVDLinear, "forward", lambda layer, *asked, **how: real(layer, *asked, **how).float())
    start = loaded(folder, "bf16")
    tuned = tune(start, examples(), settings("adalora", epochs=2))
    assert tuned.passes[-1].loss < tuned.passes[1].loss


def test_weights_of_few_bits_themselves_are_not_trained(few_bits: Recommender) -> None:
    with pytest.raises(ModelError, match="takes fp32, and this model is in int"):
        tune(few_bits, examples(), settings("full"))


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_what_was_learnt_on_few_bits_is_merged_into_all_of_them(
    method: str, name: str, folder: Path, tmp_path: Path
) -> None:
    """The base of the merged model is in fp32, which is said; what else it is bound to has to hold."""
    start = loaded(folder, name)
    bound = {"films": adapters.bindings(start)}
    tuned = tune_together([Lesson(start, tuple(examples()), name="films")], settings(method, epochs=2))
    save_tuned(tmp_path / "a", tuned, bound, {})
    said: list[str] = []
    merged = loaded(merge(loaded(folder, "fp32"), tmp_path / "a", tmp_path / "merged", said.append), "fp32")

    def scores(recommender: Recommender) -> list[float]:
        return list(recommender.scores(recommender.answers(examples()[0].query)))

    base = loaded(folder, "fp32")
    assert scores(merged) != pytest.approx(scores(base), abs=1e-3)
    beside = adapted(base, tmp_path / "a", force=True)
    assert scores(merged) == pytest.approx(scores(beside.recommender), abs=1e-4)
    (line,) = said
    assert f"a: was learnt in {name} and is merged into fp32, so its scores will be a little different" in line
    assert 0 < float(line.split("by up to ")[1].split()[0]) < 1
    with pytest.raises(AdapterError, match=r"than it is to be used with: template was [^;]*\. Load"):
        merge(loaded(folder, "fp32", "complete"), tmp_path / "a", tmp_path / "other")
    with pytest.raises(AdapterError, match=f"merge into the base in fp32, not in {name}"):
        merge(loaded(folder, name), tmp_path / "a", tmp_path / "other")
