"""Which number format a model runs in: what was asked for, what this machine can do, and why one was chosen.

Nothing is substituted silently: `auto` follows a fixed rule and says what it chose, a format asked for by name that
this machine lacks is an error.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from fewrec_prompt.errors import ModelError, did_you_mean

PrecisionName = Literal["auto", "fp32", "bf16", "int8", "int4"]
USERS_PER_UNIT = 32  # of a throughput unit
INT8_THRESHOLD = (
    6.0  # LLM.int8's own default; activations above it stay in 16 bits (Dettmers et al. 2022, arXiv 2208.07339)
)


@dataclass(frozen=True, slots=True)
class NumericMode:
    """Everything that decides the bits of a log-probability besides weights and token ids. Part of every run record.

    `reason` says why the precision was chosen. `attention` is transformers' own choice for the model.
    """

    precision: str
    reason: str
    device: str
    attention: str = "none"
    int8_threshold: float | None = None
    layout: str = "packed"
    unit: str = "canonical"

    @property
    def users_per_unit(self) -> int:
        """How many users are asked together: one, or enough to fill several passes."""
        return USERS_PER_UNIT if self.unit == "throughput" else 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_device(asked: str | None) -> str:
    """ "cuda" where there is one, else "cpu", unless asked for by name. Raises ModelError if it is not there."""
    available = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    if asked is None:
        return "cuda" if "cuda" in available else "cpu"
    if asked.partition(":")[0] not in available:
        raise ModelError(f"device {asked!r} is not available here; {did_you_mean(asked, available)}")
    return asked


def choose_precision(asked: str, device: str) -> NumericMode:
    """The numeric mode for this request on this device. Raises ModelError if it cannot be had."""
    if asked not in get_args(PrecisionName):
        raise ModelError(f"unknown precision {asked!r}; {did_you_mean(asked, get_args(PrecisionName))}")
    name, reason = _automatic(device) if asked == "auto" else (asked, "asked for")
    if problem := _missing(name, device):
        raise ModelError(f"precision {name!r} ({reason}) cannot be had on {device}: {problem}; use --precision fp32")
    threshold = INT8_THRESHOLD if name == "int8" else None
    return NumericMode(precision=name, reason=reason, device=device, int8_threshold=threshold)


def _automatic(device: str) -> tuple[str, str]:
    if device.startswith("cuda"):
        return "int8", "auto on a CUDA GPU: 8-bit by bitsandbytes"
    if _bf16_on_cpu():
        return "bf16", "auto on a CPU with bf16 instructions"
    return "fp32", "auto on a CPU without bf16 instructions"


def _bf16_on_cpu() -> bool:
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def _missing(name: str, device: str) -> str | None:
    """What this machine lacks for the format, or None."""
    if name in ("int8", "int4"):
        if find_spec("bitsandbytes") is None:
            return "bitsandbytes is not installed (pip install bitsandbytes)"
        if device == "cpu" and name == "int8" and not torch.cpu.get_capabilities().get("avx512_f"):
            return "bitsandbytes needs AVX-512 for 8-bit on a CPU"
    if name == "bf16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return "this GPU has no bf16"
    return None


def loading_options(mode: NumericMode) -> dict[str, Any]:
    """Keyword arguments for transformers' `from_pretrained` that load weights in this mode."""
    from transformers import BitsAndBytesConfig

    device_map = {"": mode.device} if mode.device != "cuda" else "auto"
    options: dict[str, Any] = {"device_map": device_map}
    if mode.precision in ("fp32", "bf16"):
        return options | {"dtype": torch.float32 if mode.precision == "fp32" else torch.bfloat16}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line per matrix product otherwise
    quantization = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=mode.int8_threshold)
        if mode.precision == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    )
    # 8-bit on a CPU computes around fp32 activations; on a GPU bf16 is what the kernels were made for.
    dtype = torch.float32 if mode.device == "cpu" and mode.precision == "int8" else torch.bfloat16
    return options | {"dtype": dtype, "quantization_config": quantization}
