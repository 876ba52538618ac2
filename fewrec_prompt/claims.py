"""Whose a folder of results is: what decides them, written beside them, and compared before anything is added.

A study, a search: each goes on only with what it began with. The model and the settings are its own to say; what is
asked, and whom is learnt from, are told by their content here, since a name or a path would say nothing of a change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fewrec_prompt import tasks, templates
from fewrec_prompt.checked import parts_of
from fewrec_prompt.errors import ArtifactError, RunError
from fewrec_prompt.files import made_folder, write_text
from fewrec_prompt.runs import dump
from fewrec_prompt.shots import Pool
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning.adapters import read_with
from fewrec_prompt.tuning.identity import digest_of
from fewrec_prompt.tuning.lessons import metric_to_stop_by


def claim(note: Path, header: Mapping[str, Any], what: str) -> None:
    """Make the folder of `note` that of these results, or see that it is; `what` they are called.

    What an older note does not say is taken from now on. Raises RunError where it says something else, or is damaged.
    """
    said: dict[str, Any] = json.loads(json.dumps(header))
    there = _read(note) if note.is_file() else {}
    if differ := sorted(key for key in said.keys() & there.keys() if said[key] != there[key]):
        raise RunError(
            f"{note.parent}: holds another {what}, which differs in {', '.join(differ)}; name another --out, or remove "
            "the folder"
        )
    if said.keys() - there.keys():
        made_folder(note.parent)
        write_text(note, dump(there | said))


def asked(row: RowSettings, task: Task) -> dict[str, Any]:
    """What makes scores of a query but for the model, for `claim`; with the template that shows examples."""
    return {"asked": _digest(read_with(*parts_of(row), task.domain)), "demos": _demos(row.prompt)}


def people(task: Task, pool: Pool) -> dict[str, Any]:
    """Whom a task may be learnt from, all that is known of them, and by what a training stops: for `claim`."""
    queries, examples = pool
    draws = tasks.draws_of(task)
    drawn = None if draws is None else sha256(draws.read_bytes()).hexdigest()
    known = None if queries.training is None else digest_of(queries.training)
    return {"people": _digest([repr(examples), known, drawn]), "stops by": metric_to_stop_by(task.metrics)}


def _demos(prompt: str) -> str | None:
    try:
        return templates.load(f"{prompt}-demos").ref.sha256
    except ArtifactError:
        return None  # there is none, and methods that need it say so


def _read(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise RunError(f"{note}: damaged ({error}); remove {note.parent}, or name another --out") from error
    return found


def _digest(said: object) -> str:
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
