"""What a training needs of a model and of its steps, known before anything is asked or trained."""

from __future__ import annotations

from itertools import chain

import torch

from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.errors import FewrecError, ModelError
from fewrec_prompt.tuning.settings import METHODS, Settings
from fewrec_prompt.types import Message, Prompt, Question, TemplateRef

FEWEST_STEPS = 4  # of AdaLoRA
SAME, NEARLY = 1e-2, 0.25  # nats that rounding may make of an answer, in 32 bits and in fewer
_NOWHERE = TemplateRef("probe", "probe", "")
_PROBE = [
    Question(Prompt((Message("plain", text),), "", _NOWHERE), (" a", " b c d")) for text in ("a", "a b c d e f g h")
]


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
    if settings.checkpointing and mode.layout == "expanded" and not METHODS[settings.method].classifies:
        raise ModelError(
            "gradient checkpointing drops the keys and values that this model's candidates stand behind (its layout is "
            "'expanded'); leave it out"
        )
    if method == "prefix":
        _check_prefix(backend, settings.tokens)
    if method == "adalora" and n_steps < FEWEST_STEPS:
        raise ModelError(
            f"adalora plans its ranks over {n_steps} steps, and needs {FEWEST_STEPS}; give more epochs or shots"
        )


def _check_prefix(backend: LocalBackend, n_tokens: int) -> None:
    """Raises ModelError where not every layer keeps as many keys and values, or questions behind them go wrong.

    Two of unlike length are asked together and alone: a family may fill a cache and take no mask that knows of it.
    """
    try:
        with torch.no_grad():
            kept = backend.keys_and_values((0,) * n_tokens)
            behind = backend.view(soft=kept)
            together, alone = behind.logprobs(_PROBE), [behind.logprobs([one])[0] for one in _PROBE]
    except FewrecError:
        raise
    except Exception as error:  # an architecture that has never been met may fail in any way
        raise ModelError(
            f"nothing can be asked behind keys and values in this model ({type(error).__name__}: {error}); take "
            "soft-prompt or lora"
        ) from error
    shapes = {half.shape for layer in kept.layers for half in layer}
    if (fewest := min(shape[-2] for shape in shapes)) < n_tokens:
        raise ModelError(f"a layer of this model looks back on {fewest} tokens, not {n_tokens}; ask for fewer --tokens")
    if len(shapes) > 1:
        raise ModelError("'prefix' needs keys and values of one shape in all layers; take soft-prompt or lora")
    pairs = zip(chain(*together), chain(*alone), strict=True)
    apart = max(float(abs(one - other).max()) for one, other in pairs)
    if apart > (SAME if backend.mode.precision == "fp32" else NEARLY):
        raise ModelError(
            f"behind keys and values, answers of this model depend on what else is asked (by {apart:.2g} nats); take "
            "soft-prompt or lora"
        )
