"""What a row goes by: the same users asked again with one thing changed, and what its rankings agree with.

Hou et al. 2024 (arXiv 2305.08845) changed histories and the place of the target in this way. Every change is scored as
any run is, with the score cache; a probe says how good the ranking still is and how much of its order is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fewrec_prompt import evaluation, records, scoring, tasks
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend
from fewrec_prompt.checked import Checked, check
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.display import main_metric
from fewrec_prompt.errors import TaskError
from fewrec_prompt.evaluation import Options
from fewrec_prompt.runs import run_store
from fewrec_prompt.scoring import Progress, Scored, silent
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.significance import Floats, Interval, bootstrap_interval, paired_interval
from fewrec_prompt.task_settings import DomainSettings
from fewrec_prompt.tasks import Task
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Item, Query, Ranking
from fewrec_prompt.verbalizers import InGroups

AS_THE_TASK_SAYS = Options()
OTHER_WORDS = DomainSettings(singular="thing", plural="things", verb="pick")


@dataclass(frozen=True, slots=True)
class Probe:
    """What one change did, or what the ranking agrees with.

    `difference` is the main metric after the change minus before, over the same users; None where there is nothing to
    measure. `tau` is Kendall's tau-b: of the rankings before and after, or of the ranking and what it is held against.
    """

    name: str
    metric: str | None
    difference: Interval | None
    tau: Interval
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null where there is no value."""
        difference = records.interval(self.difference) if self.difference else None
        own = {"name": self.name, "metric": self.metric, "meaning": self.meaning}
        return own | {"difference": difference, "tau": records.interval(self.tau)}


@dataclass(frozen=True, slots=True)
class Probed:
    """All probes of one row, and what the row comes to as it is."""

    row: str
    metric: str | None
    value: Interval | None
    probes: tuple[Probe, ...]
    n_users: int
    about: Mapping[str, Any]  # task, model, numerics, versions, seed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        value = records.interval(self.value) if self.value else None
        own = {"row": self.row, "metric": self.metric, "value": value, "n_users": self.n_users}
        return dict(self.about) | own | {"probes": [one.to_dict() for one in self.probes]}


Meanings = tuple[str, str, str]
"""What it means that the metric falls, cannot be told apart, or rises."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is changed about a checked task, and what comes of it means."""

    name: str
    make: Callable[[Checked], Checked]
    meanings: Meanings
    fits: Callable[[Checked], bool] = lambda _: True


def probe(
    task: Task | str | Path,
    options: Options = AS_THE_TASK_SAYS,
    *,
    n_users: int = 100,
    backend: Backend | None = None,
    cache: bool = True,
    say: Say = quiet,
    progress: Progress = silent,
) -> Probed:
    """Probe the first row of a task, or of the options, on the first users of the part that the options name.

    Everything is checked before the model is loaded. Changes that mean nothing for the row's kind are left out. Raises
    FewrecError.
    """
    task = options.applied(task if isinstance(task, Task) else tasks.load_task(task))
    task = replace(
        task,
        settings=task.settings.model_copy(update={"rows": task.settings.rows[:1], "baselines": (), "ensembles": ()}),
    )
    queries = tasks.load_queries(task, options.split, options.candidates, say).first(n_users)
    plain = check(task, queries=queries, say=say)
    changes = [change for change in CHANGES if change.fits(plain)]
    made = [change.make(plain) for change in changes]
    for one in made:
        scoring.rehearse(one.parts, one.task.domain, one.queries.queries)
    backend = backend or evaluation.load_backend(task, options.numerics, say)
    scored = [
        _scored(one, backend, _part(progress, at, 1 + len(made)), say, cache=cache)
        for at, one in enumerate([plain, *made])
    ]
    return _probed(plain, changes, made, scored, backend)


def _scored(checked: Checked, backend: Backend, progress: Progress, say: Say, *, cache: bool) -> Scored:
    rows, queries = checked.rows(backend), checked.queries
    with TemporaryDirectory() as folder, run_store(Path(folder) / "probe", {}) as store:
        evaluation.score_all(scoring.plan(rows, queries.queries), queries, store, progress, say, cache=cache)
        return scoring.read(rows[0], queries.queries, store)


def _part(progress: Progress, done: int, n_parts: int) -> Progress:
    return lambda what, now, total: progress(what, done + now / total if total else done, n_parts)


# --- what is changed ---------------------------------------------------------------------------------------------


def _each(change: Callable[[Query, int], Query]) -> Callable[[Checked], Checked]:
    """A change of every query by itself, and by the seed of the task."""

    def made(checked: Checked) -> Checked:
        seed = checked.task.settings.seed
        return _with(checked, [change(query, seed) for query in checked.queries.queries])

    return made


def _with(checked: Checked, queries: Sequence[Query]) -> Checked:
    return replace(checked, queries=replace(checked.queries, queries=tuple(queries)))


def _shuffled(query: Query, seed: int) -> Query:
    order = rng_for(seed, "shuffled history", query.user_id).permutation(len(query.history))
    return replace(query, history=tuple(query.history[at] for at in order))


def _of_another(checked: Checked) -> Checked:
    """Every user has the history of the next one in a drawn circle, without what is a candidate of their own."""

    def changed(query: Query, others: Sequence[Query]) -> Query:
        own = {item.id for item in query.candidates}
        unseen = (tuple(seen for seen in other.history if seen.item.id not in own) for other in others)
        return replace(query, history=next(filter(None, unseen), ()))

    return _in_a_circle(checked, changed)


def _known_of_another(checked: Checked) -> Checked:
    """Every user has the name, or whatever else is known of a person and the moment, of the next one in the circle."""
    return _in_a_circle(checked, lambda query, others: replace(query, user=others[0].user, context=others[0].context))


def _in_a_circle(checked: Checked, change: Callable[[Query, Sequence[Query]], Query]) -> Checked:
    """A change that needs other people: all the others, in the order in which they follow in a drawn circle."""
    queries = checked.queries.queries
    if len(queries) < 2:
        raise TaskError(f"{checked.task.name}: one user has nobody to change places with; probe two or more")
    order = rng_for(checked.task.settings.seed, "others").permutation(len(queries)).tolist()
    changed = list(queries)
    for at, place in enumerate(order):
        changed[place] = change(queries[place], [queries[one] for one in (*order[at + 1 :], *order[:at])])
    return _with(checked, changed)


def _target_at(share: float) -> Callable[[Checked], Checked]:
    """The target changes places with what stands there: 0 is the first place, 1 the last.

    Whoever scores is told nothing of it. A user without a target, or with one that is no candidate, stays as it is.
    """

    def made(checked: Checked) -> Checked:
        return _with(checked, [_moved(query, checked.queries, share) for query in checked.queries.queries])

    return made


def _moved(query: Query, queries: QuerySet, share: float) -> Query:
    relevant = queries.qrels.get(query.user_id, frozenset())
    shown = list(query.candidates)
    places = [at for at, item in enumerate(shown) if item.id in relevant]
    for target in islice(places, 1):
        there = round(share * (len(shown) - 1))
        shown[there], shown[target] = shown[target], shown[there]
    return replace(query, candidates=tuple(shown))


def _other_words(checked: Checked) -> Checked:
    settings = checked.task.settings
    data = settings.data.model_copy(update={"domain": OTHER_WORDS})
    return replace(checked, task=replace(checked.task, settings=settings.model_copy(update={"data": data})))


def _misspelt(query: Query, seed: int) -> Query:
    history = tuple(replace(seen, item=with_typo(seen.item, seed)) for seen in query.history)
    return replace(query, history=history, candidates=tuple(with_typo(item, seed) for item in query.candidates))


def with_typo(item: Item, seed: int) -> Item:
    """The item with two letters of its title in the wrong order: the same two for whoever it is shown to."""
    title = item.title
    inside = [at for at in range(1, len(title) - 2) if title[at : at + 2].isalpha() and title[at] != title[at + 1]]
    if not inside:
        return item
    at = int(rng_for(seed, "typo", item.id).choice(inside))
    return replace(item, title=title[:at] + title[at + 1] + title[at] + title[at + 2 :])


def _reads_history(checked: Checked) -> bool:
    return all(verbalizer.kind != "channel" for _, verbalizer, _ in checked.parts)  # there the history is asked for


def _shows_together(checked: Checked) -> bool:
    return all(isinstance(verbalizer, InGroups) for _, verbalizer, _ in checked.parts)


def _knows_people(checked: Checked) -> bool:
    return any(query.user or query.context for query in checked.queries.queries)


MISSING = ("the history helps", "no sign that the history is used", "the history does harm")
PLACED = ("the target is missed here", "no sign that this place matters", "what stands here is preferred")
STEADY = ("this costs quality", "no sign that this matters", "this helps, by chance or for a reason worth a look")
CHANGES = (
    Change("no history", _each(lambda query, _: query.recent(0)), MISSING, _reads_history),
    Change("another user's history", _of_another, ("whose history it is matters", *MISSING[1:])),
    Change("history shuffled", _each(_shuffled), ("the order of the history helps", STEADY[1], "its order does harm")),
    Change("target first", _target_at(0.0), PLACED, _shows_together),
    Change("target in the middle", _target_at(0.5), PLACED, _shows_together),
    Change("target last", _target_at(1.0), PLACED, _shows_together),
    Change("another user's name and moment", _known_of_another, STEADY, _knows_people),
    Change("other words for the things", _other_words, STEADY),
    Change("typos in titles", _each(_misspelt), STEADY),
)


# --- what comes of it --------------------------------------------------------------------------------------------


def _probed(
    plain: Checked, changes: Sequence[Change], made: Sequence[Checked], scored: Sequence[Scored], backend: Backend
) -> Probed:
    metric, seed = main_metric(plain.task.metrics), plain.task.settings.seed
    before, *after = scored
    values = _values(before, plain.queries, metric)
    probes = [
        _changed(change, before, now, _values(now, one.queries, metric), values, seed)
        for change, one, now in zip(changes, made, after, strict=True)
    ]
    probes += [_held_against(name, plain, before, what, seed) for name, what in AGAINST.items()]
    found = None if values is None else bootstrap_interval(values[1], seed)
    about = _about(plain, backend)
    return Probed(before.name, values[0] if values else None, found, tuple(probes), len(plain.queries.queries), about)


def _about(plain: Checked, backend: Backend) -> dict[str, Any]:
    header = records.header(plain.task, plain.rows(backend), plain.queries, backend)
    kept = ("task", "settings", "data", "queries", "model", "numerics", "versions")
    return {name: header[name] for name in kept}


def _values(scored: Scored, queries: QuerySet, metric: str | None) -> tuple[str, Floats] | None:
    """The metric's name and its values; None if nobody has an answer."""
    found = evaluation.measure(scored, queries, [metric]) if metric else {}
    return next(iter(found.items()), None)


def _changed(
    change: Change,
    before: Scored,
    after: Scored,
    values: tuple[str, Floats] | None,
    plain: tuple[str, Floats] | None,
    seed: int,
) -> Probe:
    taus = [
        tau(np.array(one.scores), _scores_of(other, one.item_ids))
        for one, other in zip(before.rankings, after.rankings, strict=True)
    ]
    kept = bootstrap_interval(np.array(taus), seed)
    if values is None or plain is None:
        return Probe(change.name, None, None, kept, "nobody has an answer, so there is nothing to measure")
    difference = paired_interval(values[1], plain[1], seed)
    return Probe(change.name, values[0], difference, kept, _meaning(difference, change.meanings))


def _scores_of(ranking: Ranking, item_ids: Sequence[str]) -> Floats:
    score = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    return np.array([score[item_id] for item_id in item_ids])


def _meaning(found: Interval, meanings: Meanings) -> str:
    falls, same, rises = meanings
    return falls if found.high < 0 else rises if found.low > 0 else same


Against = Callable[[Checked, Item], float]
AGAINST: Mapping[str, Against] = {
    "popularity": lambda checked, item: float(checked.queries.popularity.get(item.id, 0)),
    "title length": lambda _, item: float(len(shown_title(item.id, item.title))),
}
"""What rankings are held against, without asking anything: the more of it, the higher an item stands."""


def _held_against(name: str, plain: Checked, scored: Scored, what: Against, seed: int) -> Probe:
    taus = [tau(np.array(one.scores), np.array([what(plain, item) for item in one.items])) for one in scored.rankings]
    found = bootstrap_interval(np.array(taus), seed)
    meanings = (f"less {name} stands higher", f"no sign that {name} matters", f"more {name} stands higher")
    return Probe(f"{name} and rank", None, None, found, _meaning(found, meanings))


def tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b of two rows of scores of the same items (Kendall 1945); NaN where one of them is all equal."""
    first, second = (np.sign(row[:, None] - row[None, :]) for row in (a, b))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else float("nan")
