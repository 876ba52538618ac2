"""What a model was made as decides who reads it, not what it is called."""

from __future__ import annotations

import json

import pytest
from _encoders import masked, save, seq2seq
from _tiny import save_model

from fewrec_prompt.backends import choice
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import ModelError
from fewrec_prompt.recommender import Recommender

FP32 = Numerics("fp32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three kinds of model, in folders whose names say another kind."""
    home = tmp_path_factory.mktemp("models")
    return {
        "CausalBackend": save_model(home / "bert-base"),
        "MaskedBackend": save(masked(), home / "t5-small"),
        "Seq2SeqBackend": save(seq2seq(), home / "gpt2"),
    }


@pytest.mark.parametrize("kind", ["CausalBackend", "MaskedBackend", "Seq2SeqBackend"])
def test_the_configuration_decides(kind, folders):
    assert type(choice.load(str(folders[kind]), FP32)).__name__ == kind


def test_a_recommender_takes_any_of_them(folders):
    for kind, folder in folders.items():
        made = Recommender.load(str(folder), precision="fp32")
        assert type(made.backend).__name__ == kind
        assert len(made.rank(history=["Heat"], candidates=["Up", "Alien"]).items) == 2


def test_a_name_may_say_who_reads_it(folders):
    made = choice.load(f"masked-l2r:{folders['MaskedBackend']}", FP32)
    assert made.mode.layout == "pll-l2r"
    assert made.files.name == str(folders["MaskedBackend"])


def test_a_tokenizer_is_found_for_every_kind(folders):
    for folder in folders.values():
        assert choice.load_tokens(str(folder)).text_ids("Heat")
    assert choice.load_tokens(f"masked-l2r:{folders['MaskedBackend']}").end


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["BertForPreTraining"], "model_type": "bert"}, "masked"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, "causal"),
        ({"architectures": ["BertForPreTraining"], "model_type": "bert", "is_decoder": True}, "causal"),
        ({"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}, "masked"),
        ({"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert"}, "masked"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "causal"),
        ({"model_type": "llama"}, "causal"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "seq2seq"),
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "seq2seq"),
    ],
)
def test_what_checkpoints_say_of_themselves_is_understood(config, kind, tmp_path):
    assert choice.kind_of(str(_model(tmp_path, config))) == kind


@pytest.mark.parametrize("config", [{"architectures": ["ViTForImageClassification"], "model_type": "vit"}, {}])
def test_a_model_that_is_read_by_nobody_is_refused_by_what_it_is(config, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json says .*(ViT|None).*nothing here"):
        choice.kind_of(str(_model(tmp_path, config)))


def _model(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("")
    return folder
