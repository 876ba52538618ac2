"""Cells of a study: what one method, with so many people of one seed, came to for every test user. Files and numbers.

A cell keeps the values of metrics that a question has by itself, and the scores, of which the others are made that are
over several questions. A cell from before there were scores is read as it is, for the metric of its study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fewrec_prompt.errors import FewrecError, RunError
from fewrec_prompt.files import write_text
from fewrec_prompt.metrics import OF_SCORES, Mean, Shelf, UserScores, parse_metric, people_of
from fewrec_prompt.metrics.naming import Statistic, is_own_name

ZERO, STUDY, CELLS = "zero", "study.json", "cells"
NOT_LEARNED = "did not learn"  # the note of a cell whose training did not beat zero shots


@dataclass(frozen=True, slots=True)
class Cell:
    """What one method came to with so many people of one seed."""

    method: str
    shots: int
    seed: int
    user_ids: tuple[str, ...]  # of the questions that have an answer; a person may have several (7, 7#2)
    values: Mapping[str, tuple[float, ...]]  # of each metric that a question has by itself
    n_weights: int
    train_seconds: float
    ms_per_user: float  # of ranking one test user, questions and model, whoever asked the model first
    note: str = ""
    scores: tuple[tuple[float, ...], ...] = ()  # of the candidates of each question, in the order of the prompt
    relevant: tuple[tuple[int, ...], ...] = ()  # which of them are answers, as places

    @property
    def name(self) -> str:
        return name_of(self.method, self.shots, self.seed)


@dataclass(frozen=True, slots=True)
class Told:
    """A metric of a cell as a function of how much each person counts, (n_people,)."""

    of: Statistic
    n_people: int
    n_excluded: int  # people who have no value

    @property
    def value(self) -> float:
        return self.of(np.ones(self.n_people))


def statistic(cell: Cell, metric: str) -> Told:
    """A metric of a cell. Raises RunError for one that the cell does not hold."""
    who, people = people_of(cell.user_ids)
    if metric in cell.values:
        found: Statistic = Mean(np.array(cell.values[metric], dtype=np.float64), who)
    elif metric in OF_SCORES and len(cell.scores) == len(cell.user_ids):
        found = parse_metric(metric)(_users(cell), Shelf(), who)
    else:
        raise RunError(f"cell {cell.name}: does not hold {metric}; remove it to run it again")
    n_known = len(np.unique(found.groups[~np.isnan(found.values)])) if isinstance(found, Mean) else len(people)
    return Told(found, len(people), len(people) - n_known)


def check_told(names: Sequence[str]) -> None:
    """Raises FewrecError for no metric, or one that cells cannot hold."""
    for name in names:
        if is_own_name(name) and parse_metric(name).entry.kind in ("run", "items") and name not in OF_SCORES:
            raise FewrecError(
                f"{name!r} is of a whole run; a curve shows metrics that a question has, and {', '.join(OF_SCORES)}"
            )
    if not names:
        raise FewrecError("a curve needs a metric at least")


def read_cell(path: Path) -> Cell:
    """A cell from its file. Raises RunError for one that is damaged."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        sealed = found.pop("sha256")
        if sealed != _seal(found):
            raise ValueError("its numbers were changed")
        values = found["values"] if isinstance(found["values"], dict) else {_metric_of(path): found["values"]}
        lists = {name: tuple(map(tuple, found.get(name, ()))) for name in ("scores", "relevant")}
        known = {name: tuple(of_users) for name, of_users in values.items()}
        return Cell(**found | {"user_ids": tuple(found["user_ids"]), "values": known} | lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); remove it to run the cell again") from error


def write_cell(path: Path, cell: Cell) -> None:
    """Write a cell, sealed, as one line. Raises StorageError if the disk refuses."""
    content = json.loads(json.dumps(asdict(cell)))
    write_text(path, json.dumps(content | {"sha256": _seal(content)}, ensure_ascii=False) + "\n")


def name_of(method: str, shots: int, seed: int) -> str:
    """What a cell is called; of a method that learns nothing there is one."""
    return f"{method}-{shots}-{seed}" if shots else method


def _metric_of(path: Path) -> str:
    """The one metric of the study that an older cell lies in."""
    return str(json.loads((path.parent.parent / STUDY).read_text(encoding="utf-8"))["metric"])


def _users(cell: Cell) -> list[UserScores]:
    questions = zip(cell.user_ids, cell.scores, cell.relevant, strict=True)
    return [_user(user_id, scores, relevant) for user_id, scores, relevant in questions]


def _user(user_id: str, scores: Sequence[float], relevant: Sequence[int]) -> UserScores:
    marks = np.zeros(len(scores), dtype=bool)
    marks[list(relevant)] = True
    return UserScores(user_id, np.array(scores), marks, len(relevant))


def _seal(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
