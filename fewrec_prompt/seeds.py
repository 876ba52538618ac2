"""Chance with an address: a random generator for a seed and a place, the same on any worker and in any order."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def rng_for(seed: int, *address: str | int) -> np.random.Generator:
    """The generator that belongs to this seed and address, e.g. `rng_for(0, "candidates", query.user_id)`."""
    import numpy as np

    place = "\x1f".join(str(part) for part in (seed, *address))
    return np.random.default_rng(
        np.frombuffer(sha256(place.encode("utf-8", "surrogatepass")).digest(), dtype=np.uint32)
    )
