"""Which number format a model runs in: what was asked for, what this machine can do, and why one was chosen.

Nothing is substituted silently: `auto` follows a fixed rule and says what it chose, a format asked for by name that
this machine lacks is an error.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from fewrec_prompt.errors import ModelError, did_you_mean

PrecisionName = Literal["auto", "fp32", "bf16", "int8", "int4"]
UnitName = Literal["auto", "canonical", "throughput"]
USERS_PER_UNIT = 32  # of a throughput unit
INT8_THRESHOLD = 0.0  # measured: docs/LOG.md


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a person may ask about numbers and layout. The default leaves every choice to the machine.

    `int8_threshold` belongs to int8: activations above it stay in 16 bits, 0 leaves none out (LLM.int8, Dettmers et al.
    2022, arXiv 2208.07339). `unit` says what is computed together: one user's questions (canonical, the choice on a
    CPU) or those of several (throughput, on a GPU). `token_budget` bounds the tokens of a forward pass. Raises
    ModelError for values that no machine could follow.
    """

    precision: str = "auto"
    device: str | None = None
    int8_threshold: float | None = None
    unit: str = "auto"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        _check_name("precision", self.precision, get_args(PrecisionName))
        _check_name("unit", self.unit, get_args(UnitName))
        threshold, budget = self.int8_threshold, self.token_budget
        if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
            raise ModelError(f"int8 threshold {threshold}: give a finite number from 0, such as 0 or 6")
        if threshold is not None and self.precision not in ("int8", "auto"):
            raise ModelError(f"an int8 threshold says nothing about {self.precision}; ask for precision int8")
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise ModelError(f"token budget {budget!r}: give a whole number of tokens from 1, such as 4096")


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ModelError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")


AUTO = Numerics()


@dataclass(frozen=True, slots=True)
class NumericMode:
    """Everything that decides the bits of a log-probability besides weights and token ids. Part of every run record.

    `reason` says why the precision was chosen. `attention` is ours where a model takes it, else transformers'.
    """

    precision: str
    reason: str
    device: str
    attention: str = "none"
    int8_threshold: float | None = None
    layout: str = "packed"
    unit: str = "canonical"
    token_budget: int | None = None

    @property
    def batch_invariant(self) -> bool:
        """Whether each sequence of a batch is computed as if it were alone.

        LLM.int8 with a threshold is not: which columns stay in 16 bits is decided over the whole pass. That a mode is
        says nothing about rounding, which differs from one layout of a pass to another: see docs/precision.md.
        """
        return not self.int8_threshold

    @property
    def users_per_unit(self) -> int:
        """How many users are asked together: one, or enough to fill several passes."""
        return USERS_PER_UNIT if self.unit == "throughput" else 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"batch_invariant": self.batch_invariant}


def numeric_mode(asked: Numerics) -> NumericMode:
    """The numeric mode that this machine gives to a request. Raises ModelError if it cannot be had."""
    return choose_precision(asked, choose_device(asked.device))


def choose_device(asked: str | None) -> str:
    """ "cuda" where there is one, else "cpu", unless asked for by name. Raises ModelError if it is not there.

    Of several processes on a machine (torchrun and accelerate number them in LOCAL_RANK) each has a GPU of its own.
    """
    import torch

    available = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    if asked is None:
        if "cuda" not in available:
            return "cpu"
        rank = os.environ.get("LOCAL_RANK")
        return "cuda" if rank is None else f"cuda:{rank}"
    if asked.partition(":")[0] not in available:
        raise ModelError(f"device {asked!r} is not available here; {did_you_mean(asked, available)}")
    return asked


def choose_precision(asked: Numerics, device: str) -> NumericMode:
    """The numeric mode for this request on this device. Raises ModelError if it cannot be had."""
    name, reason = _automatic(device) if asked.precision == "auto" else (asked.precision, "asked for")
    if problem := _missing(name, device):
        raise ModelError(f"precision {name!r} ({reason}) cannot be had on {device}: {problem}; use --precision fp32")
    threshold = asked.int8_threshold
    if name != "int8" and threshold is not None:
        raise ModelError(f"an int8 threshold was given, but precision is {name!r} ({reason}); ask for precision int8")
    if name == "int8" and threshold is None:
        threshold = INT8_THRESHOLD
    unit = asked.unit if asked.unit != "auto" else "throughput" if device.startswith("cuda") else "canonical"
    return NumericMode(name, reason, device, int8_threshold=threshold, unit=unit, token_budget=asked.token_budget)


def _automatic(device: str) -> tuple[str, str]:
    if device.startswith("cuda"):
        return "int8", "auto on a CUDA GPU: 8-bit by bitsandbytes"
    if _bf16_is_fast():
        return "bf16", "auto on a CPU that is fastest in bf16"
    return "fp32", "auto on a CPU that is fastest in fp32"


def _bf16_is_fast() -> bool:
    """Where bf16 was measured to be faster than fp32 (docs/LOG.md): in tiles, and in AMD's AVX-512 instructions.

    Intel's AVX-512 instructions for bf16 reach 0.6 of its rate in fp32.
    """
    import torch

    abilities = torch.cpu.get_capabilities()
    intel = str(abilities.get("cpu_name", "")).startswith("Intel")
    return bool(abilities.get("amx_bf16") or (abilities.get("avx512_bf16") and not intel))


def _missing(name: str, device: str) -> str | None:
    """What this machine lacks for the format, or None."""
    import torch

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
    import torch
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line a product, one for kernels
    device_map = {"": mode.device} if mode.device != "cuda" else "auto"
    options: dict[str, Any] = {"device_map": device_map}
    if mode.precision in ("fp32", "bf16"):
        return options | {"dtype": torch.float32 if mode.precision == "fp32" else torch.bfloat16}
    quantization = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=mode.int8_threshold)
        if mode.precision == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    )
    # 8-bit on a CPU computes around fp32 activations; on a GPU bf16 is what the kernels were made for.
    dtype = torch.float32 if mode.device == "cpu" and mode.precision == "int8" else torch.bfloat16
    return options | {"dtype": dtype, "quantization_config": quantization}
