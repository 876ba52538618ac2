"""The embedded model as it comes out of its GGUF file: tokens as in training, weights that load and make sense."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from fewrec_prompt.backends.gguf import convert
from fewrec_prompt.errors import AssetError

SENTENCE = "The film was directed by Steven Spielberg and released in the summer of 1993."


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def model(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


def safetensors_header(file: Path) -> dict:
    """Names, types and shapes of the tensors in a file, read by the format's description and no library."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


# --- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_every_movielens_title_survives_encoding_and_decoding(tokenizer, ml_100k):
    lines = (ml_100k / "ml-100k.item").read_text(encoding="utf-8").splitlines()[1:]
    titles = ["{1} ({2})".format(*line.split("\t")) for line in lines]

    encoded = tokenizer(titles)["input_ids"]

    assert len(titles) == 1682
    assert tokenizer.batch_decode(encoded) == titles


@pytest.mark.model
def test_the_tokenizer_adds_no_bos_for_this_model_was_trained_without(tokenizer):
    assert tokenizer("Heat")["input_ids"] == tokenizer("Heat", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id not in tokenizer("Heat")["input_ids"]


@pytest.mark.model
def test_a_number_after_an_empty_line_is_cut_as_in_training(tokenizer):
    """Loaded straight from GGUF, the two line ends came as two tokens: digits have to be cut off first."""
    assert tokenizer.tokenize("films:\n\n1. Heat (1995)") == [
        *["films", ":", "ĊĊ", "1", ".", "ĠHeat", "Ġ(", "1", "9", "9", "5", ")"]
    ]


@pytest.mark.model
def test_the_chat_template_marks_turns_with_control_tokens(tokenizer):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]

    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


@pytest.mark.model
def test_weights_are_bf16_safetensors_and_nothing_is_a_pickle(smollm2):
    tensors = safetensors_header(smollm2 / "model.safetensors")

    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert {file.suffix for file in smollm2.iterdir()} == {".safetensors", ".json", ".jinja"}


@pytest.mark.model
def test_output_weights_are_tied_again_after_loading(smollm2, model):
    assert "lm_head.weight" not in safetensors_header(smollm2 / "model.safetensors")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


@pytest.mark.model
def test_the_converted_model_finds_english_likely_and_noise_unlikely(model, tokenizer):
    def perplexity(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            output = model(ids, labels=ids)
        assert torch.isfinite(output.logits).all()
        return math.exp(output.loss)

    shuffled = " ".join(sorted(SENTENCE.split(), key=str.lower, reverse=True))

    assert 3 < perplexity(SENTENCE) < 30
    assert perplexity(shuffled) > 5 * perplexity(SENTENCE)


# --- one of a single layer, made here --------------------------------------------------------------------------------


def write_gguf(file: Path, *, pre_tokenizer: str = "smollm", add_bos: bool = False) -> None:
    """A Llama of one layer with a byte vocabulary and the one merge that joins two line ends."""
    vocabulary = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters(), "ĊĊ"]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3, 3, *[1] * (len(vocabulary) - 3)])
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, shape in tiny_shapes(len(vocabulary)).items():
        writer.add_tensor(name, torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def tiny_shapes(n_tokens: int) -> dict[str, tuple[int, ...]]:
    layer = {"attn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16)}
    layer |= {"ffn_norm": (16,), "ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32)}
    named = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    return {"token_embd.weight": (n_tokens, 16), "output_norm.weight": (16,)} | named


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    return tmp_path / "source", tmp_path / "target"


def test_a_converted_model_computes_what_the_gguf_says_and_the_libraries_keep_quiet(folders, capfd):
    source, target = folders
    write_gguf(source / "tiny.gguf")

    convert(source, target)

    said = capfd.readouterr()
    assert said.out + said.err == ""
    ids = torch.tensor([[5, 70, 33, 9]])
    saved = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file="tiny.gguf", dtype=torch.float32)
    for weight in loaded.parameters():
        weight.data = weight.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(saved(ids).logits, loaded(ids).logits)


def test_a_converted_tokenizer_keeps_template_window_and_cuts(folders):
    source, target = folders
    write_gguf(source / "tiny.gguf")

    convert(source, target)

    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


def test_a_tokenizer_that_would_come_out_wrong_is_refused(folders):
    source, target = folders
    write_gguf(source / "tiny.gguf", pre_tokenizer="smolm")
    with pytest.raises(AssetError, match=r"its pre-tokenizer 'smolm' is not supported; known: smollm. Did you mean"):
        convert(source, target)

    write_gguf(source / "tiny.gguf", add_bos=True)
    with pytest.raises(AssetError, match=r"tiny.gguf: its tokenizer adds a BOS token"):
        convert(source, target)
    assert list(target.iterdir()) == []


def test_a_folder_with_no_gguf_file_or_two_is_refused(folders):
    source, target = folders
    with pytest.raises(AssetError, match="found: none"):
        convert(source, target)

    (source / "a.gguf").touch()
    (source / "b.gguf").touch()
    with pytest.raises(AssetError, match=r"found: a.gguf, b.gguf"):
        convert(source, target)
