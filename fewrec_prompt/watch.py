"""Run a task again whenever a file that it is made of is saved, with the model kept loaded.

A task is made of its own file, its templates with all they include, and its verbalizers. Files are compared by what
they hold, for editors save in many ways: in place, by a new file under the old name, twice in a row. What a run scores
and what it finds in the score cache is no matter of this module, nor is how a run is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from fewrec_prompt import artifacts, tasks, templates
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.evaluation import Load, Options, Run, evaluate, load_backend
from fewrec_prompt.scoring import Progress, silent
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import Task

POLL_SECONDS = 0.2
Seen: TypeAlias = Mapping[Path, str | None]
"""sha256 of what each file holds; None where there is no file."""
Chosen: TypeAlias = Callable[[Task], Options]
"""What a call changes of a task, which may depend on what the task says."""
Pause: TypeAlias = Callable[[float], None]


class KeptModel:
    """Loads a model, and gives it again as long as the same one is asked for."""

    def __init__(self, load: Load = load_backend) -> None:
        self._load = load
        self._asked: tuple[str, Numerics] | None = None
        self._backend: Backend | None = None

    def __call__(self, task: Task, numerics: Numerics, say: Say) -> Backend:
        asked = task.settings.model, numerics
        if self._backend is None or self._asked != asked:
            self._backend = None  # two would need the memory of both
            self._backend = self._load(task, numerics, say)
            self._asked = asked
        return self._backend


class Watch:
    """A task and the files it is made of. `run` and `wait` are called in turn."""

    def __init__(
        self, task: str, choose: Chosen, *, load: KeptModel | None = None, cache: bool = True, say: Say = quiet
    ) -> None:
        self._task, self._choose = task, choose
        self._load, self._cache, self._say = load or KeptModel(), cache, say
        self._seen: Seen = {}

    def run(self, progress: Progress = silent) -> Run:
        """Run the task as its files now are, in a folder of its own. Raises FewrecError; waiting goes on after it."""
        # looked at before they are read: what is saved while users are scored is a save too
        self._seen = look(files_of(self._task, self._choose))
        task = tasks.load_task(self._task)
        options = self._choose(task)
        say = self._say
        return evaluate(task, options, load=self._load, cache=self._cache, say=say, progress=progress, early=say)

    def wait(self, pause: Pause = time.sleep) -> tuple[Path, ...]:
        """Return when files hold something else than when they were last read, and have come to rest: those files."""
        seen = self._seen
        while True:
            pause(POLL_SECONDS)
            now, before = look(seen), seen
            while now != before:  # an editor may be at work: a file is cut, or not there for a moment
                pause(POLL_SECONDS)
                now, before = look(seen), now
            if now != seen:
                return tuple(sorted(path for path in seen if now[path] != seen[path]))


def look(files: Iterable[Path]) -> Seen:
    """What the files hold now."""
    return {path: _digest(path) for path in files}


def _digest(path: Path) -> str | None:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def files_of(task: str, choose: Chosen) -> set[Path]:
    """Every file that decides what is asked: where it is, and where it would be found first.

    What is broken is no error here. Of a template that cannot be read all templates beside it count, for it does not
    say what it includes.
    """
    files = set(artifacts.places("eval", task))
    try:
        found = tasks.load_task(task)
        settings = choose(found).applied(found).settings
        rows = (*settings.rows, *(row for one in settings.ensembles for row in one.members))
    except FewrecError:
        return files
    return files.union(*map(_files_of_row, rows))


def _files_of_row(row: RowSettings) -> set[Path]:
    files = set(artifacts.places("prompts", row.prompt))
    verbalizer = row.verbalizer
    try:
        template = templates.load(row.prompt)
        files |= set(template.files)
        verbalizer = verbalizer or template.front.verbalizer
    except FewrecError:
        files |= {other for path in list(files) for other in path.parent.glob("*" + artifacts.SUFFIX["prompts"])}
    return files | set(artifacts.places("verbalizers", verbalizer) if verbalizer else ())
