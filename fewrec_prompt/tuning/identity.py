"""What an interrupted training is, so that nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch

from fewrec_prompt.backends.identity import computation
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.data.training import Training
from fewrec_prompt.tuning.adapters import asked_with
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.methods import Tensors
from fewrec_prompt.tuning.settings import Settings


@dataclass(frozen=True, slots=True)
class Earlier:
    """The weights of an earlier round to go on from.

    `pull` is the weight of the squared distance to them (Li et al. 2018, arXiv 1802.01483). The people of that round
    who are learnt from again, and those on whom is measured what was forgotten, stand in the lessons.
    """

    tensors: Tensors
    pull: float = 0.0


def identity(settings: Settings, lessons: Sequence[Lesson], backend: LocalBackend, earlier: Earlier | None) -> str:
    """sha256 of settings, how is asked, whom and what, the model and its numbers, and an earlier round's weights."""
    began = None if earlier is None else (earlier.pull, *map(_digest, earlier.tensors.values()))
    files = backend.files
    model = files and files.sha256, computation(backend.mode, backend.token_budget)
    whole = (settings.to_dict(), [*map(_content, lessons)], model, began)
    return sha256(repr(whole).encode()).hexdigest()


def _content(lesson: Lesson) -> tuple[Any, ...]:
    people = (lesson.examples, lesson.held_out, lesson.earlier)  # with all that a template may show
    known = None if lesson.training is None else digest_of(lesson.training)
    return lesson.name, lesson.loss, lesson.negatives, lesson.metric, asked_with(lesson.recommender), people, known


def digest_of(training: Training) -> str:
    """sha256 of who took what, which negatives and whole histories are drawn from."""
    said = repr((training.user_ids, [training.items[item_id] for item_id in training.item_ids])).encode()
    numbers = (training.users, training.codes, training.times, training.ratings)
    return sha256(said + b"".join(b"" if own is None else own.tobytes() for own in numbers)).hexdigest()


def _digest(values: torch.Tensor) -> str:
    return sha256(values.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
