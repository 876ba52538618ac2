"""The classic recipe, with which the others are compared: a linear head on hidden states, learnt by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import Parameter

_TINY = 1e-6


class Head:
    """A linear layer over states in standard deviations of each dimension: weights (n_classes, width), bias."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor) -> None:
        self.weights, self.bias = Parameter(weights), Parameter(bias)
        self.centre, self.spread = centre, spread

    @classmethod
    def over(cls, states: torch.Tensor, log_frequencies: torch.Tensor) -> Head:
        """A head for states like these (n, width) that knows nothing yet but how frequent each class is."""
        spread, centre = torch.std_mean(states, dim=0, correction=0)
        zeros = torch.zeros(len(log_frequencies), states.shape[1], device=states.device)
        return cls(zeros, log_frequencies.to(states), centre, spread.clamp(min=_TINY))

    def log_shares(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probability (n, n_classes) of each class, in nats."""
        scaled = (states.to(self.centre) - self.centre) / self.spread
        return torch.nn.functional.linear(scaled, self.weights, self.bias).log_softmax(-1)

    def learns(self) -> dict[str, Parameter]:
        """What is changed as it learns, by name."""
        return {"weights": self.weights, "bias": self.bias}

    def parts(self) -> dict[str, torch.Tensor]:
        """All that it knows, by name."""
        return self.learns() | {"centre": self.centre, "spread": self.spread}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """All that it learnt, as arrays by name."""
        return {name: part.detach().cpu().numpy().copy() for name, part in self.parts().items()}

    @staticmethod
    def shapes(n_classes: int, width: int) -> dict[str, tuple[int, ...]]:
        """What `to_tensors` gives, as shapes."""
        return {"weights": (n_classes, width), "bias": (n_classes,), "centre": (width,), "spread": (width,)}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> Head:
        """What `to_tensors` gave."""
        return cls(*(torch.from_numpy(arrays[name].copy()) for name in ("weights", "bias", "centre", "spread")))
