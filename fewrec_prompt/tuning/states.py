"""Hidden states of what people judged: by a model that learns, or once and for all by one that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.tuning.classifying import ClassifierBackend, hidden, labels_of, prompts_of
from fewrec_prompt.tuning.examples import Example


def states_of(recommender: Recommender, examples: Sequence[Example], *, grad: bool = False) -> list[torch.Tensor]:
    """Of each person (n_labels, width), by the model below the recommender's classifier, if there is one.

    The work of all of them is shared. With `grad` they carry gradients to what learns in the model.
    """
    backend = recommender.backend
    model = backend.backend if isinstance(backend, ClassifierBackend) else backend
    prompts = [prompts_of(recommender, labels_of(recommender, one)) for one in examples]
    found = hidden(model, [prompt for own in prompts for prompt in own], grad=grad)
    assert isinstance(model, LocalBackend), "only models that run here are tuned"
    states = found if grad else torch.from_numpy(found).to(model.model.device)
    return list(states.split([len(own) for own in prompts]))


class States:
    """What `states_of` gives, of one recommender whose model stays as it is: each person's are computed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Example, torch.Tensor]] = {}  # by identity, which the example must outlive

    def __contains__(self, example: Example) -> bool:
        return id(example) in self._known

    def of(self, recommender: Recommender, examples: Sequence[Example]) -> list[torch.Tensor]:
        for one in examples:
            if one not in self:
                (states,) = states_of(recommender, [one])
                self._known[id(one)] = one, states
        return [self._known[id(one)][1] for one in examples]
