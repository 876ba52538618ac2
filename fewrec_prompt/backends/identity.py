"""The name of an answer: a digest of everything that decides its bits, for answers that are kept beyond their process.

In it: token ids, what the model is made of, how, on what and by which code it computes. Not in it: who asks, which
template wrote the text, the order of questions, names of files and folders, time. Where a fact is in doubt it is in: a
name too many costs a computation, a name too few would give one model's answers for another's.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from fewrec_prompt.backends import Identity
from fewrec_prompt.backends.models import ModelFiles
from fewrec_prompt.backends.plan import TokenSequence, place
from fewrec_prompt.backends.precision import NumericMode

SCHEMA = 1
SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
"""Environment variables by which libraries choose other kernels."""


def identify(sequences: Sequence[TokenSequence], facts: Mapping[str, Any]) -> Identity:
    """The name of the answers to these sequences, computed together under these facts (JSON-ready).

    Sequences count in the order of their tokens, as they are planned: whoever comes first, the bits are the same. Which
    tokens are a label, a title or its end is in `scored_from`.
    """
    order = sorted(range(len(sequences)), key=lambda at: place(sequences[at]))
    asked = [place(sequences[at]) for at in order]
    whole = {"schema": SCHEMA, "sequences": asked, "facts": facts}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Identity(sha256(text.encode()).hexdigest(), tuple(order))


@dataclass(frozen=True, slots=True)
class Made:
    """A model and how it computes. `adapter` and `prefix` are digests of what was learned, inside and before it."""

    model: Any
    files: ModelFiles | None
    mode: NumericMode
    token_budget: int
    adapter: str | None = None
    prefix: str | None = None
    bare: bool = False  # it has adapters inside, and all of them are off

    def name(self, sequences: Sequence[TokenSequence]) -> Identity | None:
        """The name of the answers to these sequences, asked together; None where nothing says what the model is.

        That is a model made in memory, one with adapters of unknown content, or one in training.
        """
        unknown = is_tuned(self.model) and self.adapter is None and not self.bare
        if self.files is None or unknown or self.model.training:
            return None
        return identify(sequences, self._facts(self.files))

    def _facts(self, files: ModelFiles) -> dict[str, Any]:
        return {
            "model": files.sha256,
            "adapter": self.adapter,
            "prefix": self.prefix,
            "computation": computation(self.mode, self.token_budget),
            "machine": machine(self.model),
            "libraries": libraries(self.mode.precision),
            "code": CODE,
        }


def computation(mode: NumericMode, token_budget: int) -> dict[str, Any]:
    """How the tokens of a unit go through the model. The budget counts only where it decides what shares a pass."""
    lays_out = mode.unit == "throughput" or mode.layout not in ("packed", "plain")
    return {
        "precision": mode.precision,
        "attention": mode.attention,
        "int8_threshold": mode.int8_threshold,
        "layout": mode.layout,
        "unit": mode.unit,
        "token_budget": token_budget if lays_out else None,
    }


def machine(model: Any) -> dict[str, Any]:
    """What the model runs on, by class and ability; not which of several alike."""
    kinds = {weights.device for weights in model.parameters() if weights.device.type != "meta"}
    return {
        "devices": sorted({json.dumps(_device(device), sort_keys=True) for device in kinds}),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "onednn": torch.backends.mkldnn.enabled,
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def _device(device: torch.device) -> list[Any]:
    if device.type == "cuda":
        name, ability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return ["cuda", name, list(ability), torch.version.cuda, torch.backends.cudnn.version()]  # type: ignore[no-untyped-call]
    if device.type == "cpu":
        # sums may be cut into as many parts as there are threads
        return ["cpu", _processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    return [device.type, platform.platform()]


@cache
def _processor() -> dict[str, Any]:
    """Name, caches and instruction sets of the processor: libraries choose kernels by all of them."""
    abilities = torch.cpu.get_capabilities()
    known = {name: value for name, value in abilities.items() if value and not name.startswith("num_")}
    return {"architecture": platform.machine(), "cpu_name": platform.processor()} | known


def libraries(precision: str) -> dict[str, str]:
    """Versions of what computes."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if precision in ("int8", "int4"):
        found["bitsandbytes"] = version("bitsandbytes")
    return found


def source(folder: Path) -> str:
    """sha256 of our version and of the engine's own source: after a change nothing older is taken for its answer."""
    whole = sha256(version("fewrec-prompt").encode())
    for path in sorted(folder.glob("*.py")):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


CODE = source(Path(__file__).parent)  # read when it is imported, for later it may be edited


def is_tuned(model: Any) -> bool:
    """Whether adapters sit inside the model, so that its files no longer say what it is."""
    return bool(getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False))
