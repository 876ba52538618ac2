"""How much more or less than other things each item was liked, by those who are learnt from: a number an item.

A label says something of the person, who likes much or little, and of the item. What is left of it after the person's
own mean is the item's effect, the mean over those who judged it, drawn towards 0 where they are few (the baseline
estimate of Koren 2010, TKDD 4 (1), section 2.1, persons first). Whoever's label is to be foretold must not be heard.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fewrec_prompt.filters import LIKED
from fewrec_prompt.tuning.examples import Example

SHRINKAGE = 5.0  # labels of no effect beside those that an item, or a person, has
Labels: TypeAlias = Mapping[str, Mapping[str, bool]]
"""What each person liked and did not like: by person, then by item id."""


def labels_of(examples: Sequence[Example]) -> Labels:
    """All labels in questions about single candidates: of their histories, where they are rated, and of the answers."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for example in examples:
        query = example.query
        own = found[query.person]
        own |= {seen.item.id: seen.rating >= LIKED for seen in query.history if seen.rating is not None}
        own |= {item.id: place in example.relevant for place, item in enumerate(query.candidates)}
    return found


def item_effects(labels: Labels) -> dict[str, float]:
    """The effect of each labelled item, a share liked: 0.1 is liked by a tenth more than other things are."""
    everything = [liked for own in labels.values() for liked in own.values()]
    mean = float(np.mean(everything)) if everything else 0.0
    left: dict[str, list[float]] = defaultdict(list)
    for own in labels.values():
        usual = (sum(own.values()) + SHRINKAGE * mean) / (len(own) + SHRINKAGE)
        for item_id, liked in own.items():
            left[item_id].append(liked - usual)
    return {item_id: sum(rest) / (len(rest) + SHRINKAGE) for item_id, rest in left.items()}


def effects_without(labels: Labels, person: str) -> dict[str, float]:
    """The same, from everybody else."""
    return item_effects({name: own for name, own in labels.items() if name != person})
