"""What a run writes down: the header that decides its result, the rows of run.json, the columns of its tables.

Plain data only. Which files there are and how they get on disk stands in evaluation.py and runs.py.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fewrec_prompt.backends import Backend
from fewrec_prompt.calibration import TRANSDUCTIVE
from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.display import LEFT_OUT
from fewrec_prompt.metrics import Measured
from fewrec_prompt.rendering import Render
from fewrec_prompt.scoring import Row, Scored
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.significance import Interval, bootstrap_intervals, number
from fewrec_prompt.slices import attributes, slices
from fewrec_prompt.tasks import Task
from fewrec_prompt.text import shown_title
from fewrec_prompt.types import Query

LIBRARIES = (
    "fewrec-prompt",
    "torch",
    "transformers",
    "tokenizers",
    "bitsandbytes",
    "peft",
    "jinja2",
    "numpy",
    "evaluate",
    "implicit",
)

N_EXAMPLES = 30  # users whose prompts are kept: enough to find some for whom a row does well, and some for whom not


def header(task: Task, rows: Sequence[Row], queries: QuerySet, backend: Backend) -> dict[str, Any]:
    """Everything that decides the result. Resuming compares it, but for what only describes (runs.DESCRIBES)."""
    return {
        "schema": 1,
        "task": task.name,
        "settings": task.settings.model_dump(mode="json"),
        "data": dict(queries.sources),
        "queries": queries_digest(queries),
        "model": _model(backend),
        "numerics": backend.mode.to_dict(),
        "templates": {row.settings.prompt: _template(row) for row in rows},
        "verbalizers": {
            str(row.settings.verbalizer): row.recommender.verbalizer.model_dump(mode="json") for row in rows
        },
        "adapters": {row.name: dict(row.adapter) for row in rows if row.adapter},
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Python and the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES}


def _model(backend: Backend) -> dict[str, Any]:
    files = backend.files
    kind = type(backend).__name__
    return {"name": files.name if files else kind, "backend": kind, "sha256": files.sha256 if files else None}


def _template(row: Row) -> dict[str, str]:
    template = row.recommender.template
    return {"origin": template.ref.origin, "sha256": template.ref.sha256, "text": template.text}


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:  # bitsandbytes is not there on every system
        return None


def queries_digest(queries: QuerySet) -> str:
    """sha256 over every history, candidate list and answer, and what is known of people, in order."""
    whole = sha256()
    for query in queries.queries:
        history = [seen.item.id for seen in query.history]
        candidates = [item.id for item in query.candidates]
        answer = sorted(queries.qrels.get(query.user_id, ()))
        parts = [query.user_id, *history, "\1", *candidates, "\1", *answer]
        parts += [f"\1{name}\0{value!r}" for name, value in (*query.user, *query.context)]
        whole.update("\0".join(parts).encode("utf-8", "surrogatepass") + b"\2")
    return whole.hexdigest()


def rows(scored: Sequence[Scored], measured: Mapping[str, Measured], seed: int) -> list[dict[str, Any]]:
    """The rows as run.json holds them: fractions, not per cent; null where there is nothing to say."""
    columns = {(row.name, name): values for row in scored for name, values in measured[row.name].per_user.items()}
    intervals = bootstrap_intervals(columns, seed)  # users are drawn once for all rows
    for row in scored:
        intervals |= {(row.name, name): one.interval() for name, one in measured[row.name].of_run.items()}
    return [
        _row(row, {name: intervals[row.name, name] for name in measured[row.name].names}, measured[row.name])
        for row in scored
    ]


def _row(scored: Scored, intervals: Mapping[str, Interval], measured: Measured) -> dict[str, Any]:
    settings = scored.settings
    return {
        "name": scored.name,
        "prompt": settings.prompt if settings else None,
        "verbalizer": getattr(settings, "verbalizer", None),
        "calibration": getattr(settings, "calibrate", None),
        "alpha": getattr(settings, "alpha", None),
        "length": getattr(settings, "length", None),
        "orders": getattr(settings, "orders", None),
        "transductive": getattr(settings, "calibrate", None) in TRANSDUCTIVE,
        "members": [member.model_dump(mode="json") for member in getattr(settings, "members", ())],
        "n_users": len(scored.rankings),
        "ms_per_user": scored.ms_per_user,
        "metrics": {name: interval(one) for name, one in intervals.items()},
        "about": scored.about,
        "notes": {**(scored.notes or {}), **_left_out(measured)},
    }


def _left_out(measured: Measured) -> dict[str, float]:
    """People whom a metric of the whole run has no value of."""
    return {f"{LEFT_OUT}{name}": float(one.n_excluded) for name, one in measured.of_run.items() if one.n_excluded}


def interval(found: Interval) -> dict[str, float | None]:
    """An interval as JSON holds it."""
    return {"value": number(found.value), "low": number(found.low), "high": number(found.high)}


def ranking_columns(scored: Sequence[Scored]) -> dict[str, list[Any]]:
    """Every ranking of every row, best item first: the columns of rankings.parquet."""
    places = [
        (row.name, ranking.user_id, item_id, score, rank)
        for row in scored
        for ranking in row.rankings
        for rank, (item_id, score) in enumerate(zip(ranking.item_ids, ranking.scores, strict=True), 1)
    ]
    return _columns(("row", "user_id", "item_id", "score", "rank"), places)


def measurement_columns(
    scored: Sequence[Scored], measured: Mapping[str, Measured], users: Sequence[str]
) -> dict[str, list[Any]]:
    """Every metric of every row and user: the columns of measurements.parquet. NaN where a user has no value."""
    places = [
        (row.name, user_id, metric, float(value))
        for row in scored
        for metric, column in measured[row.name].per_user.items()
        for user_id, value in zip(users, column, strict=True)
    ]
    return _columns(("row", "user_id", "metric", "value"), places)


def group_columns(measured: Mapping[str, Measured]) -> dict[str, list[Any]]:
    """Metrics of a whole run without each group of users in turn: the columns of groups.parquet.

    Two runs of the same users have the same groups, so that their difference has an error too.
    """
    places = [
        (row, group, metric, value)
        for row, one in measured.items()
        for metric, of_run in one.of_run.items()
        for group, value in enumerate(of_run.left_out)
    ]
    return _columns(("row", "group", "metric", "value_without"), places)


def slice_columns(measured: Mapping[str, Measured], queries: QuerySet, seed: int) -> dict[str, list[Any]]:
    """Every row and metric for every group of users: the columns of slices.parquet (see slices.py)."""
    values = {(row, name): column for row, one in measured.items() for name, column in one.per_user.items()}
    found = [one.to_dict() for one in slices(values, attributes(queries), seed)] if values else []
    return {name: [one[name] for one in found] for name in found[0]} if found else {}


def examples(rows: Sequence[Row], scored: Sequence[Scored], queries: QuerySet, seed: int) -> dict[str, Any]:
    """Some users as the model met them: what examples.json holds. Who they are depends on nothing but the seed.

    A prompt is that of the first question, with the history that fitted; rows that asked the same share it.
    """
    rankings = {one.name: one.rankings for one in scored}
    drawn = rng_for(seed, "examples").permutation(len(queries.queries))[:N_EXAMPLES].tolist()
    chosen = [(queries.queries[at], {row.name: rankings[row.name][at].n_history for row in rows}) for at in drawn]
    items = [item for query, _ in chosen for item in (*(seen.item for seen in query.history), *query.candidates)]
    return {
        "titles": {item.id: shown_title(item.id, item.title) for item in items},
        "users": [{"user_id": query.user_id, "prompts": _prompts(rows, query, fitted)} for query, fitted in chosen],
    }


def _prompts(rows: Sequence[Row], query: Query, fitted: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each different prompt once: the rows that asked it, its text, and how many questions were like it."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        n_history = fitted[row.name]
        prompt = found.setdefault((row.asks, n_history), {"rows": [], "n_history": n_history})
        prompt["rows"].append(row.name)
        if "text" not in prompt:
            prompt["n_questions"], prompt["text"] = _first_question(row, query.recent(n_history))
    return list(found.values())


def _first_question(row: Row, query: Query) -> tuple[int, str]:
    verbalizer, render = row.recommender.verbalizer, Render(row.recommender.template, row.recommender.domain)
    if verbalizer.kind in ("judge", "rate", "channel"):  # one a candidate: the others are not rendered for nothing
        return len(query.candidates), str(render(query, item=query.candidates[0]))
    asked = verbalizer.ask(query, render)
    return len(asked), str(asked[0].prompt)


def _columns(names: Sequence[str], places: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [place[at] for place in places] for at, name in enumerate(names)}
