"""Causal models that take no tree mask learn as the others do: behind a repeated cache, or a sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import GROUPED, model, save_model
from _trees import crowd, distance
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from test_adapters import ABOUT, check_peft_reads, load, scores
from test_layouts import LLAMA_STRETCHED, OTHERS
from test_tuning import METHODS, examples, settings

from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens
from fewrec_prompt.errors import ModelError
from fewrec_prompt.few_shot import save_tuned
from fewrec_prompt.tuning import peft_configs
from fewrec_prompt.tuning.adapters import bindings
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune, tune_together
from fewrec_prompt.tuning.placing import adapted
from fewrec_prompt.tuning.settings import Settings

SLIDING: dict[str, dict[str, object]] = {
    "mistral": GROUPED | {"sliding_window": 16},
    "gemma3_text": GROUPED | {"sliding_window": 16, "head_dim": 8},
}
EXPANDED: dict[str, dict[str, object]] = SLIDING | {
    "bloom": OTHERS["bloom"],
    "gpt_neo": OTHERS["gpt_neo"] | {"attention_types": [[["global", "local"], 1]], "window_size": 200},
}
PLAIN: dict[str, dict[str, object]] = {
    "llama": GROUPED | LLAMA_STRETCHED,
    "mamba": OTHERS["mamba"] | {"state_size": 4},
}
LAYOUTS = dict.fromkeys(EXPANDED, "expanded") | dict.fromkeys(PLAIN, "plain")
REFUSED = {  # and by what words
    ("prefix", "mamba"): "keep no keys and values, .*; take soft-prompt or lora",
    ("lora", "mamba"): "an adapter of kind LORA cannot be put into this model",
    ("adalora", "mamba"): "an adapter of kind ADALORA cannot be put into this model",
}


@pytest.fixture(scope="module", params=LAYOUTS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    family: str = request.param
    return family, save_model(tmp_path_factory.mktemp("layouts") / family, family, **(EXPANDED | PLAIN)[family])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_or_is_refused_by_name_and_what_was_saved_scores_as_it_did(
    method: str, base: tuple[str, Path], tmp_path: Path
) -> None:
    family, folder = base
    start = load(folder)
    assert start.backend.mode.layout == LAYOUTS[family]
    more = {"targets": "all", "learning_rate": 3e-2} if method in ("lora", "adalora") else {}
    asked = settings(method, epochs=8, **more)
    if words := REFUSED.get((method, family)):
        with pytest.raises(ModelError, match=words):
            tune(start, examples(), asked)
        return
    bound, untuned = {"made": bindings(start)}, scores(start)
    tuned = tune_together([Lesson(start, tuple(examples()), name="made")], asked)
    assert tuned.passes[-1].loss < tuned.passes[1].loss
    learnt = scores(tuned.recommender)
    assert not np.allclose(learnt, untuned)
    save_tuned(tmp_path / "x", tuned, bound, ABOUT | tuned.to_dict())
    assert np.abs(scores(adapted(load(folder), tmp_path / "x").recommender) - learnt).max() < 1e-5
    if method in ("soft-prompt", "prefix", "lora", "adalora"):
        check_peft_reads(tmp_path / "x", load(folder).backend.model)  # type: ignore[attr-defined]  # it is a local one


@pytest.mark.parametrize("family", EXPANDED)
@pytest.mark.parametrize("budget", [1, 10_000])
def test_gradients_behind_a_repeated_cache_are_those_of_the_plain_path(family: str, budget: int) -> None:
    """Also where candidates are longer than one pass holds."""
    made, sequences = model(family, "eager", **EXPANDED[family]), crowd(2)
    gradients = []
    for layout in ("expanded", "plain"):
        vectors = torch.full((4, 32), 0.1).requires_grad_()
        made.zero_grad()
        rows = Engine(made, layout, token_budget=budget, soft=SoftTokens(vectors)).logprobs(sequences)
        sum(row.sum() for row in rows).backward()
        assert vectors.grad is not None
        gradients.append([vectors.grad, *(weights.grad.clone() for weights in made.parameters())])
    assert all(own.abs().max() > 0.01 for own in gradients[0][:2])
    for own, other in zip(*gradients, strict=True):
        assert torch.allclose(own, other, atol=1e-3 * float(other.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("family", EXPANDED)
@pytest.mark.parametrize("layout", ["expanded", "plain"])
def test_keys_and_values_of_a_text_are_as_good_as_the_text(family: str, layout: str) -> None:
    made, sequences, before = model(family, "eager", **EXPANDED[family]), crowd(2), (7, 3, 50, 21, 9)
    whole = [TokenSequence((*before, *one.ids), len(before) + one.scored_from) for one in sequences]
    with torch.inference_mode():
        kept = Engine(made, layout).keys_and_values(before)
        found = Engine(made, layout, soft=KeyValues(kept.layers)).logprobs(sequences)
        assert distance(found, Engine(made, "plain").logprobs(whole)) < 1e-4


@pytest.mark.parametrize(
    ("family", "names"), [("olmo2", ["q_proj", "v_proj"]), ("phi3", ["qkv_proj"]), ("openai-gpt", ["c_attn"])]
)
def test_queries_and_values_of_families_that_peft_does_not_know_are_found_by_their_names(
    family: str, names: list[str], tmp_path: Path
) -> None:
    assert family not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "openai-gpt" else GROUPED
    start = load(save_model(tmp_path / family, family, **small))
    tuned = tune(start, examples(), settings("lora", epochs=1))
    config = tuned.learner.config()
    assert config is not None
    assert config["target_modules"] == names


def test_attention_with_names_of_its_own_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "olmo2", "olmo2", **GROUPED)
    monkeypatch.setattr(peft_configs, "QUERIES_AND_VALUES", ())
    with pytest.raises(ModelError, match="nothing is known of the attention of 'olmo2' models; ask for --targets all"):
        tune(load(folder), examples(), settings("lora"))


@pytest.mark.parametrize("family", SLIDING)
def test_more_keys_and_values_than_a_window_are_refused_by_name(family: str, tmp_path: Path) -> None:
    start = load(save_model(tmp_path / family, family, **SLIDING[family]))
    with pytest.raises(ModelError, match="looks back on 15 tokens, not 20; ask for fewer --tokens"):
        tune(start, examples(), settings("prefix", tokens=20))


def test_a_head_takes_checkpointing_for_its_states_stand_behind_no_cache(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mistral", "mistral", **SLIDING["mistral"])
    how = {"epochs": 1, "rank": 2}
    losses = []
    for checkpointing in (False, True):
        asked = Settings.shared("head-lora", how | {"checkpointing": checkpointing})
        losses.append(tune(load(folder, "judge"), examples(), asked).passes[-1].loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_checkpointing_is_refused_where_candidates_stand_behind_a_cache(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mistral", "mistral", **SLIDING["mistral"])
    with pytest.raises(ModelError, match=r"checkpointing drops the keys and values .*; leave it out"):
        tune(load(folder), examples(), settings("lora", checkpointing=True))
