"""What was learnt comes back as it was, or not at all: files, bindings, configurations, several on one model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import FILMS, save_model
from safetensors.torch import load_file, save_file
from test_tuning import METHODS, examples, settings

from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import AdapterError
from fewrec_prompt.few_shot import save_tuned
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.adapters import CONFIG, NOTE, WEIGHTS, bindings
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune_together
from fewrec_prompt.tuning.placing import adapted, merge

QUERY = examples()[1].query
ABOUT = {"tasks": {"made": {"row": {"prompt": "films-complete"}, "shots": 6}}}


def load(folder: Path, prompt: str = "films-complete", **choice: Any) -> Recommender:
    template, reader, calibration = choose(prompt, None, choice.get("calibrate", "none"), None, None)
    backend = causal.load(str(folder), Numerics("fp32", "cpu"))
    return Recommender(template, reader, backend, FILMS, calibration)


def scores(recommender: Recommender) -> np.ndarray:
    return np.asarray(recommender.scores(recommender.answers(QUERY)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """An adapter of every method, and how the recommender that learnt it scored."""
    folder, found = tmp_path_factory.mktemp("adapters"), {}
    for method in METHODS:
        start = load(base)
        bound = {"made": bindings(start)}
        tuned = tune_together([Lesson(start, tuple(examples()), name="made")], settings(method, epochs=3))
        save_tuned(folder / method, tuned, bound, ABOUT | tuned.to_dict())
        found[method] = (folder / method, scores(tuned.recommender))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_scores_as_it_did(method: str, base: Path, made: dict[str, Any]) -> None:
    folder, before = made[method]
    start = load(base)
    untuned = scores(start)
    found = adapted(start, folder)
    assert np.abs(scores(found.recommender) - before).max() < 1e-5
    assert np.array_equal(scores(start), untuned)
    assert not np.allclose(untuned, before)


def test_several_adapters_answer_in_turn_on_one_model(base: Path, made: dict[str, Any]) -> None:
    start = load(base)
    untuned = scores(start)
    several = {method: start.adapted(made[method][0]) for method in ("soft-prompt", "lora", "prefix")}
    assert len({id(one.backend.model) for one in several.values()}) == 1
    for method in ("lora", "soft-prompt", "prefix", "lora", "soft-prompt"):
        assert np.abs(scores(several[method]) - made[method][1]).max() < 1e-5
        assert np.array_equal(scores(start), untuned)


def test_two_low_rank_adapters_do_not_mix(base: Path, made: dict[str, Any]) -> None:
    start = load(base)
    one, two = start.adapted(made["lora"][0]), start.adapted(made["lora"][0])
    assert np.array_equal(scores(one), scores(two))
    assert one.backend.identity(one.questions(QUERY)) == two.backend.identity(two.questions(QUERY))
    assert one.backend.identity(one.questions(QUERY)) != start.backend.identity(start.questions(QUERY))


@pytest.mark.parametrize("method", ["lora", "adalora", "full"])
def test_a_merged_model_needs_no_adapter(method: str, base: Path, made: dict[str, Any], tmp_path: Path) -> None:
    merged = merge(load(base), made[method][0], tmp_path / "merged")
    assert np.abs(scores(load(merged)) - made[method][1]).max() < 1e-4


@pytest.mark.parametrize("method", ["soft-prompt", "p-tuning", "prefix"])
def test_virtual_tokens_are_not_merged(method: str, base: Path, made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(load(base), made[method][0], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["soft-prompt", "lora", "adalora"])
def test_peft_reads_what_is_saved(method: str, base: Path, made: dict[str, Any]) -> None:
    check_peft_reads(made[method][0], causal.load(str(base), Numerics("fp32", "cpu")).model)


def check_peft_reads(folder: Path, model: torch.nn.Module) -> None:
    """PEFT puts all that was saved into the model: what it does not know it would leave out with a warning."""
    from peft import PeftModel

    found = PeftModel.from_pretrained(model, str(folder))
    weights = {name: values for name, values in found.state_dict().items() if "lora" in name or "prompt" in name}
    saved = load_file(folder / WEIGHTS)
    assert sum(v.abs().sum() for v in weights.values()) == pytest.approx(
        float(sum(v.abs().sum() for v in saved.values()))
    )


# --- damaged ---


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


@pytest.mark.parametrize("kind", ["cut", "header", "data"])
def test_damaged_weights_are_refused(kind: str, made: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(made["lora"][0], tmp_path)
    path, whole = folder / WEIGHTS, (made["lora"][0] / WEIGHTS).read_bytes()
    n_header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    low, high = (0, n_header) if kind == "header" else (n_header, len(whole))
    refused = 0
    for _ in range(300):
        at = int(rng.integers(0, len(whole))) if kind == "cut" else int(rng.integers(low, high))
        damaged = (
            whole[:at] if kind == "cut" else whole[:at] + bytes([whole[at] ^ (1 << rng.integers(8))]) + whole[at + 1 :]
        )
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match="changed since it was written"):
            adapters.read(folder)
        refused += 1
    assert refused == 300


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the note as somebody would who knows how it is sealed."""
    note = json.loads((folder / NOTE).read_text())
    del note["seal"]
    for name in note["files"]:
        note["files"][name] = adapters._sealed(folder / name)
    change(note)
    (folder / NOTE).write_text(json.dumps(note | {"seal": adapters._seal(note)}))


FIELDS: dict[str, Any] = {
    "weights": "0" * 64,
    "config": "0" * 64,
    "tokenizer": "0" * 64,
    "chat_template": "0" * 64,
    "template": {"name": "films-complete", "sha256": "0" * 64},
    "verbalizer": {"kind": "complete", "length": "mean"},
    "labels": [[1], [2]],
    "precision": {"name": "int8", "int8_threshold": 0.0},
    "versions": {"fewrec-prompt": "0.0", "peft": "0.1"},
    "calibration": {"name": "pmi", "alpha": 0.5},
    "domain": {"singular": "book", "plural": "books", "verb": "read"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_each_binding_is_held_by_name(name: str, base: Path, made: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(made["soft-prompt"][0], tmp_path)
    resealed(folder, lambda note: note["bound"]["made"].update({name: FIELDS[name]}))
    with pytest.raises(AdapterError, match=f"with something else than it is to be used with: {name} was"):
        adapted(load(base), folder)
    forced = adapted(load(base), folder, force=True)
    assert [line.split()[0] for line in forced.forced] == [name]
    assert forced.to_dict()["forced"] == list(forced.forced)


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(2, 2)


def _wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.ones(3, 3)


def _number(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[sorted(tensors)[0]].view(-1)[0] = value

    return change


def _other(tensors: dict[str, torch.Tensor]) -> None:
    for values in tensors.values():
        values.mul_(-3.0)


CONTENTS = {
    "a missing weight": (_drop, "not those that its configuration describes"),
    "a weight too many": (_add, "not those that its configuration describes"),
    "another shape": (_wrong_shape, "not those that its configuration describes"),
    "not a number": (_number(float("nan")), "not all finite"),
    "infinite": (_number(float("inf")), "not all finite"),
    "other numbers": (_other, "other scores"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_wrong_contents_are_refused_under_a_good_seal(
    what: str, base: Path, made: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied(made["lora"][0], tmp_path)
    change, message = CONTENTS[what]
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    resealed(folder, lambda note: None)
    with pytest.raises(AdapterError, match=message):
        adapted(load(base), folder)


def test_a_pickle_beside_good_weights_is_refused(base: Path, made: dict[str, Any], tmp_path: Path) -> None:
    for suffix in adapters.PICKLES:
        folder = copied(made["lora"][0], tmp_path)
        (folder / f"adapter_model{suffix}").write_bytes(b"\x80\x04")
        with pytest.raises(AdapterError, match="may run code"):
            adapters.read(folder)
        shutil.rmtree(folder)


HOSTILE: list[dict[str, Any]] = [
    {"base_model_name_or_path": "/etc"},
    {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
    {"target_modules": ".*"},
    {"target_modules": "all-linear"},
    {"target_modules": []},
    {"target_modules": ["q_proj", "(.*)"]},
    {"target_modules": ["../x"]},
    {"modules_to_save": ["lm_head"]},
    {"r": 0},
    {"r": 100_000},
    {"r": "8"},
    {"r": True},
    {"lora_alpha": -1},
    {"lora_alpha": "8"},
    {"lora_dropout": 2e9},
    {"bias": "all"},
    {"use_dora": True},
    {"init_lora_weights": "eva"},
    {"layers_to_transform": [0]},
    {"layer_replication": [[0, 1]]},
    {"megatron_core": "os.path"},
    {"revision": "main; rm"},
    {"peft_type": "IA3"},
    {"task_type": "SEQ_CLS"},
    {"unheard_of": 1},
]


@pytest.mark.parametrize(
    "change", HOSTILE, ids=lambda change: f"{next(iter(change))}={next(iter(change.values()))}"[:40]
)
def test_a_configuration_that_asks_for_more_is_refused(
    change: dict[str, Any], base: Path, made: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied(made["lora"][0], tmp_path)
    config = json.loads((folder / CONFIG).read_text()) | change
    (folder / CONFIG).write_text(json.dumps(config))
    resealed(folder, lambda note: None)
    with pytest.raises(AdapterError, match=next(iter(change))):
        adapted(load(base), folder)


def test_an_adapter_is_never_written_over(base: Path, made: dict[str, Any]) -> None:
    folder, _ = made["lora"]
    before = (folder / NOTE).read_bytes()
    with pytest.raises(AdapterError, match="exists already"):
        adapters.save(folder, "lora", {}, {"a": torch.ones(1)}, about={})
    assert (folder / NOTE).read_bytes() == before


def test_a_model_made_in_memory_binds_nothing() -> None:
    from test_tuning import recommender

    with pytest.raises(AdapterError, match="made in memory"):
        bindings(recommender())
