"""One change of the weights after another: AdamW, its rate, gradients that are cut, and how all of it goes on later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch.nn import Parameter

from fewrec_prompt.errors import NumericError
from fewrec_prompt.tuning import checkpoint
from fewrec_prompt.tuning.methods import Tensors

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LARGEST_GRADIENT = 1.0  # norm; steeper ones are cut
TEMPERATURE_RATE = 0.02  # learning rate of the scores' scale


class Stepper:
    """Changes the weights that learn, and the logs of the scales of scores, by their gradients."""

    def __init__(
        self,
        weights: Iterable[tuple[list[Parameter], float]],
        log_scales: Parameter,
        weight_decay: float,
        n_steps: int,
    ) -> None:
        """`weights` come with their learning rates."""
        groups = [{"params": own, "lr": rate, "weight_decay": weight_decay} for own, rate in weights]
        groups.append({"params": [log_scales], "lr": TEMPERATURE_RATE, "weight_decay": 0.0})
        self._rate = partial(_rate, n_steps=n_steps)
        self._optimizer = torch.optim.AdamW(groups)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)

    @property
    def weights(self) -> list[Parameter]:
        """All that is changed."""
        return [weights for group in self._optimizer.param_groups for weights in group["params"]]

    def step(self) -> None:
        """One change; gradients stay until `clear`. If one is not finite, raises NumericError and changes nothing."""
        norm = torch.nn.utils.clip_grad_norm_(self.weights, LARGEST_GRADIENT)
        if not bool(torch.isfinite(norm)):  # cut, it would make weights that are no numbers
            raise NumericError(f"the gradient is {float(norm)}")
        self._optimizer.step()
        self._schedule.step()

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> Tensors:
        """What it remembers, to go on from."""
        return checkpoint.optimizer_tensors(self._optimizer)

    def restore(self, state: Mapping[str, torch.Tensor], n_done: int) -> None:
        """Go on after so many steps, with what `state` gave then; before the first step that is nothing."""
        checkpoint.restore_optimizer(self._optimizer, state)
        self._schedule.load_state_dict(self._schedule.state_dict() | {"last_epoch": n_done})
        for group, rate in zip(self._optimizer.param_groups, self._schedule.base_lrs, strict=True):
            group["lr"] = rate * self._rate(n_done)


def _rate(step: int, *, n_steps: int) -> float:
    """Share of the learning rate: it rises over the first steps and falls to zero at the last (linear)."""
    rising = max(1, round(WARM_UP * n_steps))
    return (step + 1) / rising if step < rising else max(0.0, (n_steps - step) / max(1, n_steps - rising))
