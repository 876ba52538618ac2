"""A verbalizer that learns from a few examples without touching the model: each class is the mean of its hidden states.

A state belongs to the class whose mean is nearest (prototypical networks, Snell et al. 2017, arXiv 1703.05175, over a
frozen model as in Cui et al. 2022, arXiv 2203.09770). A few dimensions of hidden states are a hundred times larger than
the others and say little, so distances are in standard deviations of each dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewrec_prompt.tuning.classifying import check_every

_TINY = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Class means (n_classes, width), in units of `spread` (width,) from the `centre` (width,) of all states.

    `variance` is the mean squared distance of a state from its class's mean, in the same units.
    """

    means: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    variance: float

    @classmethod
    def of(cls, states: npt.NDArray[np.floating[Any]], labels: Sequence[int], n_classes: int) -> Prototypes:
        """From states (n, width) and their classes. Raises DataError for a class without a state."""
        marks = np.asarray(labels)
        check_every(labels, n_classes)
        states = states.astype(np.float64)
        centre, spread = states.mean(0), np.maximum(states.std(0), _TINY)
        scaled = (states - centre) / spread
        means = np.stack([scaled[marks == one].mean(0) for one in range(n_classes)])
        variance = max(float(((scaled - means[marks]) ** 2).sum(1).mean()), _TINY)
        return cls(means.astype(np.float32), centre.astype(np.float32), spread.astype(np.float32), variance)

    def log_shares(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probability (n, n_classes), nats: the softmax of −half the squared distances, in units of `variance`."""
        means, centre, spread = (torch.from_numpy(part).to(states) for part in (self.means, self.centre, self.spread))
        scaled = (states - centre) / spread
        distances = (scaled[:, None] - means).square().sum(-1)
        return (-0.5 * distances / self.variance).log_softmax(-1)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """All that it learnt, as arrays by name."""
        parts = {"means": self.means, "centre": self.centre, "spread": self.spread}
        return parts | {"variance": np.array(self.variance, dtype=np.float32)}

    @staticmethod
    def shapes(n_classes: int, width: int) -> dict[str, tuple[int, ...]]:
        """What `to_tensors` gives, as shapes."""
        return {"means": (n_classes, width), "centre": (width,), "spread": (width,), "variance": ()}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> Prototypes:
        """What `to_tensors` gave."""
        return cls(arrays["means"], arrays["centre"], arrays["spread"], float(arrays["variance"]))
