"""What a training needs of a model and of its steps, known before anything is asked or trained."""

from __future__ import annotations

import torch

from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.errors import ModelError
from fewrec_prompt.tuning.settings import METHODS, Settings

FEWEST_STEPS = 4  # of AdaLoRA


def check_ahead(settings: Settings, backend: Backend, n_steps: int) -> None:
    """Raises ModelError for a model that the method cannot learn in, and where AdaLoRA has too few steps."""
    method = METHODS[settings.method].inside
    if method is None:  # nothing is learnt in the model
        return
    if not isinstance(backend, LocalBackend):
        raise ModelError(
            f"{settings.method!r} changes a model that runs here, and this is a {type(backend).__name__}; take demos "
            "or mix"
        )
    mode = backend.mode
    if method == "full" and mode.precision != "fp32":
        raise ModelError(
            f"{settings.method!r} changes the model's own weights, which takes fp32, and this model is in "
            f"{mode.precision}; ask for --precision fp32, or take {settings.method.replace('full', 'lora')}"
        )
    if settings.checkpointing and mode.layout == "expanded":
        raise ModelError(
            "gradient checkpointing drops the keys and values that this model's candidates stand behind (its layout is "
            "'expanded'); leave it out"
        )
    if method == "prefix":
        with torch.no_grad():
            backend.keys_and_values((0,))  # or it says why not
    if method == "adalora" and n_steps < FEWEST_STEPS:
        raise ModelError(
            f"adalora plans its ranks over {n_steps} steps, and needs {FEWEST_STEPS}; give more epochs or shots"
        )
