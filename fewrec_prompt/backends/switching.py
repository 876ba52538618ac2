"""Several adapters inside one model, of which one at a time is on: no base is loaded twice, none is left on by mistake.

Every backend over a model shares its switch and says before each answer which adapter it means.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fewrec_prompt.errors import ModelError

UNNAMED = "changed"  # in place of a digest: weights that nothing names
FALSE_ALARMS = (
    ".*is_gradient_checkpointing. is deprecated",  # it asks transformers by a name that has a newer one
    "The following rank_pattern keys did not match",  # it looks for AdaLoRA's layers before they are there
    ".*LoRA tensor.s. have invalid shape",  # where AdaLoRA took all rank away
    "You are trying to modify a model with PEFT for a second time",  # what is in it stays, and is off
)


@contextmanager
def no_false_alarms() -> Iterator[None]:
    """Within, PEFT does not warn of what is as it should be."""
    with warnings.catch_warnings():
        for message in FALSE_ALARMS:
            warnings.filterwarnings("ignore", message)
        yield


def in_peft(model: Any, config: Any, name: str = "default") -> Any:
    """The model as PEFT wraps it, with an adapter of this configuration."""
    from peft import get_peft_model

    with no_false_alarms():
        return get_peft_model(model, config, adapter_name=name)


def _as_it_was_asked(_layer: Any, asked: tuple[Any, ...], answer: Any) -> Any:
    """AdaLoRA over 8 bits answers in fp32 whatever it is asked in, and attention wants one type of all three."""
    return answer.to(asked[0].dtype)


class AdapterSwitch:
    """What is in one model: its low-rank adapters (PEFT's) by name, None being the model itself, and whose its own
    weights are."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._on: str | None = None
        self._n_made = 0
        self._learning: str | None = None
        self.weights: str | None = None  # sha256 of those in place of the files' own, or UNNAMED
        self.peft: Any = None  # the PeftModel around the model, from its first adapter on

    def add(self, config: Any, *, learning: bool = False) -> str:
        """Put an adapter of this PEFT configuration into the model, off; returns its name.

        Raises ModelError for one of another kind than those already there, or that PEFT does not know how to place.
        """
        self._n_made += 1
        name = f"adapter{self._n_made}"
        try:
            if self.peft is None:
                self.peft = in_peft(self._model, config, name)
            else:
                with no_false_alarms():
                    self.peft.add_adapter(name, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            beside = " beside those it holds; use each with a model of its own" if self.peft is not None else ""
            raise ModelError(
                f"an adapter of kind {config.peft_type.value} cannot be put into this model{beside}: {error}"
            ) from error
        for layer in self._model.modules():
            if name in getattr(layer, "lora_E", ()):
                layer.register_forward_hook(_as_it_was_asked)
        if learning:
            self._learning = name
        self.peft.base_model.disable_adapter_layers()  # PEFT turns on what it adds
        self._model.eval()  # its dropout, too
        self._on = None
        return name

    def use(self, name: str | None) -> None:
        """Turn this adapter on and all others off."""
        if self.peft is None or name == self._on:
            return
        tuner = self.peft.base_model
        if name is None:
            tuner.disable_adapter_layers()
        else:
            if self._on is None:
                tuner.enable_adapter_layers()
            tuner.set_adapter(name, inference_mode=name != self._learning)
        self._on = name

    def stop_learning(self) -> None:
        """From now on every adapter is only used."""
        self.use(None)
        self._learning = None
        for weights in self._model.parameters():
            weights.requires_grad_(False)

    def drop(self, name: str) -> None:
        """Take an adapter out of the model again."""
        self.use(None)
        self.peft.delete_adapter(name)
