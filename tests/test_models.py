"""Models by name and number format: what cannot be loaded as asked is refused, with what was tried and what to do."""

import json
import re
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from _tiny import FAMILIES, TITLES, save_model
from huggingface_hub import constants

from fewrec_prompt import Numerics, Recommender
from fewrec_prompt.backends import attention, causal, models, precision
from fewrec_prompt.backends.models import locate
from fewrec_prompt.errors import ModelError


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(shared_folder, tmp_path):
    """A copy of a good model folder, for a test to spoil."""
    for file in shared_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_config_weights_and_tokenizer_ranks(folder):
    ranking = Recommender.load(str(folder), precision="fp32").rank(history=TITLES[:2], candidates=TITLES[2:])

    assert sorted(ranking.item_ids) == sorted(TITLES[2:])


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()

    with pytest.raises(ModelError, match=rf"{missing} is missing in .*; a model folder holds config.json, tokenizer"):
        locate(str(folder))


def test_pickled_weights_are_refused_and_never_opened(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))

    with pytest.raises(
        ModelError, match=r"only pytorch_model.bin, which may run code when loaded.*convert the weights"
    ):
        causal.load(str(folder))


def test_good_weights_beside_pickled_ones_are_the_ones_that_are_read(folder, monkeypatch):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))

    assert causal.load(str(folder), Numerics("fp32")).context_window == 256


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelError, match="no weights in"):
        locate(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_refused(folder, file):
    edit_json(folder / file, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")

    with pytest.raises(ModelError, match=rf"{file} asks for code that comes with the model \(auto_map\)"):
        causal.load(str(folder))


def test_an_adapter_in_the_folder_is_refused_for_it_would_bring_another_base_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')

    with pytest.raises(ModelError, match="holds an adapter"):
        causal.load(str(folder))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)

    with pytest.raises(ModelError, match=r"config.json: not "):
        locate(str(folder))


def test_weights_that_are_missing_in_the_file_are_not_made_up(folder):
    """transformers draws what it does not find at random, and goes on with a warning."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"1 weights are missing in .*'model.layers.1.mlp.up_proj.weight'"):
        causal.load(str(folder), Numerics("fp32"))


@pytest.mark.parametrize("spoil", ["cut", "shape", "unknown"])
def test_a_damaged_or_unknown_model_is_an_error_of_ours(folder, spoil):
    if spoil == "cut":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif spoil == "shape":
        edit_json(folder / "config.json", intermediate_size=52)
    else:
        edit_json(folder / "config.json", model_type="nobody-knows")

    with pytest.raises(ModelError, match="cannot be loaded from"):
        causal.load(str(folder), Numerics("fp32"))


def test_the_digest_changes_with_weights_config_and_tokenizer_and_not_with_the_readme(folder):
    before = locate(str(folder)).sha256
    (folder / "README.md").write_text("x")
    assert locate(str(folder)).sha256 == before

    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
        assert locate(str(folder)).sha256 != before
        before = locate(str(folder)).sha256


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ml-100k", "'ml-100k' is a data set, not a model; give it to a task as dataset"),
        ("smollm2-135n", r"not a folder here, not embedded \(.*Did you mean 'smollm2-135m'\?\), and not a hub id"),
        ("./my-model", "no model './my-model': not a folder here"),
        ("a/b/c", "not a hub id of the form owner/name"),
    ],
)
def test_a_name_that_is_no_model_says_what_it_was_taken_for(name, says):
    with pytest.raises(ModelError, match=says):
        locate(name)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An address where nobody listens, and an empty hub cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def seconds_to_refuse(says: str) -> float:
    start = time.monotonic()
    with pytest.raises(ModelError, match=says):
        locate("someone/some-model")
    return time.monotonic() - start


def test_an_unreachable_hub_is_reported_within_seconds_with_what_was_tried(no_hub):
    says = r"no folder of that name and no copy in the hub cache, and the hub does not answer \(.*refused.*Give a local"

    assert seconds_to_refuse(says) < 5


def test_a_hub_that_is_switched_off_is_not_asked(no_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(models, "_ask_hub", lambda *_: pytest.fail("the hub was asked"))

    assert seconds_to_refuse(r"the hub is switched off \(HF_HUB_OFFLINE\)") < 5


def test_a_hub_that_takes_the_call_and_says_nothing_is_given_up(no_hub, monkeypatch):
    monkeypatch.setattr(models, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")

        assert seconds_to_refuse("the hub does not answer") < 5


def test_a_name_server_that_never_answers_is_not_waited_for(no_hub, monkeypatch):
    """Looking up a name blocks in the system, past any time limit of a socket."""
    released = threading.Event()
    monkeypatch.setattr(models, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(models, "_ask_hub", lambda *_: released.wait(8))

    assert seconds_to_refuse("the hub does not answer") < 5
    released.set()


def test_a_fresh_process_refuses_a_model_without_a_hub_in_seconds(tmp_path):
    """The libraries retry for half a minute when they meet this themselves. Start and imports counted."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = "from fewrec_prompt.backends.models import locate; locate('someone/some-model')"
    start = time.monotonic()

    done = subprocess.run([sys.executable, "-c", command], env=settings, capture_output=True, text=True, check=False)

    assert "ModelError: no model 'someone/some-model'" in done.stderr
    assert time.monotonic() - start < 5


# --- number formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "lacking", "says"),
    [
        ("fp16", "cpu", None, r"unknown precision 'fp16'; known: auto, bf16, fp32, int4, int8. Did you mean"),
        ("int8", "cpu", "bitsandbytes", r"precision 'int8' \(asked for\) cannot be had on cpu: bitsandbytes is not"),
        ("int4", "cpu", "bitsandbytes", r"precision 'int4' \(asked for\) cannot be had on cpu: bitsandbytes is not"),
        ("auto", "cuda", "bitsandbytes", r"precision 'int8' \(auto on a CUDA GPU.*\) cannot be had on cuda"),
        ("int8", "cpu", "avx512", "bitsandbytes needs AVX-512 for 8-bit on a CPU; use --precision fp32"),
        ("bf16", "cuda", "bf16", "this GPU has no bf16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_an_error_and_nothing_else_is_used(monkeypatch, name, device, lacking, says):
    monkeypatch.setattr(precision, "find_spec", lambda _: None if lacking == "bitsandbytes" else "there")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: lacking != "bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": lacking != "avx512"})

    with pytest.raises(ModelError, match=says):
        precision.choose_precision(Numerics(name), device)


@pytest.mark.parametrize(
    ("device", "abilities", "chosen"),
    [
        ("cuda", {}, "int8"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ("cpu", {}, "fp32"),
    ],
)
def test_auto_follows_one_rule_and_says_which(monkeypatch, device, abilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    monkeypatch.setattr(precision, "find_spec", lambda _: "there")

    mode = precision.choose_precision(Numerics(), device)

    assert mode.precision == chosen
    assert mode.reason.startswith("auto on a ")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    for device in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(ModelError, match=rf"device '{device}' is not available here; known: cpu"):
            precision.choose_device(device)
    assert precision.choose_device(None) == "cpu"


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert precision.choose_device(None) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert precision.choose_device(None) == "cuda:1"
    assert precision.choose_device("cpu") == "cpu"
    assert precision.loading_options(precision.NumericMode("bf16", "a test", "cuda:1"))["device_map"] == {"": "cuda:1"}


@pytest.mark.parametrize(
    ("name", "asked", "dtype", "threshold"),
    [
        ("fp32", None, torch.float32, None),
        ("bf16", None, torch.bfloat16, None),
        ("int8", None, torch.int8, precision.INT8_THRESHOLD),
        ("int8", 0.0, torch.int8, 0.0),
        ("int8", 4.5, torch.int8, 4.5),
    ],
)
def test_what_is_recorded_is_what_was_used(folder, name, asked, dtype, threshold):
    if precision._missing(name, "cpu"):
        pytest.skip("this machine has no 8-bit on its CPU")

    backend = causal.load(str(folder), Numerics(name, int8_threshold=asked))

    assert backend.mode.precision == name
    assert backend.mode.attention == backend.model.config._attn_implementation == attention.NAME
    assert backend.mode.int8_threshold == threshold
    weights = backend.model.model.layers[0].mlp.up_proj.weight
    assert weights.dtype == dtype
    if threshold is not None:
        assert backend.model.config.quantization_config.llm_int8_threshold == threshold


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp16"}, "unknown precision 'fp16'; known: auto, bf16, fp32, int4, int8"),
        (
            {"unit": "canonicle"},
            "unknown unit 'canonicle'; known: auto, canonical, throughput. Did you",
        ),
        ({"precision": "int8", "int8_threshold": -1.0}, "int8 threshold -1.0: give a finite number from 0"),
        ({"precision": "int8", "int8_threshold": float("nan")}, "int8 threshold nan"),
        ({"precision": "bf16", "int8_threshold": 6.0}, "an int8 threshold says nothing about bf16"),
        ({"token_budget": 0}, "token budget 0: give a whole number of tokens from 1"),
        ({"token_budget": 1e3}, "token budget 1000.0"),
        ({"token_budget": True}, "token budget True"),
    ],
)
def test_numbers_that_no_machine_could_follow_are_refused_where_they_are_given(changes, says):
    with pytest.raises(ModelError, match=says):
        Numerics(**changes)
    with pytest.raises(ModelError, match=says):
        Recommender.load("./no-such-model", **changes)


@pytest.mark.parametrize(
    ("asked", "device", "unit"),
    [
        ("auto", "cpu", "canonical"),
        ("auto", "cuda", "throughput"),
        ("auto", "cuda:1", "throughput"),
        ("throughput", "cpu", "throughput"),
        ("canonical", "cuda", "canonical"),
    ],
)
def test_a_unit_is_what_was_asked_else_what_suits_the_device(asked, device, unit):
    mode = precision.choose_precision(Numerics("fp32", unit=asked, token_budget=512), device)

    assert mode.to_dict().items() >= {"unit": unit, "token_budget": 512}.items()


def test_a_threshold_is_refused_where_auto_comes_to_something_else(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)

    with pytest.raises(ModelError, match=r"precision is 'fp32' \(auto on a CPU.*\); ask for precision int8"):
        precision.choose_precision(Numerics(int8_threshold=6.0), "cpu")


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_quantized_model_is_packed_and_ranks(tmp_path, name):
    if precision._missing(name, "cpu"):
        pytest.skip("this machine has no 8-bit on its CPU")
    folder = save_model(tmp_path, hidden_size=64, intermediate_size=64, num_key_value_heads=4)

    made = Recommender.load(str(folder), precision=name)

    assert made.backend.mode.layout == "packed"
    assert len(made.rank(history=TITLES[:2], candidates=TITLES[2:]).items) == 5


def test_a_family_without_fused_attention_loads_and_its_record_says_so(tmp_path):
    """Asking for sdpa by name refused Gemma 2, which has no such thing."""
    save_model(tmp_path, "gemma2", **FAMILIES["gemma"], sliding_window=16)
    lines = []

    backend = causal.load(str(tmp_path), Numerics("fp32"), say=lines.append)

    assert (backend.mode.attention, backend.mode.layout) == ("eager", "expanded")
    assert f"{causal.SLOWER['expanded']}, because its layers are full_attention, sliding_attention" in lines[-1]


def test_what_16_bits_do_to_a_layout_is_told_and_not_judged_by(tmp_path):
    folder, said = save_model(tmp_path / "made"), {"bf16": [], "fp32": []}
    for name, lines in said.items():
        assert causal.load(str(folder), Numerics(name), say=lines.append).mode.layout == "packed"

    assert any(re.search(r"differ by up to (0\.\d+|\d\.?\de-\d+) nats", line) for line in said["bf16"])
    assert not any("differ by" in line for line in said["fp32"])
