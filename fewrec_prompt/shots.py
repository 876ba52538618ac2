"""People of a task to learn from, and people to stop by: who they are, and that none of them is tested.

People who are learnt from, or looked at to stop in time, are never among those that a task tests, nor those that a task
beside it does; shots of one seed for fewer people are among those for more.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fewrec_prompt import tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.data.splits import Split
from fewrec_prompt.errors import AdapterError, DataError
from fewrec_prompt.tasks import Task
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.examples import Example, drawn, examples_of, parted
from fewrec_prompt.tuning.losses import LossName

Pool: TypeAlias = tuple[QuerySet, tuple[Example, ...]]
"""Whom a task may be learnt from: all of their queries, and those that say something."""
WATCHED = 128  # rows that early stopping looks at, beside those that a protocol has drawn to learn from


@dataclass(frozen=True, slots=True)
class Shots:
    """People to learn from and people to stop by, and where both came from."""

    learnt: tuple[Example, ...]
    held_out: tuple[Example, ...]
    queries: QuerySet

    def holding_out(self, people: Set[str]) -> Shots:
        """The same with these people among those held out."""
        moved = tuple(one for one in self.learnt if one.query.person in people)
        rest = tuple(one for one in self.learnt if one.query.person not in people)
        return replace(self, learnt=rest, held_out=self.held_out + moved)

    def traced(self) -> dict[str, Any]:
        """Whom these are, for a folder to say."""
        people = (one.query.person for one in self.learnt + self.held_out)
        return adapters.traced(people, self.queries.sources)

    @property
    def loss(self) -> LossName:
        """The loss that these answers ask for: likes and dislikes of single items are read by themselves."""
        return "binary" if all(len(one.query.candidates) == 1 for one in self.learnt) else "listwise"


def shots_of(
    task: Task,
    n: int,
    seed: int = 0,
    *,
    held_out: float = 0.0,
    without: Set[str] = frozenset(),
    unknown_to: Sequence[Path] = (),
    loss: LossName | None = None,
    pool: Pool | None = None,
    say: Say = quiet,
) -> Shots:
    """`n` people of the task to learn from, drawn by the seed; of them a share is held out.

    They are those of its part "train" where it names one, else of "selection": all who are not tested. Where a protocol
    has drawn rows, all of those are learnt from, and WATCHED rows of other people are held out if any share is. Nobody
    of `without` is among them, nor whom the adapters `unknown_to` were learnt from, nor, unless the `loss` is "binary",
    a list of candidates that no answer stands out of. Raises DataError for more than there are, AdapterError for an
    adapter that does not say whom it knows. `pool` is whom `learnable` found, where that was asked before.
    """
    queries, examples = pool or learnable(task, loss, say)
    everybody = {one.query.person for one in examples}
    without = frozenset(without).union(*(_known(folder, everybody, queries) for folder in unknown_to))
    examples = tuple(one for one in examples if one.query.person not in without)
    prescribed = tasks.prescribed_shots(task, n, seed)
    if prescribed is None:
        if n > len(examples):
            left_out = len(everybody & without)
            more = f" ({left_out} more are known to an adapter, or tested in another task)" if left_out else ""
            raise DataError(
                f"{task.name}: {n} shots were asked, but there are {len(examples)} people{more}; ask for fewer"
            )
        learnt, held = parted(drawn(examples, n, seed), held_out, seed)
        return Shots(learnt, held, queries)
    known = {example.query.user_id: example for example in examples}
    learnt = tuple(known[name] for name in prescribed if name in known)
    if len(learnt) < n:
        why = "tested, or known to the adapter" if unknown_to else "tested"
        say(f"{n - len(learnt)} of the {n} rows that were drawn are of people who are {why}, and are left out")
    if not learnt:
        raise DataError(f"{task.name}: none of the {n} rows that were drawn is left to learn from; ask for more shots")
    people = {example.query.person for example in learnt}
    others = [example for example in examples if example.query.person not in people]
    return Shots(learnt, drawn(others, min(WATCHED, len(others)), seed) if held_out else (), queries)


def learnable(task: Task, loss: LossName | None = None, say: Say = quiet) -> Pool:
    """All whom a task may be learnt from. A list needs answers and others beside them, unless each is judged alone."""
    queries = tasks.load_queries(task, _part(task), say=say)
    examples = examples_of(queries)
    if loss == "binary":
        return queries, examples
    answered = tuple(one for one in examples if len(one.query.candidates) == 1 or _has_both(one))
    if n_others := len(examples) - len(answered):
        say(f"{task.name}: {n_others} lists of candidates hold no answer, or nothing else; nothing is learnt from them")
    return queries, answered


def _has_both(example: Example) -> bool:
    return 0 < len(example.relevant) < len(example.query.candidates)


def _known(folder: Path, people: Set[str], queries: QuerySet) -> Set[str]:
    if not adapters.learnt_from(folder):
        raise AdapterError(f"{folder}: does not say whom it was learnt from, so they cannot be left out; tune it anew")
    return adapters.known(folder, people, queries.sources)


def shots_together(
    group: Sequence[Task],
    numbers: Sequence[int],
    seed: int = 0,
    *,
    held_out: float = 0.0,
    unknown_to: Sequence[Path] = (),
    loss: LossName | None = None,
    say: Say = quiet,
) -> list[Shots]:
    """So many people of each task, as `shots_of`. Who is tested or held out in one task is learnt from in none.

    People are told apart by their ids, so in tasks over other data somebody of the same id is left out, too. Raises
    DataError as `shots_of`, and where all people of a task are held out in others.
    """
    tested = [_tested(task, say) if len(group) > 1 else frozenset() for task in group]
    found = []
    for task, n in zip(group, numbers, strict=True):
        others = frozenset[str]().union(*(people for one, people in zip(group, tested, strict=True) if one is not task))
        how: Any = {"held_out": held_out, "unknown_to": unknown_to, "loss": loss}
        found.append(shots_of(task, n, seed, without=others, **how, say=say))
    held = {one.query.person for shots in found for one in shots.held_out}
    apart = [shots.holding_out(held) for shots in found]
    for task, shots in zip(group, apart, strict=True):
        if not shots.learnt:
            raise DataError(f"{task.name}: everybody is held out, here or in another task; ask for more shots")
    return apart


def _tested(task: Task, say: Say) -> frozenset[str]:
    return frozenset(query.person for query in tasks.load_queries(task, say=say).queries)


def _part(task: Task) -> Split:
    data = task.settings.data
    return "train" if data.shots or (data.file is not None and "{part}" in data.file) else "selection"


def check_apart(shots: Shots, test: QuerySet) -> None:
    """Raises DataError if somebody who is learnt from is tested."""
    tested = {query.person for query in test.queries}
    both = sorted({one.query.person for one in shots.learnt + shots.held_out} & tested)
    if both:
        raise DataError(f"{len(both)} people are learnt from and tested (such as {both[0]!r}); choose other shots")
