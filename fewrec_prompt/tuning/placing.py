"""Put weights that were saved on a model again, after everything that binds them was checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.prefix import SoftTokens
from fewrec_prompt.backends.switching import UNNAMED, no_false_alarms
from fewrec_prompt.errors import AdapterError, ModelError, did_you_mean
from fewrec_prompt.files import made_folder, new_folder
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.adapters import Adapter, check_bindings, check_probes, probes_apart, read
from fewrec_prompt.tuning.classifiers import below, classifier_of
from fewrec_prompt.tuning.classifying import classified, n_classes_of
from fewrec_prompt.tuning.methods import unflat
from fewrec_prompt.tuning.peft_configs import prefix_as_used
from fewrec_prompt.tuning.settings import CLASSIFIERS

_MERGED = ("lora", "adalora", "full")
_MODULE = re.compile(r"[A-Za-z0-9_.]{1,200}")


@dataclass(frozen=True, slots=True)
class Adapted:
    """A recommender with learnt weights, and what a record says of them."""

    recommender: Recommender
    adapter: Adapter
    forced: tuple[str, ...]  # bindings that did not hold and were overruled
    apart: float  # nats: how far its saved questions score from what they did

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        adapter = self.adapter
        note = {"name": adapter.folder.name, "method": adapter.method, "sha256": adapter.sha256}
        return note | {"forced": list(self.forced)}


def adapted(recommender: Recommender, folder: Path | str, *, force: bool = False) -> Adapted:
    """The recommender with the weights of this folder; several may be on one model, switched from answer to answer.

    Raises AdapterError for files that are damaged, bindings that do not hold (unless forced), and saved questions that
    get other scores than they got.
    """
    adapter = read(Path(folder))
    if adapter.method == "mix":
        raise AdapterError(
            f"{adapter.folder}: is a mix of rows, and no part of one; use it by fewrec eval --adapter, or from Python "
            "with fewrec_prompt.tuning.mixed.MixRecommender.load"
        )
    held = check_bindings(adapter, recommender, force=force)
    made = _placed(adapter, recommender)
    apart = 0.0 if held.broken else check_probes(adapter, held.task, made)
    return Adapted(made, adapter, held.broken, apart)


def _placed(adapter: Adapter, recommender: Recommender) -> Recommender:
    backend = recommender.backend
    assert isinstance(backend, LocalBackend), "bindings were checked"
    if adapter.method in CLASSIFIERS:
        return _classified(adapter, recommender, backend)
    if place := _PLACES.get(adapter.method):
        return replace(recommender, backend=place(adapter, backend))
    known = (*_PLACES, *CLASSIFIERS)
    raise AdapterError(
        f"{adapter.folder}: of the unknown method {adapter.method!r}; {did_you_mean(adapter.method, known)}"
    )


def merge(recommender: Recommender, folder: Path | str, out: Path, say: Say = quiet) -> Path:
    """Write the model with the weights of this folder inside, as a model folder that needs no adapter.

    They go into the recommender's own model, too; load it anew to have it as it was. What was learnt in another
    precision is merged into fp32 as well, and it is said how far that changes scores. Raises AdapterError for what
    stands before a prompt or reads hidden states, for any other binding that does not hold, and for a base that is not
    in fp32: merging into 8 or 4 bits rounds the weights away.
    """
    adapter = read(Path(folder))
    if adapter.method not in _MERGED:
        raise AdapterError(
            f"{folder}: what {adapter.method!r} learnt stands before or behind the model, which no model folder holds; "
            "it cannot be merged, and is used with --adapter"
        )
    held = check_bindings(adapter, recommender, force=False, but=("precision",))
    if (precision := recommender.backend.mode.precision) != "fp32":
        raise AdapterError(f"{folder}: merge into the base in fp32, not in {precision}: --precision fp32")
    if out.exists():
        raise AdapterError(f"{out}: exists already; name another folder")
    made = _placed(adapter, recommender)
    if (learnt_in := adapter.bound[held.task]["precision"]["name"]) == "fp32":
        check_probes(adapter, held.task, made)
    else:
        apart = probes_apart(adapter, held.task, made)
        say(
            f"{folder}: was learnt in {learnt_in} and is merged into fp32, so its scores will be a little different; "
            f"those of its saved questions are, by up to {apart:.2g} nats"
        )
    backend = made.backend
    assert isinstance(backend, LocalBackend), "it was just made"
    if adapter.method != "full":
        backend.switch.weights = UNNAMED
        backend.switch.use(backend.adapter_name)
        model = backend.switch.peft.merge_and_unload(adapter_names=[backend.adapter_name])
    else:
        model = backend.model
    made_folder(out.parent)
    with new_folder(out) as part:
        model.save_pretrained(part)
        backend.tokens.save(part)
    return out


def _virtual(adapter: Adapter, backend: LocalBackend) -> LocalBackend:
    vectors = _only(adapter, "prompt_embeddings")
    if vectors.ndim != 2 or vectors.shape[1] != backend.vector_width:
        raise AdapterError(
            f"{adapter.folder}: virtual tokens of shape {tuple(vectors.shape)}; the model's are "
            f"{backend.vector_width} wide"
        )
    return backend.view(soft=SoftTokens(vectors.to(backend.model.device)))


def _prefix(adapter: Adapter, backend: LocalBackend) -> LocalBackend:
    try:
        with torch.no_grad():
            layers = backend.keys_and_values((0,)).layers
    except ModelError as error:  # where bindings were overruled
        raise AdapterError(f"{adapter.folder}: {error}") from error
    values = prefix_as_used(_only(adapter, "prompt_embeddings"), len(layers), backend.task_type)
    n_heads, head_dim = layers[0][0].shape[1], layers[0][0].shape[3]
    if values.ndim != 2 or values.shape[1] != 2 * len(layers) * n_heads * head_dim:
        raise AdapterError(
            f"{adapter.folder}: keys and values of shape {tuple(values.shape)}; the model has {len(layers)} layers of "
            f"{n_heads} heads of {head_dim}"
        )
    on_device = values.to(backend.model.device, backend.model.dtype)
    return backend.view(soft=unflat(on_device, n_heads=n_heads, head_dim=head_dim))


def _low_rank(adapter: Adapter, backend: LocalBackend) -> LocalBackend:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name = backend.switch.add(peft_config(adapter, backend.task_type))
    peft = backend.switch.peft
    with no_false_alarms():
        own = get_peft_model_state_dict(peft, adapter_name=name)
    expected = {key: tuple(values.shape) for key, values in own.items()}
    found = {key: tuple(values.shape) for key, values in adapter.tensors.items()}
    if expected != found:
        backend.switch.drop(name)
        wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise AdapterError(
            f"{adapter.folder}: its weights are not those that its configuration describes, such as {wrong[0]!r}: "
            f"{found.get(wrong[0], 'missing')} for {expected.get(wrong[0], 'none')}"
        )
    set_peft_model_state_dict(peft, dict(adapter.tensors), adapter_name=name)
    _in_fp32(backend.model, name, adapter.tensors)
    backend.switch.use(None)
    return backend.view(adapter_name=name, adapter=adapter.sha256)


def _in_fp32(model: Any, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an adapter its weights once more: settling AdaLoRA's ranks, PEFT rounds all to what the model is in."""
    own = {
        ".".join(part for part in place.split(".") if part != name): weights
        for place, weights in model.named_parameters()
        if name in place.split(".")
    }
    learnt = {key.removeprefix("base_model.model."): values for key, values in tensors.items()}
    for place, weights in own.items():
        weights.data = learnt.get(place, weights.data).to(weights.device, torch.float32)


def _full(adapter: Adapter, backend: LocalBackend) -> LocalBackend:
    assert backend.files is not None, "bindings were checked"
    made = backend.anew()
    own = {name: tuple(weights.shape) for name, weights in made.model.named_parameters()}
    if own != {name: tuple(values.shape) for name, values in adapter.tensors.items()}:
        raise AdapterError(f"{adapter.folder}: its weights are not those of {backend.files.name}")
    made.model.load_state_dict(adapter.tensors, strict=False)  # buffers stay as they are
    made.switch.weights = adapter.sha256
    return made


_PLACES: Mapping[str, Callable[[Adapter, LocalBackend], LocalBackend]] = {
    "soft-prompt": _virtual,
    "p-tuning": _virtual,
    "prefix": _prefix,
    "lora": _low_rank,
    "adalora": _low_rank,
    "full": _full,
}


def _classified(adapter: Adapter, recommender: Recommender, backend: LocalBackend) -> Recommender:
    """A classifier over the model as it is, or with the weights that learnt below it."""
    if learnt := below(adapter):
        backend = _PLACES[learnt.method](learnt, backend)
    classifier = classifier_of(adapter, backend.state_width, n_classes_of(recommender))
    return classified(recommender, classifier, backend)


def _only(adapter: Adapter, name: str) -> torch.Tensor:
    if set(adapter.tensors) != {name}:
        raise AdapterError(
            f"{adapter.folder}: holds the weights {sorted(adapter.tensors)[:3]}; expected {name!r} alone"
        )
    return adapter.tensors[name]


def peft_config(adapter: Adapter, task_type: str) -> Any:
    """PEFT's configuration, put together anew from the few values that are ours to set.

    Raises AdapterError for every other value that is not PEFT's own default: a configuration can name code and paths.
    """
    from peft import AdaLoraConfig, LoraConfig

    kind = {"lora": LoraConfig, "adalora": AdaLoraConfig}[adapter.method]
    given = dict(adapter.config or {})
    checks = {**_SHARED, **(_ADAPTIVE if adapter.method == "adalora" else {})}
    plain = {field.name: field.default for field in fields(kind)}
    for name, value in given.items():
        if name in checks:
            if not checks[name](value):
                raise AdapterError(f"{adapter.folder}/adapter_config.json: {name} is {str(value)[:80]!r}")
        elif name in _SAID and _SAID[name](value):
            continue
        elif name not in plain or not _is_default(value, plain[name]):
            raise AdapterError(
                f"{adapter.folder}/adapter_config.json: {name} is {str(value)[:80]!r}; only plain low-rank "
                "adapters are used"
            )
    return kind(task_type=task_type, inference_mode=True, **{name: given[name] for name in checks if name in given})


def _is_default(value: Any, default: Any) -> bool:
    return value in (default, None, {}, []) or (isinstance(value, bool) and value is default)


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _modules(value: Any) -> bool:
    """Plain names: a text would be taken for a pattern."""
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) and _MODULE.fullmatch(n) for n in value)


def _pattern(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(
            isinstance(name, str) and isinstance(kept, list) and all(isinstance(one, bool) for one in kept)
            for name, kept in value.items()
        )
    )


_SHARED: Mapping[str, Callable[[Any], bool]] = {
    "r": _whole(1, 512),
    "lora_alpha": _number,
    "lora_dropout": _number,
    "target_modules": _modules,
    "fan_in_fan_out": lambda value: isinstance(value, bool),
}
_ADAPTIVE: Mapping[str, Callable[[Any], bool]] = {
    "target_r": _whole(1, 512),
    "init_r": _whole(1, 1024),
    "tinit": _whole(0, 10**9),
    "tfinal": _whole(0, 10**9),
    "total_step": _whole(1, 10**9),
    "rank_pattern": _pattern,
}
_SAID: Mapping[str, Callable[[Any], bool]] = {  # written for other tools; we set them ourselves
    "task_type": lambda value: value in ("CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"),
    "inference_mode": lambda value: value is True,
    "peft_type": lambda value: value in ("LORA", "ADALORA"),
    "peft_version": lambda value: isinstance(value, str),
}
