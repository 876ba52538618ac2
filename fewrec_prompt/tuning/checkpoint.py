"""A training that was interrupted goes on from here as if it had not been: weights, optimizer and chance, in one file.

safetensors with a JSON note; no pickle is read or written. PEFT cannot resume prompt learning and drops P-tuning's
network, so what an adapter folder holds would not do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fewrec_prompt.errors import RunError
from fewrec_prompt.files import replaced
from fewrec_prompt.tuning.methods import Tensors
from fewrec_prompt.tuning.weights import save_tensors

FILE = "training.safetensors"


def save(folder: Path, groups: Mapping[str, Tensors], note: Mapping[str, Any]) -> None:
    """Write the tensors of each group, and a note that says where training stands, whole or not at all."""
    tensors = {f"{group}/{name}": values for group, named in groups.items() for name, values in named.items()}
    with replaced(folder / FILE) as part:
        save_tensors(tensors, part, json.dumps(note, allow_nan=False))


def load(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """What was saved; None if nothing was. Raises RunError for a file that cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {})["note"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove the folder to train anew") from error
    groups: dict[str, Tensors] = {}
    for name, values in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = values
    return groups, note


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's state, by place of the weights and name."""
    state = optimizer.state_dict()["state"]
    return {f"{place}.{name}": torch.as_tensor(value) for place, own in state.items() for name, value in own.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
