"""Learnt weights as a file: safetensors, and a disk that refuses is named as everywhere."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

_REFUSED = re.compile(r"os error (\d+)")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, note: str | None = None) -> None:
    """Write tensors by name, and a note beside them. Raises OSError where the disk refuses, as `open` would.

    safetensors has an error of its own for that, which says the system's number in words.
    """
    here = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    try:
        save_file(here, path, metadata=None if note is None else {"note": note})
    except SafetensorError as error:
        refused = _REFUSED.search(str(error))
        raise OSError(int(refused[1]) if refused else errno.EIO, str(error)) from error
